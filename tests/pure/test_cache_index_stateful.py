"""The index against a naive model that keeps token lists and searches them by brute force."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache.answers import Refusal, RefusalReason, Reservation, RowRequest
from cache.index import CacheIndex
from cache.keys import namespace_key
from cache.rows import RowIdentity, SaveReason
from cache.tokens import pack
from tests.support.examples import examples

pytestmark = pytest.mark.pure

BLOCK = 4
PAGE = 4096
ROOTS = [namespace_key([("model", name)]) for name in ("a", "b")]
HOLDERS = ["m1", "m2"]
TIERS = ["ram", "disk"]

prompts = st.lists(st.sampled_from([0, 0, 0, 1]), max_size=14).map(tuple)


def chain(root: bytes, ids: tuple[int, ...]) -> list[RowRequest]:
    """Requests for all blocks of a token list and its tail."""
    out, parent = [], root
    for at in range(0, len(ids), BLOCK):
        tokens = pack(ids[at : at + BLOCK])
        row = RowIdentity.after(parent, root, at, tokens)
        out.append(RowRequest(row, 5000, SaveReason.COLD))
        parent = row.key
    return out


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = CacheIndex(
            BLOCK, {"ram": 9 * PAGE, "disk": 30_000}, page_bytes=PAGE, reservation_ttl_s=50.0
        )
        self.now = 0.0
        self.full: dict[bytes, tuple[bytes, tuple[int, ...], int]] = {}  # key -> root, ids, start
        self.where: dict[bytes, set[str]] = {}
        self.writing: dict[tuple[str, str, bytes], int | None] = {}
        self.leases: dict[int, tuple[str, tuple[bytes, ...]]] = {}
        self.ram_at: dict[bytes, int | None] = {}
        self.tips: set[bytes] = set()  # keys of all tails the index has had in any call

    # ── the model ──

    def note(self, row: RowRequest, ids: tuple[int, ...]) -> None:
        self.full[row.key] = (row.id.root, ids[: row.id.end], row.id.start)
        self.remember(row.key)

    def leased(self) -> set[bytes]:
        return {key for _, keys in self.leases.values() for key in keys}

    def gone(self, evicted) -> None:
        for item in evicted:
            if item.tier == "ram" and self.ram_at.get(item.key) != item.location:
                continue  # the slab of an earlier copy, freed by its last reader
            if item.tier in self.where.get(item.key, ()):
                assert item.key not in self.leased(), "a leased row was evicted"
                held = [k for k, tiers in self.where.items() if item.tier in tiers]
                parents = {self.parent_of(k) for k in held if k != item.key}
                assert item.key not in parents, "a parent went before its children"
                self.where[item.key].discard(item.tier)
                if not self.where[item.key]:
                    del self.where[item.key]

    def parent_of(self, key: bytes) -> bytes:
        root, ids, start = self.full[key]
        return chain(root, ids)[-2].key if start else root

    def longer(self, key: bytes) -> list[bytes]:
        """Stored rows beside this one that begin with all of its tokens and are longer."""
        root, ids, start = self.full[key]
        return [
            other
            for other in self.where
            if self.full[other][0] == root
            and self.full[other][2] == start
            and len(self.full[other][1]) > len(ids)
            and self.full[other][1][: len(ids)] == ids
        ]

    def is_contained(self, key: bytes, tier: str) -> bool:
        return any(tier in self.where[other] for other in self.longer(key))

    def remember(self, key: bytes) -> None:
        _, ids, start = self.full[key]
        if len(ids) - start < BLOCK:
            self.tips.add(key)

    def remove_contained(self) -> None:
        """A tail goes from every tier that holds a longer row with its tokens, if not leased."""
        for key in sorted(self.where, key=lambda key: len(self.full[key][1])):
            facts = self.index.facts(key)
            if facts is not None and facts.leases:
                continue
            for tier in sorted(self.where[key]):
                if self.is_contained(key, tier):
                    self.where[key].discard(tier)
        self.where = {key: tiers for key, tiers in self.where.items() if tiers}

    def is_reachable(self, key: bytes) -> bool:
        root, ids, _ = self.full[key]
        return all(row.key in self.where for row in chain(root, ids))

    def longest(self, root: bytes, ids: tuple[int, ...]) -> int:
        best = 0
        for key in self.where:
            stored_root, stored, _ = self.full[key]
            if stored_root == root and self.is_reachable(key):
                shared = 0
                while shared < min(len(ids), len(stored)) and ids[shared] == stored[shared]:
                    shared += 1
                best = max(best, shared)
        return best

    def longest_whole(self, root: bytes, ids: tuple[int, ...]) -> int:
        return max(
            (
                len(self.full[key][1])
                for key in self.where
                if self.full[key][0] == root
                and self.is_reachable(key)
                and self.full[key][1] == ids[: len(self.full[key][1])]
            ),
            default=0,
        )

    # ── rules ──

    @rule(
        root=st.sampled_from(ROOTS),
        ids=prompts,
        holder=st.sampled_from(HOLDERS),
        tier=st.sampled_from(TIERS),
        skip=st.integers(0, 1),
    )
    def reserve(self, root, ids, holder, tier, skip) -> None:
        self.reserve_rows(root, ids, holder, tier, skip)

    def reserve_rows(self, root, ids, holder, tier, skip) -> None:
        requests = chain(root, ids)[skip:]
        answers, evicted = self.index.reserve(self.now, holder, requests, tier)
        for request in requests:
            self.note(request, ids)
        self.gone(evicted)
        for answer in answers:
            if isinstance(answer, Reservation):
                assert not self.is_contained(answer.key, tier)
                self.writing[holder, tier, answer.key] = answer.offset
            elif answer.reason is RefusalReason.ALREADY_PRESENT:
                is_there = tier in self.where.get(answer.key, ())
                assert is_there or self.is_contained(answer.key, tier)
            else:
                assert answer.reason is not RefusalReason.MALFORMED
                assert isinstance(answer, Refusal)

    @rule(
        root=st.sampled_from(ROOTS),
        ids=prompts,
        holder=st.sampled_from(HOLDERS),
        tier=st.sampled_from(TIERS),
    )
    def save(self, root, ids, holder, tier) -> None:
        """Reserve and publish at once, so that a few steps reach a full cache."""
        self.reserve_rows(root, ids, holder, tier, 0)
        for request in chain(root, ids):
            offset = self.writing.pop((holder, tier, request.key), -1)
            if offset != -1 and self.index.publish(self.now, holder, request.key, tier).accepted:
                self.where.setdefault(request.key, set()).add(tier)
                if tier == "ram":
                    self.ram_at[request.key] = offset

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), repeat=st.booleans())
    def publish(self, data, repeat) -> None:
        holder, tier, key = data.draw(st.sampled_from(sorted(self.writing)))
        offset = self.writing.pop((holder, tier, key))
        present = tier in self.where.get(key, ())
        others = any(t == tier and k == key for _, t, k in self.writing)
        done = self.index.publish(self.now, holder, key, tier)
        if done.accepted:
            assert not present
            self.where.setdefault(key, set()).add(tier)
            if tier == "ram":
                self.ram_at[key] = offset
        else:
            assert present or others
        if repeat:
            assert not self.index.publish(self.now, holder, key, tier).accepted

    @precondition(lambda self: self.writing)
    @rule(data=st.data())
    def abandon(self, data) -> None:
        holder, tier, key = data.draw(st.sampled_from(sorted(self.writing)))
        del self.writing[holder, tier, key]
        self.index.abandon(holder, key, tier)
        assert self.index.abandon(holder, key, tier) == []

    @rule(seconds=st.floats(0, 40))
    def pass_time(self, seconds) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        for key in self.index.expire(self.now):
            assert any(k == key for _, _, k in self.writing)

    @rule(
        root=st.sampled_from(ROOTS),
        ids=prompts,
        holder=st.sampled_from(HOLDERS),
        limit=st.none() | st.integers(0, 14),
        cuttable=st.booleans(),
    )
    def lookup(self, root, ids, holder, limit, cuttable) -> None:
        match = self.index.lookup(self.now, holder, root, pack(ids), limit, cuttable=cuttable)
        wanted = ids if limit is None else ids[:limit]
        best = self.longest(root, wanted) if cuttable else self.longest_whole(root, wanted)
        assert match.n_tokens == best
        assert (match.miss is None) == (best == len(wanted))
        at = 0
        for block in match.blocks:
            assert block.start == at
            assert block.tier in self.where[block.key]
            assert block.tier == "ram" or "ram" not in self.where[block.key]
            stored = self.full[block.key][1]
            assert stored[: at + block.n_used] == wanted[: at + block.n_used]
            at += block.n_used
        assert at == best
        assert bool(match.lease) == bool(match.blocks)
        if match.lease:
            self.leases[match.lease] = (holder, tuple(b.key for b in match.blocks))

    @precondition(lambda self: self.full)
    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def lookup_key(self, data, holder) -> None:
        key = data.draw(st.sampled_from(sorted(self.full)))
        match = self.index.lookup_key(self.now, holder, key)
        if key in self.where and self.is_reachable(key):
            assert match is not None
            assert match.n_tokens == len(self.full[key][1])
            self.leases[match.lease] = (holder, tuple(b.key for b in match.blocks))
        elif match is not None:  # a tail that a longer row contains
            assert key in self.tips
            assert match.n_tokens == len(self.full[key][1])
            assert match.blocks[-1].key in self.longer(key)
            self.leases[match.lease] = (holder, tuple(b.key for b in match.blocks))
        else:
            found = key in self.tips and any(map(self.is_reachable, self.longer(key)))
            assert not found, "a tail that a longer row contains was not found by its key"

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data) -> None:
        lease = data.draw(st.sampled_from(sorted(self.leases)))
        del self.leases[lease]
        self.index.release(lease)
        assert self.index.release(lease) == []

    @rule(holder=st.sampled_from(HOLDERS))
    def holder_dies(self, holder) -> None:
        self.index.holder_exited(holder)
        self.leases = {k: v for k, v in self.leases.items() if v[0] != holder}
        self.writing = {k: v for k, v in self.writing.items() if k[0] != holder}

    @precondition(lambda self: self.where)
    @rule(data=st.data())
    def a_copy_turns_out_corrupt(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.where)))
        tier = data.draw(st.sampled_from(sorted(self.where[key])))
        self.index.drop_location(key, tier)
        self.where[key].discard(tier)
        if not self.where[key]:
            del self.where[key]
            # Its readers keep what they lease; a row stored again under this key is another one.
            self.leases = {
                lease: (holder, tuple(k for k in keys if k != key))
                for lease, (holder, keys) in self.leases.items()
            }
        assert self.index.drop_location(key, tier) == []

    @rule(root=st.sampled_from(ROOTS), ids=prompts.filter(bool), age=st.floats(0, 9000))
    def adopt_a_file(self, root, ids, age) -> None:
        row = chain(root, ids)[-1]  # its parents may be absent
        self.note(row, ids)
        evicted = self.index.adopt(self.now, "disk", row, None, self.now - age)
        self.gone([item for item in evicted if item.key != row.key])
        busy = any(t == "disk" and k == row.key for _, t, k in self.writing)
        if not any(item.key == row.key for item in evicted) and not busy:
            self.where.setdefault(row.key, set()).add("disk")

    @rule(limit=st.integers(0, 5), holder=st.sampled_from(HOLDERS))
    def persist(self, limit, holder) -> None:
        answers, evicted = self.index.persist(self.now, holder, "disk", limit)
        self.gone(evicted)
        for answer in answers:
            if isinstance(answer, Reservation):
                assert "ram" in self.where[answer.key]
                assert answer.source is not None
                self.writing[holder, "disk", answer.key] = None

    @rule(
        budget=st.sampled_from([3_000, 6_000, 11_000, 21_000, 30_000]),
        order=st.randoms(use_true_random=False),
    )
    def a_restart_with_another_budget(self, budget, order) -> None:
        """Only files survive; a scan finds them in any order, and the budget holds all the time."""
        found = sorted(key for key, tiers in self.where.items() if "disk" in tiers)
        order.shuffle(found)
        self.index = CacheIndex(
            BLOCK, {"ram": 9 * PAGE, "disk": budget}, page_bytes=PAGE, reservation_ttl_s=50.0
        )
        self.where, self.leases, self.writing, self.ram_at = {}, {}, {}, {}
        self.tips = set()
        for key in found:
            root, ids, _ = self.full[key]
            row = chain(root, ids)[-1]
            self.note(row, ids)
            evicted = self.index.adopt(self.now, "disk", row, None, self.now - len(ids))
            self.gone([item for item in evicted if item.key != key])
            if not any(item.key == key for item in evicted):
                self.where[key] = {"disk"}
            self.remove_contained()
            self.index.check_integrity()
            assert self.index.snapshot().tiers["disk"].used_bytes <= budget

    # ── laws ──

    @invariant()
    def accounts_agree(self) -> None:
        self.index.check_integrity()

    @invariant()
    def the_same_rows_are_known(self) -> None:
        self.remove_contained()
        snapshot = self.index.snapshot()
        assert snapshot.rows == len(self.where)
        assert snapshot.leases == len(self.leases)
        assert snapshot.reservations == len(self.writing)
        for tier in TIERS:
            assert snapshot.tiers[tier].rows == sum(tier in held for held in self.where.values())
            assert snapshot.tiers[tier].used_bytes <= snapshot.tiers[tier].budget_bytes

    def teardown(self) -> None:
        for holder in HOLDERS:
            self.index.holder_exited(holder)
        self.index.check_integrity()
        assert all(tier.pinned_bytes == 0 for tier in self.index.snapshot().tiers.values())


TestIndexAgainstNaiveModel = IndexMachine.TestCase
TestIndexAgainstNaiveModel.settings = examples(
    150, HealthCheck.filter_too_much, stateful_step_count=40
)
