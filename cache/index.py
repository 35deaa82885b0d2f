"""The cache index: which rows exist, where, who reads them, who writes them. A pure state machine.

It owns every decision about stored rows and the arena's allocation map, and touches neither memory
nor files nor clocks: callers pass ``now`` in seconds (one clock for all calls; it never runs
backwards here) and act on what is returned. One process holds it, so there is one writer.

The rows form a radix tree: a node is a key, its children are the rows naming it as parent. Only
full blocks have children. A lookup descends full blocks by chain key, comparing the tokens too, and
then takes among all children of the deepest node the one with the longest common token prefix. The
children of a node are sorted by their token bytes; in a sorted list the longest common prefix with
any query is at one of the two neighbours of its insertion point, so 10,000 children cost one
bisection.

Rules kept at all times, checked by ``check_integrity``:
a tier's bytes never exceed its budget; a leased row is never evicted; within a tier a row goes only
after its children; every claim on bytes has exactly one owner (row, reservation or doomed slab).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from cache import eviction, integrity
from cache.allocation import PAGE_BYTES, ArenaMap
from cache.answers import (
    RAM,
    Answer,
    BlockRef,
    Evicted,
    Match,
    Miss,
    MissReason,
    Published,
    Refusal,
    RefusalReason,
    Reservation,
    Reserved,
    RowRequest,
    Snapshot,
)
from cache.counters import Counters
from cache.keys import BLOCK_TOKENS, child_key
from cache.tiers import Row, Tier, Write
from cache.tokens import TOKEN_BYTES, common_prefix, count, cut

RESERVATION_TTL_S: Final = 60.0  # far above any block copy; only a stuck writer lets it pass
_by_tokens = attrgetter("tokens")


class CacheIndex:
    """See the module text. Tiers are given fastest first; "ram" is the arena."""

    def __init__(
        self,
        block_tokens: int = BLOCK_TOKENS,
        budgets: Mapping[str, int] | None = None,
        *,
        page_bytes: int = PAGE_BYTES,
        reservation_ttl_s: float = RESERVATION_TTL_S,
    ) -> None:
        self.block_tokens = block_tokens
        self.reservation_ttl_s = reservation_ttl_s
        self._tiers: dict[str, Tier] = {}
        for name, budget in (budgets or {}).items():
            arena = ArenaMap(budget, page_bytes) if name == RAM else None
            self._tiers[name] = Tier(name, budget, arena)
        self._rows: dict[bytes, Row] = {}  # every row that at least one tier holds
        self._children: dict[bytes, list[Row]] = {}  # parent key -> rows sorted by token bytes
        self._roots: dict[bytes, int] = {}  # root key -> number of rows
        self._writes: dict[tuple[str, bytes], Write] = {}
        self._stale: dict[tuple[str, str, bytes], Write] = {}  # expired, holder not known dead
        self._leases: dict[int, tuple[str, tuple[Row, ...]]] = {}
        self._last_lease = 0
        self._now = 0.0
        self._counters = Counters()

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def reserve(
        self, now: float, holder: str, requests: Sequence[RowRequest], tier: str = RAM
    ) -> Reserved:
        """Claim room for rows, evicting to make it; answers come in the order of the requests.

        The bytes of a reservation belong to ``holder`` until it publishes, abandons or dies.
        """
        self._advance(now)
        answers: list[Answer] = []
        evicted: list[Evicted] = []
        place = self._tiers.get(tier)
        for request in requests:
            answer = self._reserve_one(holder, request, place, evicted)
            if isinstance(answer, Refusal):
                self._counters.refuse(answer.reason)
            answers.append(answer)
        return Reserved(answers, evicted)

    def _reserve_one(
        self, holder: str, request: RowRequest, tier: Tier | None, evicted: list[Evicted]
    ) -> Answer:
        key = request.key
        if tier is None:
            return Refusal(key, RefusalReason.NO_SUCH_TIER)
        if key in tier.held:
            return Refusal(key, RefusalReason.ALREADY_PRESENT)
        if (tier.name, key) in self._writes or (holder, tier.name, key) in self._stale:
            return Refusal(key, RefusalReason.WRITE_IN_PROGRESS)
        if not self._is_well_formed(request):
            return Refusal(key, RefusalReason.MALFORMED)
        if not self._has_parent(request, tier):
            return Refusal(key, RefusalReason.NO_PARENT)
        row = self._rows.get(key)
        ram = self._tiers.get(RAM)
        source = ram.held.get(key) if ram and tier is not ram else None
        # Both ends of the copy are held down first: making room must not evict them.
        tier.add_kid(request.parent)
        if row is not None:
            self._pin(row)
        nbytes = tier.size_of(request.row_bytes)
        done, location = self._make_room(tier, nbytes, None, evicted)
        if not done:
            if row is not None:
                evicted += self._unpin(row)
            self._drop_kid(tier, request.parent)
            return Refusal(key, RefusalReason.OVER_BUDGET)
        tier.pinned_bytes += nbytes
        deadline = self._now + self.reservation_ttl_s
        self._writes[tier.name, key] = Write(holder, request, tier, location, nbytes, deadline, row)
        return Reservation(
            key, location, request.row_bytes, tier.name, source[0] if source else None
        )

    def publish(self, now: float, holder: str, key: bytes, tier: str = RAM) -> Published:
        """Make a reserved row visible. Late, repeated or foreign calls change nothing.

        A reservation that expired is still honoured if nobody else took the key meanwhile;
        otherwise its bytes are given back (``evicted``) and ``accepted`` is False.
        """
        self._advance(now)
        write = self._writes.get((tier, key))
        if write is not None and write.holder == holder:
            del self._writes[tier, key]
        else:
            write = self._stale.get((holder, tier, key))
            if write is None:
                return Published(accepted=False)
            del self._stale[holder, tier, key]
            if (tier, key) in self._writes or key in write.tier.held:
                self._counters.duplicate_dropped += 1
                return Published(accepted=False, evicted=tuple(self._cancel(write)))
        write.tier.pinned_bytes -= write.nbytes
        row = self._hold(write.request, write.tier, write.location, write.nbytes)
        freed = self._unpin(write.source) if write.source is not None else []
        self._offer(row)
        self._counters.save(write.request.reason)
        lacking: tuple[str, ...] = ()
        if write.tier.arena is not None:
            lacking = tuple(t.name for t in self._file_tiers() if key not in t.held)
            for name in lacking:
                self._tiers[name].unpersisted[key] = None
        return Published(accepted=True, to_persist=lacking, evicted=tuple(freed))

    def abandon(self, holder: str, key: bytes, tier: str = RAM) -> list[Evicted]:
        """Give a reservation back unwritten; the slab returned must be invalidated."""
        write = self._writes.get((tier, key))
        if write is not None and write.holder == holder:
            return self._cancel(self._writes.pop((tier, key)))
        late = self._stale.pop((holder, tier, key), None)
        return [] if late is None else self._cancel(late)

    def expire(self, now: float) -> list[bytes]:
        """Let others reserve the keys of overdue writers; returns those keys.

        Their bytes stay claimed until the holder publishes, abandons or dies: it may be slow
        rather than dead, and must not find itself writing into somebody else's slab.
        """
        self._advance(now)
        overdue = [at for at, write in self._writes.items() if write.deadline <= self._now]
        for at in overdue:
            write = self._writes.pop(at)
            self._stale[write.holder, *at] = write
        return [key for _, key in overdue]

    def holder_died(self, holder: str) -> list[Evicted]:
        """Drop all leases and reservations of a dead process; invalidate what is returned."""
        freed: list[Evicted] = []
        for lease in [at for at, (owner, _) in self._leases.items() if owner == holder]:
            freed += self.release(lease)
        for at in [at for at, write in self._writes.items() if write.holder == holder]:
            freed += self._cancel(self._writes.pop(at), retry=True)
        for late in [at for at in self._stale if at[0] == holder]:
            freed += self._cancel(self._stale.pop(late), retry=True)
        return freed

    def persist(self, now: float, holder: str, tier: str, limit: int) -> Reserved:
        """Reserve, for the writer, up to ``limit`` ram rows this file tier lacks; parents first."""
        requests = [self._rows[ref.key].request() for ref in self.unpersisted(tier, limit)]
        reserved = self.reserve(now, holder, requests, tier)
        for answer in reserved.answers:
            self._tiers[tier].unpersisted.pop(answer.key, None)
        return reserved

    def unpersisted(self, tier: str, limit: int) -> list[BlockRef]:
        """Ram rows that ``tier`` lacks and whose parents it holds or gets first."""
        place, ram = self._tiers[tier], self._tiers[RAM]
        chosen: dict[bytes, BlockRef] = {}
        for key in place.unpersisted:
            if len(chosen) >= limit:
                break
            row = self._rows[key]
            is_next = row.parent in chosen or self._has_parent(row, place)
            if is_next and not row.superseded and (tier, key) not in self._writes:
                chosen[key] = row.ref(RAM, ram.held[key][0], row.n_tokens)
        return list(chosen.values())

    # ── rows that exist already ──────────────────────────────────────────────────────────────

    def adopt(
        self,
        now: float,
        tier: str,
        row: RowRequest,
        location: int | None = None,
        last_used: float | None = None,
    ) -> list[Evicted]:
        """Take in a row found by a scan; parents may come after children.

        Returns what must go instead, which is the row itself if it is malformed, a duplicate, or
        worth less than everything the budget would have to give up for it.
        """
        self._advance(now)
        place = self._tiers.get(tier)
        nbytes = row.row_bytes if place is None else place.size_of(row.row_bytes)
        itself = Evicted(row.key, tier, location, nbytes)
        if place is None or not self._is_well_formed(row):
            return [itself]
        known = place.held.get(row.key)
        writing = self._writes.get((tier, row.key))
        if known is not None or writing is not None:
            here = known[0] if known is not None else writing.location if writing else None
            return [] if here == location else [itself]
        candidate = self._rows.get(row.key) or Row(row, self._now)
        if last_used is not None and candidate.copies == 0:
            candidate.heat = eviction.first_heat(min(last_used, self._now))
        evicted: list[Evicted] = []
        done, _ = self._make_room(place, nbytes, (candidate, location), evicted)
        if not done:
            return [*evicted, itself]
        heat = candidate.heat
        place.add_kid(row.parent)
        stored = self._hold(row, place, location, nbytes)
        stored.heat = heat
        self._offer(stored)
        for child in self._children.get(row.key, ()):
            self._offer(child)  # reachable now, so worth something
        if place.arena is not None:
            for other in self._file_tiers():
                if row.key not in other.held:
                    other.unpersisted[row.key] = None
        self._counters.adopted += 1
        return evicted

    def add_location(
        self, now: float, key: bytes, tier: str, location: int | None, nbytes: int
    ) -> list[Evicted]:
        """A known row was found in another tier; like ``adopt``."""
        row = self._rows.get(key)
        if row is None:
            return [Evicted(key, tier, location, nbytes)]
        return self.adopt(now, tier, row.request(), location)

    def drop_location(self, key: bytes, tier: str) -> list[Evicted]:
        """Forget a copy that turned out to be corrupt or gone; unknown ones are ignored.

        A slab somebody still reads is freed by the last ``release``, not before.
        """
        place, row = self._tiers.get(tier), self._rows.get(key)
        if place is None or row is None or key not in place.held:
            return []
        return self._drop(row, place)

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def lookup(
        self,
        now: float,
        holder: str,
        root: bytes,
        tokens: bytes,
        limit: int | None = None,
        *,
        cuttable: bool = True,
    ) -> Match:
        """The longest stored prefix of ``tokens``, at most ``limit`` tokens, leased to ``holder``.

        With ``cuttable`` False only whole rows count (memories that cannot drop their end).
        """
        self._advance(now)
        want = count(tokens) if limit is None else max(0, min(limit, count(tokens)))
        if want < count(tokens):
            tokens = cut(tokens, 0, want)
        path, tip = self._descend(root, tokens)
        at = len(path) * self.block_tokens
        rest = cut(tokens, at, at + self.block_tokens)
        child, n_used = self._best_child(tip, at, rest, cuttable=cuttable)
        if child is not None and n_used:
            path.append(child)
            at += n_used
        miss = None if at == want else self._explain(root, tip, rest, child, at, cuttable)
        self._counters.looked_up(at, want)
        return self._lease(holder, root, path, at, miss)

    def lookup_key(self, now: float, holder: str, key: bytes) -> Match | None:
        """The whole chain ending in ``key``, leased; None unless every row of it is stored."""
        self._advance(now)
        path: list[Row] = []
        row = self._rows.get(key)
        root = row.root if row is not None else b""
        while row is not None:
            path.append(row)
            if row.parent == root:
                break
            before = self._rows.get(row.parent)
            row = before if before and before.start + before.n_tokens == row.start else None
        if row is None:
            self._counters.looked_up(0, 1)
            return None
        path.reverse()
        at = path[-1].start + path[-1].n_tokens
        self._counters.looked_up(at, at)
        return self._lease(holder, root, path, at, None)

    def release(self, lease: int) -> list[Evicted]:
        """Unpin a lease's rows; repeated or unknown leases are ignored.

        Returns slabs of rows dropped meanwhile, which must be invalidated now.
        """
        _, rows = self._leases.pop(lease, ("", ()))
        freed: list[Evicted] = []
        for row in rows:
            freed += self._unpin(row)
        return freed

    def snapshot(self) -> Snapshot:
        """Counters and sizes, frozen."""
        return self._counters.snapshot(
            rows=len(self._rows),
            leases=len(self._leases),
            reservations=len(self._writes) + len(self._stale),
            tiers={name: tier.use() for name, tier in self._tiers.items()},
        )

    def check_integrity(self) -> None:
        """Recount everything; InvariantBroken if an account is wrong. For tests: O(rows)."""
        integrity.check(
            self._tiers, self._rows, self._children, self._roots, self._all_writes(), self._leases
        )

    # ── inside: reading ──────────────────────────────────────────────────────────────────────

    def _descend(self, root: bytes, tokens: bytes) -> tuple[list[Row], bytes]:
        rows, step = self._rows, self.block_tokens * TOKEN_BYTES
        path: list[Row] = []
        tip, end = root, len(tokens) - step
        for at in range(0, end + 1, step):
            block = tokens[at : at + step]
            key = child_key(tip, block)
            row = rows.get(key)
            if row is None or row.tokens != block or row.start * TOKEN_BYTES != at:
                break
            path.append(row)
            tip = key
        return path, tip

    def _best_child(
        self, parent: bytes, start: int, rest: bytes, *, cuttable: bool
    ) -> tuple[Row | None, int]:
        siblings = self._children.get(parent)
        if not siblings or not rest:
            return None, 0
        at = bisect_left(siblings, rest, key=_by_tokens)
        best, longest = None, 0
        for row in siblings[max(0, at - 1) : at + 1]:
            shared = common_prefix(row.tokens, rest)
            if shared > longest and row.start == start:
                best, longest = row, shared
        if best is None or cuttable or longest == best.n_tokens:
            return best, longest
        for stop in range(longest, 0, -1):  # whole rows only: probe each shorter length by key
            whole = self._rows.get(child_key(parent, cut(rest, 0, stop)))
            if whole is not None and whole.start == start:
                return whole, stop
        return best, 0

    def _explain(
        self, root: bytes, tip: bytes, rest: bytes, child: Row | None, at: int, cuttable: bool
    ) -> Miss:
        if not self._rows:
            return Miss(MissReason.EMPTY_CACHE, at)
        if root not in self._roots:
            return Miss(MissReason.NO_SUCH_NAMESPACE, at)
        key = child_key(tip, rest)
        if any((tier, key) in self._writes for tier in self._tiers):
            return Miss(MissReason.BEING_WRITTEN, at)
        if child is None:
            reason = MissReason.DIVERGES if self._children.get(tip) else MissReason.NOT_STORED
            return Miss(reason, at)
        if not cuttable and common_prefix(child.tokens, rest) > at - child.start:
            return Miss(MissReason.NOT_CUTTABLE, at)
        is_whole = at - child.start == child.n_tokens
        return Miss(MissReason.NOT_STORED if is_whole else MissReason.DIVERGES, at)

    def _lease(
        self, holder: str, root: bytes, path: list[Row], n_tokens: int, miss: Miss | None
    ) -> Match:
        if not path:
            return Match(0, (), 0, miss, root)
        tiers = [(tier.name, tier.held) for tier in self._tiers.values()]
        blocks: list[BlockRef] = []
        for row in path:
            self._pin(row)
            row.heat = eviction.touched(row.heat, self._now)
            for name, held in tiers:
                copy = held.get(row.key)
                if copy is not None:
                    blocks.append(row.ref(name, copy[0], min(row.n_tokens, n_tokens - row.start)))
                    break
        self._last_lease += 1
        self._leases[self._last_lease] = (holder, tuple(path))
        return Match(n_tokens, tuple(blocks), self._last_lease, miss, path[-1].key)

    def _pin(self, row: Row) -> None:
        row.leases += 1
        if row.leases == 1:
            for tier in self._tiers.values():
                copy = tier.held.get(row.key)
                if copy is not None:
                    tier.pinned_bytes += copy[1]

    def _unpin(self, row: Row) -> list[Evicted]:
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
            for tier in self._tiers.values():
                copy = tier.held.get(row.key)
                if copy is not None:
                    tier.pinned_bytes -= copy[1]
            self._offer(row)
        return freed

    # ── inside: writing ──────────────────────────────────────────────────────────────────────

    def _advance(self, now: float) -> None:
        self._now = max(self._now, now)

    def _file_tiers(self) -> Iterable[Tier]:
        return (tier for tier in self._tiers.values() if tier.arena is None)

    def _all_writes(self) -> list[Write]:
        return [*self._writes.values(), *self._stale.values()]

    def _is_well_formed(self, request: RowRequest) -> bool:
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

    def _has_parent(self, request: RowRequest | Row, tier: Tier) -> bool:
        """File tiers hold whole chains, so that a directory alone can be served after a restart."""
        if request.parent == request.root:
            return True
        row = self._rows.get(request.parent)
        write = self._writes.get((tier.name, request.parent))
        if write is None and (row is None or (tier.arena is None and row.key not in tier.held)):
            return False
        before = row.request() if row is not None else write.request if write else None
        return (
            before is not None
            and count(before.tokens) == self.block_tokens
            and before.start + self.block_tokens == request.start
        )

    def _make_room(
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
                self._offer(victim)
                return False, None
            evicted += self._drop(victim, tier)
            self._counters.evictions += 1

    def _cheapest(self, tier: Tier) -> Row | None:
        while (queued := tier.pop_cheapest()) is not None:
            rank, key = queued
            row = self._rows.get(key)
            if row is None or not self._is_evictable(row, tier):
                continue  # it is offered again when that changes
            current = self._rank(row)
            if current <= rank:
                return row
            tier.offer(key, current)
        return None

    def _rank(self, row: Row) -> float:
        is_reachable = row.parent == row.root or row.parent in self._rows
        return row.heat + row.weight if is_reachable and not row.superseded else eviction.WORTHLESS

    def _is_evictable(self, row: Row, tier: Tier) -> bool:
        key = row.key
        if row.leases or key not in tier.held or key in tier.kids:
            return False
        return row.copies > 1 or not any(key in other.kids for other in self._tiers.values())

    def _offer(self, row: Row, *, again: bool = False) -> None:
        for tier in self._tiers.values():
            if self._is_evictable(row, tier):
                tier.offer(row.key, self._rank(row), again=again)

    def _drop_kid(self, tier: Tier, parent: bytes) -> None:
        tier.remove_kid(parent)
        row = self._rows.get(parent)
        if row is not None:
            self._offer(row)

    def _hold(self, request: RowRequest, tier: Tier, location: int | None, nbytes: int) -> Row:
        """Record that a tier holds a row; its bytes and its place among the kids are claimed."""
        row = self._rows.get(request.key)
        if row is None:
            row = self._rows[request.key] = Row(request, self._now)
            self._roots[row.root] = self._roots.get(row.root, 0) + 1
            siblings = self._children.setdefault(row.parent, [])
            at = bisect_left(siblings, row.tokens, key=_by_tokens)
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
        row.superseded = True
        self._offer(row, again=True)

    def _drop(self, row: Row, tier: Tier) -> list[Evicted]:
        """Forget one copy. Readers keep a slab until they release it; a file survives unlinking."""
        location, nbytes = tier.held.pop(row.key)
        row.copies -= 1
        if tier.arena is not None:
            for other in self._file_tiers():
                other.unpersisted.pop(row.key, None)
        if row.copies == 0:
            self._forget(row)
        self._drop_kid(tier, row.parent)
        if row.leases and tier.arena is not None:
            row.doomed = [*(row.doomed or ()), (tier, location, nbytes)]
            return []
        tier.unclaim(location, nbytes)
        if row.leases:
            tier.pinned_bytes -= nbytes
        return [Evicted(row.key, tier.name, location, nbytes)]

    def _forget(self, row: Row) -> None:
        del self._rows[row.key]
        siblings = self._children[row.parent]
        del siblings[bisect_left(siblings, row.tokens, key=_by_tokens)]
        if not siblings:
            del self._children[row.parent]
        left = self._roots[row.root] - 1
        if left:
            self._roots[row.root] = left
        else:
            del self._roots[row.root]
        for child in self._children.get(row.key, ()):
            self._offer(child, again=True)  # unreachable now, so worth nothing

    def _cancel(self, write: Write, *, retry: bool = False) -> list[Evicted]:
        """End a reservation unpublished; ``retry`` leaves a file copy to the next writer."""
        tier, key = write.tier, write.request.key
        tier.pinned_bytes -= write.nbytes
        tier.unclaim(write.location, write.nbytes)
        self._drop_kid(tier, write.request.parent)
        freed = self._unpin(write.source) if write.source is not None else []
        if tier.arena is not None:
            freed.append(Evicted(key, tier.name, write.location, write.nbytes))
        elif retry and RAM in self._tiers and key in self._tiers[RAM].held:
            tier.unpersisted[key] = None
        return freed
