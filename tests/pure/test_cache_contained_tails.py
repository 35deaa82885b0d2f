"""A tail goes when a longer row with its tokens is there, and its key still stands for them."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from cache import siblings
from cache.answers import Evicted, Refusal, RefusalReason, Reservation, RowRequest
from cache.finish_keys import MAX_ENDS, FinishKeys, ends_in, pack_ends, tails_in, unpack_ends
from cache.index import CacheIndex
from cache.keys import namespace_key
from cache.nodes import Nodes
from cache.rows import RowIdentity, SaveReason
from cache.tokens import TIP, pack

pytestmark = pytest.mark.pure

BLOCK, PAGE, SIZE = 4, 4096, 4000
ROOT = namespace_key([("model", "a")])
READER = "reader"


def row(*ids: int, root: bytes = ROOT) -> RowRequest:
    """The last row of these tokens."""
    parent = root
    for at in range(0, len(ids), BLOCK):
        tokens = pack(ids[at : at + BLOCK])
        last = RowRequest(RowIdentity.after(parent, root, at, tokens), SIZE, SaveReason.COLD)
        parent = last.key
    return last


def make(ram_rows: int = 100, **tiers: int) -> CacheIndex:
    return CacheIndex(BLOCK, {"ram": (ram_rows + 1) * PAGE, **tiers}, page_bytes=PAGE)


def save(index: CacheIndex, *ids: int, tier: str = "ram") -> list[Evicted]:
    """Publish the last row of these tokens; what had to go for it."""
    wanted = row(*ids)
    answers, evicted = index.reserve(1.0, "m", [wanted], tier)
    assert isinstance(answers[0], Reservation), answers
    evicted += index.publish(1.0, "m", wanted.key, tier).evicted
    index.check_integrity()
    return evicted


def persist(index: CacheIndex, tier: str = "disk") -> list[Evicted]:
    """Copy to a file tier whatever it is to get."""
    gone: list[Evicted] = []
    while answers := [a for a in index.persist(1.0, "w", tier, 8)[0] if isinstance(a, Reservation)]:
        for answer in answers:
            gone += index.publish(1.0, "w", answer.key, tier).evicted
    index.check_integrity()
    return gone


def tiers_of(index: CacheIndex, *ids: int) -> list[str]:
    facts = index.facts(row(*ids).key)
    return [] if facts is None else [name for name, _ in facts.tiers]


def resolved(index: CacheIndex, *ids: int) -> int | None:
    match = index.lookup_key(2.0, READER, row(*ids).key)
    if match is None:
        return None
    index.release(match.lease)
    return match.n_tokens


# ── going ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("longer", [(1, 2, 3), (1, 2, 3, 4)])
def test_a_tail_goes_when_a_longer_row_is_published(longer):
    index = make()
    save(index, 1, 2)
    location = index.facts(row(1, 2).key).tiers[0][1]
    gone = save(index, *longer)
    assert gone == [Evicted(row(1, 2).key, "ram", location, PAGE)]
    assert tiers_of(index, 1, 2) == []
    assert index.snapshot().tails_removed == 1
    assert index.snapshot().evictions == 0
    assert index.snapshot().tiers["ram"].used_bytes == PAGE


def test_one_row_removes_all_it_contains_and_nothing_else():
    index = make()
    others = [(1, 2, 9), (1, 9), (2,), (1, 2, 3, 5)]
    save(index, 1)
    save(index, 1, 2)
    lease = index.lookup(1.0, READER, ROOT, pack([1, 2])).lease
    for tail in others:
        save(index, *tail)
    index.release(lease)
    assert tiers_of(index, 1) == tiers_of(index, 1, 2) == []
    assert all(tiers_of(index, *other) == ["ram"] for other in others)
    assert save(index, 1, 2, 3, 4) == []
    assert [gone.key for gone in save(index, 2, 1, 256)] == [row(2).key]


def test_among_very_many_longer_rows_the_one_that_is_published_counts():
    index = CacheIndex(BLOCK, {"ram": 300 * PAGE, "disk": 1_000_000}, page_bytes=PAGE)
    save(index, 1, tier="disk")
    for n in range(200):
        save(index, 1, n)
    assert tiers_of(index, 1) == ["disk"]
    save(index, 1, 999, tier="disk")
    assert tiers_of(index, 1) == []


def test_the_longer_row_is_worth_what_the_tail_was():
    index = make(ram_rows=3)
    save(index, 1)
    for now in range(100):
        index.release(index.lookup(1.0 + now, READER, ROOT, pack([1])).lease)
    save(index, 1, 2)
    save(index, 8, 8)
    index.release(index.lookup(200.0, READER, ROOT, pack([8, 8])).lease)
    save(index, 9, 9)
    evicted = save(index, 7, 7)
    assert [gone.key for gone in evicted] != [row(1, 2).key]
    assert tiers_of(index, 1, 2) == ["ram"]


def test_a_malformed_row_adds_no_finish_keys():
    index = make(disk=100_000)
    block = row(1, 2, 3, 4)
    lie = RowRequest(replace(block.id, start=4), SIZE)
    index.add_finish_keys(1.0, lie, pack_ends([2]))
    index.adopt(1.0, "disk", block)
    assert resolved(index, 1, 2) is None


def test_tails_of_other_blocks_and_namespaces_stay():
    index = make()
    save(index, 1, 2, 3, 4)
    save(index, 1, 2, 3, 4, 1, 2)
    other = namespace_key([("model", "b")])
    assert isinstance(index.reserve(1.0, "m", [row(1, 2, root=other)]).answers[0], Reservation)
    index.publish(1.0, "m", row(1, 2, root=other).key)
    save(index, 5, 6, 7, 8)
    assert index.snapshot().rows == 4
    assert index.snapshot().tails_removed == 0


def test_a_tail_goes_from_each_tier_when_the_longer_row_is_there_not_before():
    index = make(ram_file=100_000, disk=100_000)
    save(index, 1, 2)
    persist(index, "ram_file")
    persist(index, "disk")
    assert tiers_of(index, 1, 2) == ["ram", "ram_file", "disk"]
    save(index, 1, 2, 3, 4)
    assert tiers_of(index, 1, 2) == ["ram_file", "disk"]
    assert [gone.tier for gone in persist(index, "disk")] == ["disk"]
    assert tiers_of(index, 1, 2) == ["ram_file"]
    assert [gone.tier for gone in persist(index, "ram_file")] == ["ram_file"]
    assert tiers_of(index, 1, 2) == []
    assert tiers_of(index, 1, 2, 3, 4) == ["ram", "ram_file", "disk"]
    assert index.snapshot().tails_removed == 3


def test_of_two_disks_either_may_hold_the_longer_row():
    index = make(disk=100_000, disk2=100_000)
    save(index, 1, 2, tier="disk")
    save(index, 1, 2, 3, 4, tier="disk2")
    assert tiers_of(index, 1, 2) == []


def test_a_tail_that_is_read_goes_with_its_last_lease():
    index = make()
    save(index, 1, 2)
    first = index.lookup(1.0, READER, ROOT, pack([1, 2]))
    second = index.lookup_key(1.0, READER, row(1, 2).key)
    assert save(index, 1, 2, 3) == []
    assert index.release(first.lease) == []
    assert tiers_of(index, 1, 2) == ["ram"]
    assert [gone.key for gone in index.release(second.lease)] == [row(1, 2).key]
    assert tiers_of(index, 1, 2) == []
    index.check_integrity()


def test_a_tail_that_is_being_copied_goes_when_that_ends():
    index = make(disk=100_000)
    save(index, 1, 2)
    (copy,) = index.persist(1.0, "w", "disk", 8).answers
    assert save(index, 1, 2, 3, 4) == []
    done = index.publish(1.0, "w", copy.key, "disk")
    assert [gone.tier for gone in done.evicted] == ["ram"]
    assert tiers_of(index, 1, 2) == ["disk"]
    assert [gone.tier for gone in persist(index)] == ["disk"]
    assert tiers_of(index, 1, 2) == []


def test_a_tail_that_was_reserved_before_the_longer_row_goes_when_it_is_published():
    index = make()
    index.reserve(1.0, "m", [row(1, 2)])
    save(index, 1, 2, 3)
    done = index.publish(1.0, "m", row(1, 2).key)
    assert done.accepted
    assert [gone.key for gone in done.evicted] == [row(1, 2).key]
    index.check_integrity()


def test_no_room_is_given_to_a_tail_that_is_contained_already():
    index = make(disk=100_000)
    save(index, 1, 2, 3, 4)
    (answer,) = index.reserve(1.0, "m", [row(1, 2)]).answers
    assert isinstance(answer, Refusal)
    assert answer.reason is RefusalReason.ALREADY_PRESENT
    assert resolved(index, 1, 2) == 2
    save(index, 1, 2, tier="disk")  # there it is not
    persist(index)
    assert tiers_of(index, 1, 2) == []


def test_a_tail_on_disk_is_not_promoted_beside_a_longer_row():
    index = make(disk=100_000)
    save(index, 1, 2, tier="disk")
    save(index, 1, 2, 3, 4)
    (answer,) = index.promote(1.0, "r", [row(1, 2).key]).answers
    assert isinstance(answer, Refusal)


def test_the_state_of_a_whole_sequence_is_contained_in_no_other():
    index = make(disk=100_000)
    save(index, TIP, 1)
    save(index, TIP, 1, 2)
    save(index, TIP, 1, 2, 3)
    assert index.snapshot().rows == 3
    assert index.drop_contained(row(TIP, 1).key) == []
    assert index.ends_in(row(TIP, 1, 2, 3).id) == b""
    assert index.snapshot().tails_removed == 0


def test_a_tail_is_worth_something_again_when_the_longer_row_is_gone():
    index = make(disk=100_000)
    save(index, 1, 2, tier="disk")
    save(index, 1, 2, 3)
    assert index.facts(row(1, 2).key).superseded
    index.drop_location(row(1, 2, 3).key, "ram")
    assert not index.facts(row(1, 2).key).superseded
    assert resolved(index, 1, 2) == 2
    index.check_integrity()


def test_a_tail_that_the_disk_was_to_get_is_wanted_again_when_the_longer_row_is_lost():
    index = make(disk=100_000)
    save(index, 1, 2)
    lease = index.lookup(1.0, READER, ROOT, pack([1, 2])).lease
    save(index, 1, 2, 3)
    index.drop_location(row(1, 2, 3).key, "ram")
    index.release(lease)
    persist(index)
    assert tiers_of(index, 1, 2) == ["ram", "disk"]


# ── a start ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "order", list(itertools.permutations([(1,), (1, 2), (1, 2, 3, 4), (1, 5)]))
)
def test_a_scan_in_any_order_leaves_what_nothing_contains(order):
    index = make(disk=100_000)
    dropped = []
    for ids in order:
        dropped += index.adopt(1.0, "disk", row(*ids), None, 0.5)
        index.check_integrity()
    assert sorted(gone.key for gone in dropped) == sorted([row(1).key, row(1, 2).key])
    assert all(gone.tier == "disk" for gone in dropped)
    assert index.snapshot().rows == 2
    assert index.snapshot().tails_removed == 2
    assert [resolved(index, 1), resolved(index, 1, 2), resolved(index, 1, 2, 3)] == [1, 2, None]


def test_a_slab_that_a_scan_finds_and_a_longer_row_contains_is_to_be_wiped():
    index = make()
    save(index, 1, 2, 3, 4)
    gone = index.adopt(1.0, "ram", row(1, 2), 40 * PAGE, 0.5)
    assert gone == [Evicted(row(1, 2).key, "ram", 40 * PAGE, PAGE)]


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_of_a_removed_tail_stands_for_the_same_tokens():
    index = make()
    save(index, 9, 9, 9, 9)
    save(index, 9, 9, 9, 9, 1, 2)
    save(index, 9, 9, 9, 9, 1, 2, 3)
    save(index, 9, 9, 9, 9, 1, 2, 3, 4)
    match = index.lookup_key(2.0, READER, row(9, 9, 9, 9, 1, 2).key)
    assert (match.n_tokens, match.blocks[-1].n_used) == (6, 2)
    assert match.blocks[-1].key == row(9, 9, 9, 9, 1, 2, 3, 4).key
    assert resolved(index, 9, 9, 9, 9, 1, 2, 3) == 7
    assert resolved(index, 9, 9, 9, 9, 1) is None  # no sequence ended there


def test_rows_store_where_the_tails_in_them_end_and_a_new_index_reads_it():
    index = make()
    save(index, 1)
    index.reserve(1.0, "m", [row(1, 2)])  # held back, as the end of a reply is
    block = row(1, 2, 3, 4)
    ends = index.ends_in(block.id)
    assert unpack_ends(ends) == (1, 2)
    assert index.ends_in(row(5, 6, 7, 8).id) == b""
    again = make(disk=100_000)
    again.adopt(1.0, "disk", block)
    assert resolved(again, 1, 2) is None
    again.add_finish_keys(0.5, block, ends)
    assert [resolved(again, 1), resolved(again, 1, 2), resolved(again, 1, 2, 3)] == [1, 2, None]
    assert unpack_ends(again.ends_in(block.id)) == (1, 2)


def test_a_key_whose_block_was_evicted_is_unknown():
    index = make()
    save(index, 1, 2)
    save(index, 1, 2, 3, 4)
    index.drop_location(row(1, 2, 3, 4).key, "ram")
    assert resolved(index, 1, 2) is None
    save(index, 1, 2, 7)
    assert resolved(index, 1, 2) == 2


def test_the_key_of_a_tail_that_only_a_scan_has_seen_stands_for_its_tokens():
    index = make(disk=100_000)
    index.adopt(1.0, "disk", row(1))
    gone = index.adopt(1.0, "disk", row(1, 1, 0))
    assert [one.key for one in gone] == [row(1).key]
    match = index.lookup_key(2.0, READER, row(1).key)
    assert (match.n_tokens, match.blocks[-1].key) == (1, row(1, 1, 0).key)


def found_and_evicted(index: CacheIndex) -> None:
    """A tail found by a scan is evicted for lack of room, although a faster tier contains it."""
    save(index, 1, 2, 3, 4)
    index.reserve(1.0, "m", [row(8), row(9)], "disk")


def found_and_corrupt(index: CacheIndex) -> None:
    save(index, 1, 2, 3, 4)
    index.drop_location(row(1, 2).key, "disk")


def found_and_its_tier_vanished(index: CacheIndex) -> None:
    save(index, 1, 2, 3, 4)
    index.forget_tier("disk")
    index.tidy(1 << 20)


def found_and_given_up_under_pressure(index: CacheIndex) -> None:
    save(index, 1, 2, 3, 4)
    index.evict(1.0, "disk")


def found_and_evicted_for_the_row_that_contains_it(index: CacheIndex) -> None:
    index.reserve(1.0, "m", [row(9), row(1, 2, 3, 4)], "disk")
    index.publish(1.0, "m", row(1, 2, 3, 4).key, "disk")


@pytest.mark.parametrize(
    "way",
    [
        found_and_evicted,
        found_and_corrupt,
        found_and_its_tier_vanished,
        found_and_given_up_under_pressure,
        found_and_evicted_for_the_row_that_contains_it,
    ],
)
def test_however_the_last_copy_of_a_tail_goes_its_key_stands_for_the_tokens(way):
    index = make(disk=2 * SIZE)
    index.adopt(1.0, "disk", row(1, 2), None, 0.5)
    way(index)
    index.check_integrity()
    assert tiers_of(index, 1, 2) == []
    match = index.lookup_key(2.0, READER, row(1, 2).key)
    assert (match.n_tokens, match.blocks[-1].key) == (2, row(1, 2, 3, 4).key)
    assert unpack_ends(index.ends_in(row(1, 2, 3, 4).id)) == (2,)


@pytest.mark.parametrize("met", ["offered", "found"])
def test_a_tail_for_which_there_was_no_room_is_found_in_a_longer_row(met):
    index = make(disk=SIZE - 1)
    if met == "offered":
        (answer,) = index.reserve(1.0, "m", [row(1, 2)], "disk").answers
        assert answer.reason is RefusalReason.OVER_BUDGET
    else:
        assert index.adopt(1.0, "disk", row(1, 2))
    save(index, 1, 2, 3, 4)
    assert resolved(index, 1, 2) == 2


def test_old_tails_that_are_evicted_do_not_displace_those_used_later():
    index = make(disk=100_000)
    index._table.finish_keys = FinishKeys(limit=1)
    index.adopt(1.0, "disk", row(1, 2), None, 0.5)
    save(index, 3, 4)
    index.drop_location(row(1, 2).key, "disk")
    save(index, 1, 2, 3, 4)
    save(index, 3, 4, 5, 6)
    assert [resolved(index, 1, 2), resolved(index, 3, 4)] == [None, 2]


def test_ends_of_a_row_are_read_as_they_were_packed():
    for ends in ([], [1], [1, 2, 63], list(range(1, 20))):
        assert list(unpack_ends(pack_ends(ends))) == ends[-MAX_ENDS:]
    assert unpack_ends(b"") == unpack_ends(bytes(15)) == ()
    assert ends_in(b"") == ends_in(b"ends, but no msgpack") == b""


@pytest.mark.parametrize("end", [0, 4, 5, 65535])
def test_an_end_that_is_not_inside_its_row_stands_for_nothing(end):
    assert list(tails_in(row(1, 2, 3, 4).id, [end])) == []


def test_of_more_tails_than_are_kept_those_used_last_are_known():
    keys = FinishKeys(limit=10)
    tails = [row(n).id for n in range(100)]
    times = list(range(100))
    random.Random(5).shuffle(times)
    for used, tail in zip(times, tails, strict=True):
        keys.add(float(used), tail)
        keys.add(used - 0.5, tail)  # an earlier use changes nothing
    assert len(keys) == 10
    known = {used for used, tail in zip(times, tails, strict=True) if keys.get(tail.key)}
    assert known == set(range(90, 100))


def test_a_tail_that_is_used_again_and_again_takes_no_more_room():
    keys = FinishKeys(limit=10)
    for used in range(1000):
        keys.add(float(used), row(used % 7).id)
    assert len(keys) == 7
    assert all(keys.get(row(n).key) for n in range(7))


# ── the search ───────────────────────────────────────────────────────────────────────────────────


def test_beginnings_and_extensions_are_found_among_any_siblings():
    rng = random.Random(11)
    for _ in range(200):
        nodes = Nodes(BLOCK)
        parent = nodes.use(ROOT)
        stored = {
            tuple(rng.choice([0, 1, 256]) for _ in range(rng.randrange(1, BLOCK + 1)))
            for _ in range(rng.randrange(12))
        }
        slots = {}
        for ids in stored:
            request = row(*ids)
            at = nodes.use(request.key)
            nodes.fill(at, request, parent, parent, 0.0)
            siblings.insert(nodes, parent, at)
            slots[at] = ids
        asked = tuple(rng.choice([0, 1, 256]) for _ in range(rng.randrange(1, BLOCK + 1)))
        shorter = [slots[at] for at in siblings.beginnings(nodes, parent, pack(asked))]
        wanted = [ids for ids in stored if len(ids) < len(asked) and asked[: len(ids)] == ids]
        assert shorter == sorted(wanted, key=len, reverse=True)
        longer = [slots[at] for at in siblings.extensions(nodes, parent, pack(asked))]
        n = len(asked)
        assert sorted(longer) == sorted(ids for ids in stored if len(ids) > n and ids[:n] == asked)
