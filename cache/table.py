"""The rows and the bytes they take: what the index knows, without the questions it answers.

The table keeps four things in step: the rows by key, the tree (children of a key, sorted by their
token bytes), the accounts of the tiers, and the pins of readers. Every change goes through ``hold``
and ``drop``, so that none of them can be forgotten.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Final

from cache import eviction
from cache.allocation import ArenaMap
from cache.answers import RAM, Evicted, RowRequest
from cache.keys import child_key
from cache.tiers import Row, Tier
from cache.tokens import TOKEN_BYTES

by_tokens: Final = attrgetter("tokens")


class RowTable:
    """Rows, tree, tiers and pins. Private to the index; changed by one process only."""

    def __init__(self, block_tokens: int, budgets: Mapping[str, int], page_bytes: int) -> None:
        self.block_tokens = block_tokens
        self.tiers: dict[str, Tier] = {}
        for name, budget in budgets.items():
            arena = ArenaMap(budget, page_bytes) if name == RAM else None
            self.tiers[name] = Tier(name, budget, arena)
        self.rows: dict[bytes, Row] = {}  # every row that at least one tier holds
        self.children: dict[bytes, list[Row]] = {}  # parent key -> rows sorted by token bytes
        self.roots: dict[bytes, int] = {}  # root key -> number of rows
        self.now = 0.0
        self.evictions = 0

    def is_well_formed(self, request: RowRequest) -> bool:
        """Sizes, position, parent and key of a request fit together."""
        n_tokens, odd = divmod(len(request.tokens), TOKEN_BYTES)
        return (
            not odd
            and 1 <= n_tokens <= self.block_tokens
            and request.start >= 0
            and request.start % self.block_tokens == 0
            and (request.parent == request.root) == (request.start == 0)
            and request.row_bytes > 0
            and child_key(request.parent, request.tokens) == request.key
        )

    def advance(self, now: float) -> None:
        self.now = max(self.now, now)

    def wanted_by(self, key: bytes) -> tuple[str, ...]:
        """Queue a ram row for every file tier that lacks it; their names."""
        lacking = [tier for tier in self.file_tiers() if key not in tier.held]
        for tier in lacking:
            tier.unpersisted[key] = None
        return tuple(tier.name for tier in lacking)

    def file_tiers(self) -> Iterable[Tier]:
        return (tier for tier in self.tiers.values() if tier.arena is None)

    def hold(self, request: RowRequest, tier: Tier, location: int | None, nbytes: int) -> Row:
        """Record that a tier holds a row; its bytes and its place among the kids are claimed."""
        row = self.rows.get(request.key)
        if row is None:
            row = self.rows[request.key] = Row(request, self.now)
            self.roots[row.root] = self.roots.get(row.root, 0) + 1
            siblings = self.children.setdefault(row.parent, [])
            at = bisect_left(siblings, row.tokens, key=by_tokens)
            siblings.insert(at, row)
            # The nearest neighbours only: enough for a tail that grows, cheap for 10,000 siblings.
            if at and row.tokens.startswith(siblings[at - 1].tokens):
                self._supersede(siblings[at - 1])
            if at + 1 < len(siblings) and siblings[at + 1].tokens.startswith(row.tokens):
                self._supersede(row)
        row.copies += 1
        tier.held[row.key] = (location, nbytes)
        if row.leases:
            tier.pinned_bytes += nbytes
        return row

    def _supersede(self, row: Row) -> None:
        row.superseded = True  # not worth a file any more either
        for tier in self.file_tiers():
            tier.unpersisted.pop(row.key, None)
        self.offer(row, again=True)

    def drop(self, row: Row, tier: Tier) -> list[Evicted]:
        """Forget one copy. Readers keep a slab until they release it; a file survives unlinking."""
        location, nbytes = tier.held.pop(row.key)
        row.copies -= 1
        if tier.arena is not None:
            for other in self.file_tiers():
                other.unpersisted.pop(row.key, None)
        if row.copies == 0:
            self._forget(row)
        self.drop_kid(tier, row.parent)
        if row.leases and tier.arena is not None:
            row.doomed = [*(row.doomed or ()), (tier, location, nbytes)]
            return []
        tier.unclaim(location, nbytes)
        if row.leases:
            tier.pinned_bytes -= nbytes
        return [Evicted(row.key, tier.name, location, nbytes)]

    def _forget(self, row: Row) -> None:
        del self.rows[row.key]
        siblings = self.children[row.parent]
        del siblings[bisect_left(siblings, row.tokens, key=by_tokens)]
        if not siblings:
            del self.children[row.parent]
        left = self.roots[row.root] - 1
        if left:
            self.roots[row.root] = left
        else:
            del self.roots[row.root]
        for child in self.children.get(row.key, ()):
            self.offer(child, again=True)  # unreachable now, so worth nothing

    def pin(self, row: Row) -> None:
        """Hold a row down for a reader; its bytes cannot be won back meanwhile."""
        row.leases += 1
        if row.leases == 1:
            for tier in self.tiers.values():
                copy = tier.held.get(row.key)
                if copy is not None:
                    tier.pinned_bytes += copy[1]

    def unpin(self, row: Row) -> list[Evicted]:
        """End one hold; the last one frees slabs of copies dropped meanwhile."""
        row.leases -= 1
        if row.leases:
            return []
        freed = []
        for tier, location, nbytes in row.doomed or ():
            tier.unclaim(location, nbytes)
            tier.pinned_bytes -= nbytes
            freed.append(Evicted(row.key, tier.name, location, nbytes))
        row.doomed = None
        if row.copies:
            for tier in self.tiers.values():
                copy = tier.held.get(row.key)
                if copy is not None:
                    tier.pinned_bytes -= copy[1]
            self.offer(row)
        return freed

    def drop_kid(self, tier: Tier, parent: bytes) -> None:
        """One row less under ``parent`` in this tier; the parent may be evictable now."""
        tier.remove_kid(parent)
        row = self.rows.get(parent)
        if row is not None:
            self.offer(row)

    def make_room(
        self,
        tier: Tier,
        nbytes: int,
        found: tuple[Row, int | None] | None,
        evicted: list[Evicted],
    ) -> tuple[bool, int | None]:
        """Claim bytes, evicting the least valuable; a found row displaces only cheaper ones."""
        if not tier.could_fit(nbytes):
            return False, None
        while True:
            if found is None:
                done, location = tier.claim(nbytes)
            else:
                location = found[1]
                done = tier.claim_at(location, nbytes)
            if done or (found is not None and tier.arena is not None):
                return done, location
            victim = self._cheapest(tier)
            if victim is None:
                return False, None
            if found is not None and self._rank(victim) > self._rank(found[0]):
                self.offer(victim)
                return False, None
            evicted += self.drop(victim, tier)
            self.evictions += 1

    def _cheapest(self, tier: Tier) -> Row | None:
        while (queued := tier.pop_cheapest()) is not None:
            rank, key = queued
            row = self.rows.get(key)
            if row is None or not self._is_evictable(row, tier):
                continue  # it is offered again when that changes
            current = self._rank(row)
            if current <= rank:
                return row
            tier.offer(key, current)
        return None

    def _rank(self, row: Row) -> float:
        is_reachable = row.parent == row.root or row.parent in self.rows
        return row.heat + row.weight if is_reachable and not row.superseded else eviction.WORTHLESS

    def _is_evictable(self, row: Row, tier: Tier) -> bool:
        key = row.key
        if row.leases or key not in tier.held or key in tier.kids:
            return False
        return row.copies > 1 or not any(key in other.kids for other in self.tiers.values())

    def offer(self, row: Row, *, again: bool = False) -> None:
        """Queue a row for eviction wherever it may be evicted now."""
        for tier in self.tiers.values():
            if self._is_evictable(row, tier):
                tier.offer(row.key, self._rank(row), again=again)
