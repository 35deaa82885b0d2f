"""The index by example; the stateful test next door searches for what these forgot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cache.answers import Evicted, MissReason, Refusal, RefusalReason, Reservation, RowRequest
from cache.errors import InvariantBroken
from cache.index import CacheIndex
from cache.keys import namespace_key
from cache.rows import RowIdentity, SaveReason
from cache.tokens import pack

pytestmark = pytest.mark.pure

BLOCK, PAGE, SIZE = 4, 4096, 4000
ROOT = namespace_key([("model", "a")])


def chain(*ids: int, root: bytes = ROOT, size: int = SIZE) -> list[RowRequest]:
    out, parent = [], root
    for at in range(0, len(ids), BLOCK):
        tokens = pack(ids[at : at + BLOCK])
        row = RowIdentity.after(parent, root, at, tokens)
        out.append(RowRequest(row, size, SaveReason.COLD))
        parent = row.key
    return out


def make(ram_rows: int = 100, **tiers: int) -> CacheIndex:
    return CacheIndex(BLOCK, {"ram": (ram_rows + 1) * PAGE, **tiers}, page_bytes=PAGE)


def save(index: CacheIndex, *ids: int, now: float = 0.0, holder: str = "m") -> list[Evicted]:
    answers, evicted = index.reserve(now, holder, chain(*ids))
    for answer in answers:
        if isinstance(answer, Reservation):
            assert index.publish(now, holder, answer.key).accepted
    index.check_integrity()
    return evicted


def find(index: CacheIndex, *ids: int, now: float = 0.0, root: bytes = ROOT, **how):
    match = index.lookup(now, "reader", root, pack(ids), **how)
    index.release(match.lease)
    return match


def reasons(answers) -> list[RefusalReason | None]:
    return [a.reason if isinstance(a, Refusal) else None for a in answers]


# ── lookup ───────────────────────────────────────────────────────────────────────────────────────


def test_the_tail_is_found_and_named_as_tip():
    index = make()
    save(index, *range(6))
    match = find(index, *range(6))
    assert match.n_tokens == 6
    assert match.miss is None
    assert match.tip == chain(*range(6))[-1].key


# Tokens are single digits, a block has four. What is stored, one row chain each; what is looked up
# ("|" ends what may be matched, "whole" means a memory that cannot be cut); how the blocks of the
# match are used, as used/tokens; and why it ends where it ends.
LOOKUPS = """
stored                        looked up        blocks used     ends
01234567                      01234567         4/4 4/4         -
01234567                      0123456789       4/4 4/4         not_stored
01234567                      01234597         4/4 2/4         diverges
01234567                      012345           4/4 2/4         -
01234567                      0199             2/4             diverges
01234567                      99                               diverges
01234567                      012              3/4             -
01234567                      0123456|7        4/4 3/4         -
0123456789                    0123456789       4/4 4/4 2/2     -
0123456789                    012345678965     4/4 4/4 2/2     not_stored
012345678901                  012345678998     4/4 4/4 2/4     diverges
77770123 7777015 777709       777701234        4/4 4/4         not_stored
7777012 77770156 777709       77770157         4/4 3/4         diverges
7777012 77770156 777709       7777099          4/4 2/2         not_stored
7777012 77770156 777709       77773            4/4             diverges
01234567                      0123456 whole    4/4             not_cuttable
01234567                      01234567 whole   4/4 4/4         -
01234567                      012 whole                        not_cuttable
"""
LOOKUP_CASES = [
    [part.strip() for part in (line[:30], line[30:47], line[47:63], line[63:])]
    for line in LOOKUPS.strip().splitlines()[1:]
]


@pytest.mark.parametrize("case", LOOKUP_CASES, ids=[" ".join(case[:2]) for case in LOOKUP_CASES])
def test_a_miss_has_its_reason_and_place(case):
    stored, asked, used, reason = case
    index = make()
    for ids in stored.split():
        save(index, *map(int, ids))
    ids, _, how = asked.partition(" ")
    before, bar, after = ids.partition("|")
    match = find(
        index,
        *map(int, before + after),
        limit=len(before) if bar else None,
        cuttable=how != "whole",
    )
    assert " ".join(f"{block.n_used}/{block.n_tokens}" for block in match.blocks) == used
    assert match.n_tokens == sum(block.n_used for block in match.blocks)
    assert (match.miss.reason.value if match.miss else "-") == reason
    assert match.miss is None or match.miss.at == match.n_tokens
    assert index.snapshot().hits_exact == (match.miss is None)


def test_a_miss_in_an_empty_cache_or_a_foreign_namespace_has_that_reason():
    index = make()
    assert find(index, 1).miss.reason is MissReason.EMPTY_CACHE
    save(index, 1, 2)
    other = namespace_key([("model", "b")])
    match = find(index, 1, 2, root=other)
    assert match.miss.reason is MissReason.NO_SUCH_NAMESPACE
    assert (match.n_tokens, match.lease, match.blocks) == (0, 0, ())


def test_a_block_that_is_being_written_is_the_reason_of_the_miss():
    index = make()
    save(index, *range(4))
    index.reserve(0, "m", chain(*range(8)))
    assert find(index, *range(8)).miss.reason is MissReason.BEING_WRITTEN


def test_an_empty_prompt_matches_nothing_and_misses_nothing():
    index = make()
    save(index, 1, 2)
    match = find(index)
    assert (match.n_tokens, match.miss, match.lease) == (0, None, 0)


def test_resuming_from_a_key_gives_its_whole_chain():
    index = make()
    save(index, *range(10))
    rows = chain(*range(10))
    match = index.lookup_key(0, "reader", rows[-1].key)
    assert [block.key for block in match.blocks] == [row.key for row in rows]
    assert match.n_tokens == 10
    assert index.lookup_key(0, "reader", bytes(32)) is None


def test_the_fastest_tier_that_holds_a_row_is_named():
    index = make(disk=10**6)
    save(index, *range(4))
    key = chain(*range(4))[0].key
    index.add_location(0, key, "disk", None, SIZE)
    assert find(index, *range(4)).blocks[0].tier == "ram"
    index.drop_location(key, "ram")
    block = find(index, *range(4)).blocks[0]
    assert (block.tier, block.location) == ("disk", None)
    index.check_integrity()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def test_every_refusal_names_its_reason():
    index = make(ram_rows=2)
    first, second, third = chain(*range(12))
    assert reasons(index.reserve(0, "m", [second]).answers) == [RefusalReason.NO_PARENT]
    index.reserve(0, "m", [first])
    assert reasons(index.reserve(0, "x", [first]).answers) == [RefusalReason.WRITE_IN_PROGRESS]
    index.publish(0, "m", first.key)
    assert reasons(index.reserve(0, "x", [first]).answers) == [RefusalReason.ALREADY_PRESENT]
    assert reasons(index.reserve(0, "m", [second, third]).answers) == [
        None,
        RefusalReason.OVER_BUDGET,
    ]
    assert reasons(index.reserve(0, "m", [first], "tape").answers) == [RefusalReason.NO_SUCH_TIER]
    assert index.snapshot().refused["over_budget"] == 1
    assert index.snapshot().duplicate_dropped == 2


@pytest.mark.parametrize(
    "change",
    [
        {"key": bytes(32)},
        {"start": 1},
        {"start": 4},
        {"tokens": b"123"},
        {"tokens": b""},
        {"row_bytes": 0},
        {"parent": bytes(32)},
    ],
)
def test_a_request_whose_parts_do_not_fit_is_malformed(change):
    good, index = chain(0, 1)[0], make()
    is_of_id = not change.keys() & {"row_bytes"}
    wrong = {"id": replace(good.id, **change)} if is_of_id else change
    answers = index.reserve(0, "m", [replace(good, **wrong)]).answers
    assert reasons(answers) == [RefusalReason.MALFORMED]


def test_a_tail_can_have_no_children():
    index = make()
    save(index, 0, 1)
    tail = chain(0, 1)[0]
    tokens = pack([2, 3])
    child = RowRequest(RowIdentity.after(tail.key, ROOT, 4, tokens), SIZE)
    assert reasons(index.reserve(0, "m", [child]).answers) == [RefusalReason.NO_PARENT]


def test_a_row_is_invisible_until_it_is_published():
    index = make()
    index.reserve(0, "m", chain(*range(4)))
    assert find(index, *range(4)).n_tokens == 0
    assert not index.publish(0, "other", chain(*range(4))[0].key).accepted
    assert find(index, *range(4)).n_tokens == 0
    assert index.publish(0, "m", chain(*range(4))[0].key).accepted
    assert find(index, *range(4)).n_tokens == 4


def test_an_overdue_writer_loses_the_key_but_never_its_slab():
    index = make()
    (row,) = chain(*range(4))
    mine = index.reserve(0, "slow", [row]).answers[0]
    assert index.expire(59) == []
    assert index.expire(61) == [row.key]
    other = index.reserve(61, "quick", [row]).answers[0]
    assert other.offset != mine.offset
    assert index.publish(62, "quick", row.key).accepted
    late = index.publish(63, "slow", row.key)
    assert not late.accepted
    assert [gone.location for gone in late.evicted] == [mine.offset]
    index.check_integrity()


def test_an_overdue_writer_may_still_publish_when_no_other_has():
    index = make()
    (row,) = chain(*range(4))
    index.reserve(0, "slow", [row])
    index.expire(61)
    assert index.publish(62, "slow", row.key).accepted
    assert find(index, *range(4)).n_tokens == 4


def test_an_overdue_writer_cannot_overtake_the_one_that_took_its_key():
    index = make()
    (row,) = chain(*range(4))
    index.reserve(0, "slow", [row])
    index.expire(61)
    index.reserve(61, "quick", [row])
    assert not index.publish(62, "slow", row.key).accepted
    assert index.publish(62, "quick", row.key).accepted
    index.check_integrity()


def test_an_overdue_writer_may_not_reserve_the_same_row_again():
    index = make()
    (row,) = chain(*range(4))
    index.reserve(0, "slow", [row])
    index.expire(61)
    answers = index.reserve(61, "slow", [row]).answers
    assert reasons(answers) == [RefusalReason.WRITE_IN_PROGRESS]


def test_a_dead_holder_leaves_no_lease_and_no_reservation():
    index = make()
    save(index, *range(8))
    index.lookup(0, "m", ROOT, pack(range(8)))
    answers, _ = index.reserve(0, "m", chain(9, 9))
    freed = index.holder_exited("m")
    assert [gone.location for gone in freed] == [answers[0].offset]
    snapshot = index.snapshot()
    assert (snapshot.leases, snapshot.reservations) == (0, 0)
    assert snapshot.tiers["ram"].pinned_bytes == 0


# ── eviction ─────────────────────────────────────────────────────────────────────────────────────


def test_leaves_go_first_and_the_parent_of_a_new_row_stays():
    index = make(ram_rows=3)
    save(index, *range(12))
    evicted = save(index, 50, 51, 52, 53, now=1.0)
    assert [gone.key for gone in evicted] == [chain(*range(12))[-1].key]
    assert find(index, *range(12)).n_tokens == 8


def test_a_leased_row_is_never_evicted():
    index = make(ram_rows=2)
    save(index, *range(8))
    lease = index.lookup(0, "r", ROOT, pack(range(8))).lease
    assert reasons(index.reserve(1, "m", chain(9, 9)).answers) == [RefusalReason.OVER_BUDGET]
    assert index.snapshot().evictions == 0
    index.release(lease)
    assert reasons(index.reserve(2, "m", chain(9, 9)).answers) == [None]


def test_a_request_that_can_never_fit_evicts_nothing():
    index = make(ram_rows=4)
    save(index, *range(16))
    huge = chain(9, size=5 * PAGE)
    answers, evicted = index.reserve(0, "m", huge)
    assert reasons(answers) == [RefusalReason.OVER_BUDGET]
    assert evicted == []


def test_what_is_leased_counts_when_asking_whether_a_request_can_fit():
    index = make(ram_rows=4)
    save(index, 1, 1, 1, 1)
    save(index, 2, 2, 2, 2)
    lease = index.lookup(0, "r", ROOT, pack([1, 1, 1, 1])).lease
    answers, evicted = index.reserve(0, "m", chain(9, size=4 * PAGE))
    assert (reasons(answers), evicted) == ([RefusalReason.OVER_BUDGET], [])
    index.release(lease)
    answers, evicted = index.reserve(0, "m", chain(9, size=4 * PAGE))
    assert (reasons(answers), len(evicted)) == ([None], 2)


def test_the_row_that_was_used_lately_stays():
    index = make(ram_rows=2)
    save(index, 1, 1, 1, 1, now=0.0)
    save(index, 2, 2, 2, 2, now=1.0)
    find(index, 1, 1, 1, 1, now=2.0)
    evicted = save(index, 3, 3, 3, 3, now=3.0)
    assert [gone.key for gone in evicted] == [chain(2, 2, 2, 2)[0].key]


def test_in_a_tier_the_child_goes_first_even_if_its_parent_has_another_copy():
    index = make(ram_rows=2, disk=10**6)
    save(index, *range(8))
    for answer in index.persist(0, "writer", "disk", 9).answers:
        index.publish(0, "writer", answer.key, "disk")
    _, evicted = index.reserve(1, "m", chain(9))
    assert [gone.key for gone in evicted] == [chain(*range(8))[1].key]


def test_the_last_copy_of_a_row_stays_while_another_tier_holds_its_children():
    index = make(ram_rows=1, disk=10**6)
    child = chain(*range(8))[1]
    save(index, *range(4))
    index.adopt(0, "disk", child)
    assert reasons(index.reserve(0, "m", chain(9)).answers) == [RefusalReason.OVER_BUDGET]
    assert find(index, *range(8)).n_tokens == 8
    index.drop_location(child.key, "disk")
    assert reasons(index.reserve(0, "m", chain(9)).answers) == [None]
    index.check_integrity()


def test_a_released_row_can_be_evicted_again():
    index = make(ram_rows=2)
    save(index, 1, 1, 1, 1, now=0.0)
    save(index, 2, 2, 2, 2, now=1e6)
    match = index.lookup(0, "r", ROOT, pack([1, 1, 1, 1]))
    _, evicted = index.reserve(1e6, "m", chain(3))
    assert [gone.key for gone in evicted] == [chain(2, 2, 2, 2)[0].key]
    index.release(match.lease)
    assert reasons(index.reserve(1e6, "m", chain(4)).answers) == [None]


def test_making_much_room_takes_a_chain_from_its_end():
    index = make(ram_rows=3)
    save(index, *range(12))
    answers, evicted = index.reserve(1, "m", [*chain(20), *chain(21), *chain(22)])
    assert reasons(answers) == [None, None, None]
    assert [gone.key for gone in evicted] == [row.key for row in reversed(chain(*range(12)))]


def test_a_row_that_lost_its_parent_goes_before_a_cold_one():
    index = make(disk=3 * SIZE)
    parent, child = chain(*range(8))
    index.adopt(1e6, "disk", parent)
    index.adopt(1e6, "disk", child)
    index.adopt(1e6, "disk", chain(5)[0], None, 0.0)
    index.drop_location(parent.key, "disk")
    index.adopt(1e6, "disk", chain(6)[0])
    evicted = index.adopt(1e6, "disk", chain(7)[0])
    assert [gone.key for gone in evicted] == [child.key]


def test_a_hash_collision_is_never_a_hit(monkeypatch):
    def weak(parent: bytes, tokens: bytes) -> bytes:
        return bytes(31) + bytes([1 + sum(parent + tokens) % 2])

    for module in ("prefix", "table", "index", "integrity"):
        monkeypatch.setattr(f"cache.{module}.child_key", weak)
    index = make()
    tokens = pack([1, 2, 3, 4])
    index.adopt(
        0, "ram", RowRequest(RowIdentity(weak(ROOT, tokens), ROOT, ROOT, 0, tokens), SIZE), PAGE
    )
    for other in ([2, 1, 3, 4], [4, 3, 2, 1], [1, 2, 4, 3], [1, 2, 3, 6]):
        expected = next((n for n in range(4) if other[n] != n + 1), 4)
        assert find(index, *other).n_tokens == expected


def test_a_dropped_slab_is_freed_by_its_last_reader():
    index = make(ram_rows=1)
    save(index, *range(4))
    key = chain(*range(4))[0].key
    first = index.lookup(0, "r", ROOT, pack(range(4)))
    second = index.lookup(0, "r", ROOT, pack(range(4)))
    assert index.drop_location(key, "ram") == []
    assert find(index, *range(4)).n_tokens == 0
    assert reasons(index.reserve(0, "m", chain(9)).answers) == [RefusalReason.OVER_BUDGET]
    assert index.release(first.lease) == []
    assert [gone.location for gone in index.release(second.lease)] == [PAGE]
    assert reasons(index.reserve(0, "m", chain(9)).answers) == [None]
    index.check_integrity()


# ── scans ────────────────────────────────────────────────────────────────────────────────────────


def test_adopted_children_wait_for_their_parents():
    index = make(disk=10**6)
    rows = chain(*range(12))
    for row in reversed(rows[1:]):
        assert index.adopt(0, "disk", row) == []
    assert find(index, *range(12)).n_tokens == 0
    assert index.lookup_key(0, "r", rows[-1].key) is None
    index.adopt(0, "disk", rows[0])
    assert find(index, *range(12)).n_tokens == 12
    index.check_integrity()


def test_rows_nothing_can_reach_are_evicted_first():
    index = make(disk=3 * SIZE)
    orphan = chain(*range(8))[1]
    index.adopt(100, "disk", orphan)
    index.adopt(0, "disk", chain(1)[0])
    index.adopt(0, "disk", chain(2)[0])
    evicted = index.adopt(100, "disk", chain(3)[0])
    assert [gone.key for gone in evicted] == [orphan.key]


def test_a_directory_over_its_budget_keeps_the_rows_used_last():
    index = make(disk=2 * SIZE)
    for at, age in ((1, 30), (2, 10), (3, 20), (4, 40)):
        index.adopt(100, "disk", chain(at)[0], None, 100 - age)
    assert find(index, 2).n_tokens == find(index, 3).n_tokens == 1
    snapshot = index.snapshot()
    assert snapshot.rows == 2
    assert snapshot.tiers["disk"].used_bytes == 2 * SIZE


def test_a_row_with_a_wrong_position_is_never_used():
    index = make(disk=10**6)
    parent, child = chain(*range(8))
    liar = RowRequest(replace(child.id, start=8), SIZE)
    index.adopt(0, "disk", parent)
    index.adopt(0, "disk", liar)
    assert find(index, *range(8)).n_tokens == 4
    assert index.lookup_key(0, "r", child.key) is None


def test_a_slab_found_twice_is_adopted_once():
    index = make()
    (row,) = chain(*range(4))
    assert index.adopt(0, "ram", row, 5 * PAGE) == []
    assert index.adopt(0, "ram", row, 5 * PAGE) == []
    assert [gone.location for gone in index.adopt(0, "ram", row, 7 * PAGE)] == [7 * PAGE]
    index.check_integrity()


def test_a_late_scan_never_asks_to_wipe_a_slab_that_belongs_to_another_row():
    index = make()
    save(index, *range(4))  # takes the first page
    other = chain(9)[0]
    assert index.adopt(0, "ram", other, PAGE) == []
    assert find(index, 9).n_tokens == 0
    index.check_integrity()


def test_copies_of_one_row_may_differ_in_size():
    index = make(disk=10 * SIZE)
    save(index, 1)
    (larger,) = chain(1, size=SIZE + 500)
    index.adopt(0, "disk", larger)
    index.check_integrity()
    assert index.snapshot().tiers["disk"].used_bytes == SIZE + 500
    lease = find(index, 1) and index.lookup(0, "r", ROOT, pack([1])).lease
    index.check_integrity()
    index.release(lease)
    assert [gone.nbytes for gone in index.drop_location(larger.key, "disk")] == [SIZE + 500]
    index.adopt(0, "disk", chain(1)[0])
    assert index.snapshot().tiers["disk"].used_bytes == SIZE
    index.check_integrity()


def test_a_malformed_file_is_refused():
    index = make(disk=10**6)
    good = chain(1)[0]
    bad = RowRequest(replace(good.id, key=bytes(32)), SIZE)
    assert [gone.key for gone in index.adopt(0, "disk", bad)] == [bad.key]


# ── write-behind ─────────────────────────────────────────────────────────────────────────────────


def test_rows_are_persisted_parents_first_and_pinned_meanwhile():
    index = make(ram_rows=3, disk=10**6)
    save(index, *range(12))
    rows = chain(*range(12))
    answers, _ = index.persist(0, "writer", "disk", 2)
    assert [answer.key for answer in answers] == [rows[0].key, rows[1].key]
    assert [answer.source for answer in answers] == [PAGE, 2 * PAGE]
    assert index.snapshot().tiers["ram"].pinned_bytes == 2 * PAGE
    assert index.publish(0, "writer", rows[1].key, "disk").accepted
    assert index.publish(0, "writer", rows[0].key, "disk").accepted
    assert [ref.key for ref in index.unpersisted("disk", 9)] == [rows[2].key]
    assert index.snapshot().tiers["ram"].pinned_bytes == 0
    assert index.snapshot().persisted == 2
    assert index.snapshot().saves["cold"] == 3


def test_what_a_dead_writer_had_in_hand_is_offered_again():
    index = make(disk=10**6)
    save(index, *range(8))
    assert len(index.persist(0, "writer#1", "disk", 9).answers) == 2
    assert index.unpersisted("disk", 9) == []
    index.holder_exited("writer#1")
    assert [ref.key for ref in index.unpersisted("disk", 9)] == [r.key for r in chain(*range(8))]


def test_a_row_the_disk_refused_is_not_offered_endlessly():
    index = make(disk=10**6)
    save(index, *range(4))
    (answer,) = index.persist(0, "writer", "disk", 9).answers
    index.abandon("writer", answer.key, "disk")
    assert index.unpersisted("disk", 9) == []
    index.check_integrity()


def test_rows_that_wait_for_their_parents_do_not_hold_up_the_others():
    index = make(ram_rows=400, disk=10**7)
    for number in range(300):
        orphan = chain(number, number, number, number, 7)[1]
        index.adopt(0, "ram", orphan, (1 + number) * PAGE)
    save(index, *range(4))
    offered = [ref.key for _ in range(2) for ref in index.unpersisted("disk", 1)]
    assert chain(*range(4))[0].key in offered


def test_publish_returns_the_tiers_that_lack_the_row():
    index = make(ram_file=10**6, disk=10**6)
    (row,) = chain(1)
    index.adopt(0, "disk", row)
    index.reserve(0, "m", [row])
    assert index.publish(0, "m", row.key).to_persist == ("ram_file",)


def test_a_row_on_disk_may_be_promoted_to_ram():
    index = make(disk=10**6)
    (row,) = chain(1, 2)
    index.adopt(0, "disk", row)
    assert reasons(index.reserve(0, "m", [row]).answers) == [None]
    index.publish(0, "m", row.key)
    assert find(index, 1, 2).blocks[0].tier == "ram"
    index.check_integrity()


def test_integrity_notices_a_wrong_account():
    index = make()
    save(index, *range(4))
    index._table.tiers["ram"].pinned_bytes += 1
    with pytest.raises(InvariantBroken, match="pinned"):
        index.check_integrity()


def test_now_never_runs_backwards():
    index = make()
    save(index, 1, now=100.0)
    index.reserve(1.0, "m", chain(2))
    assert index.expire(159.0) == []
    assert index.expire(160.0) == [chain(2)[0].key]


def test_ten_thousand_children_of_one_node_are_searched_down_a_tree(monkeypatch):
    index = CacheIndex(64, {"disk": 1 << 40})
    for number in range(10_000):
        tokens = pack([number % 100, number, *range(62)])
        row = RowRequest(RowIdentity.after(ROOT, ROOT, 0, tokens), SIZE)
        index.adopt(0, "disk", row)
    nodes = index._table.nodes
    compared = []

    def counting(at: int) -> bytes:
        compared.append(at)
        return type(nodes).tokens(nodes, at)

    monkeypatch.setattr(nodes, "tokens", counting)
    match = find(index, 77, 4277, *range(30), 5)
    assert match.n_tokens == 32
    assert 5 < len(compared) < 60
