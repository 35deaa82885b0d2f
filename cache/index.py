"""The cache index: which rows exist, where, who reads them, who writes them. A pure state machine.

It owns every decision about stored rows and the arena's allocation map, and touches neither memory
nor files nor clocks: callers pass ``now`` in seconds (one clock for all calls; an earlier time than
before is ignored) and act on the returned values. One process holds it, so there is one writer.

How a prefix is found: ``cache.prefix``. How bytes are claimed and evicted: ``cache.table``. Which
process may write: ``cache.writes``.

Rules kept at all times, checked by ``check_integrity``:
a tier's bytes never exceed its budget; a leased row is never evicted; within a tier a row goes only
after its children; every claim on bytes has exactly one owner (row, reservation or doomed slab).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from cache import eviction, integrity, listing, prefix, siblings
from cache.allocation import PAGE_BYTES
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
    Reserved,
    RowRequest,
    Snapshot,
)
from cache.counters import Counters
from cache.facts import NamespaceFacts, RowFacts
from cache.finish_keys import pack_ends, tails_in, unpack_ends
from cache.keys import BLOCK_TOKENS, child_key
from cache.maintenance import Maintenance
from cache.rows import RowIdentity, SaveReason
from cache.table import RowTable
from cache.tiers import Tier
from cache.tokens import TIP, count, cut, pack
from cache.writes import Reservations

RESERVATION_TTL_S: Final = 60.0  # a block copy takes far less; only a stuck writer exceeds it


class CacheIndex:
    """See the module docstring. Tiers are given fastest first; "ram" is the arena."""

    def __init__(
        self,
        block_tokens: int = BLOCK_TOKENS,
        budgets: Mapping[str, int] | None = None,
        *,
        page_bytes: int = PAGE_BYTES,
        reservation_ttl_s: float = RESERVATION_TTL_S,
        tail_delay_s: float = 0.0,
    ) -> None:
        self.block_tokens = block_tokens
        self._table = RowTable(block_tokens, budgets or {}, page_bytes, tail_delay_s)
        self._maintenance = Maintenance(self._table)
        self._counters = Counters()
        self._writes = Reservations(self._table, self._counters, reservation_ttl_s)
        self._leases: dict[int, tuple[str, array[int]]] = {}
        self._last_lease = 0

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def reserve(
        self, now: float, holder: str, requests: Sequence[RowRequest], tier: str = RAM
    ) -> Reserved:
        """Claim room for rows, evicting to make it; answers come in the order of the requests.

        The bytes of a reservation belong to ``holder`` until it publishes, abandons or exits.
        """
        self._table.advance(now)
        answers: list[Answer] = []
        evicted: list[Evicted] = []
        place = self._table.tiers.get(tier)
        for request in requests:
            answer = self._writes.reserve(holder, request, place, evicted)
            if isinstance(answer, Refusal):
                self._counters.count_refusal(answer.reason)
            answers.append(answer)
        return Reserved(answers, evicted)

    def publish(
        self,
        now: float,
        holder: str,
        key: bytes,
        tier: str = RAM,
        reason: SaveReason | None = None,
    ) -> Published:
        """Make a reserved row visible. Late, repeated or foreign calls change nothing.

        A reservation that expired is still valid unless another writer has taken the key meanwhile;
        then its bytes are freed (``evicted``) and ``accepted`` is False.
        """
        self._table.advance(now)
        return self._writes.publish(holder, key, tier, reason)

    def abandon(self, holder: str, key: bytes, tier: str = RAM) -> list[Evicted]:
        """End a reservation unwritten; the slab returned must be invalidated."""
        return self._writes.abandon(holder, key, tier)

    def abandon_extended(self, holder: str, key: bytes) -> list[Evicted]:
        """End the reservation of a tail whose sequence was extended: a longer row gets its tokens.

        Its key can still be looked up, see ``lookup_key``.
        """
        write = self._writes.open.get((RAM, key))
        if write is not None and write.holder == holder:
            self._table.finish_keys.add(self._table.now, write.request.id)
        return self.abandon(holder, key)

    def ends_in(self, row: RowIdentity) -> bytes:
        """Where tails end that this row contains, for its metadata; empty if none is known.

        With them the keys of these tails are restored when the row is adopted: ``add_finish_keys``.
        """
        nodes = self._table.nodes
        if row.tokens.startswith(pack([TIP])):
            return b""
        stored = siblings.beginnings(nodes, nodes.find(row.parent), row.tokens)
        ends = {*(nodes.n_tokens[at] for at in stored), *self._table.finish_keys.inside(row)}
        return pack_ends(sorted(ends)) if ends else b""

    def add_finish_keys(self, used: float, row: RowRequest, ends: bytes) -> None:
        """Keep the keys of the tails that end inside a row found by a scan.

        ``ends``: see ``cache.finish_keys``; ``used``: when the row was used last.
        """
        if not self._table.is_well_formed(row):
            return
        for tail in tails_in(row.id, unpack_ends(ends)):
            self._table.finish_keys.add(used, tail)

    def drop_contained(self, key: bytes) -> list[Evicted]:
        """Drop a tail from every tier whose kind holds a longer row that contains it.

        The index does so itself when the longer row is published or the tail's last lease ends.
        """
        at = self._table.find(key)
        return self._table.drop_contained(at) if at else []

    def writers(self) -> set[str]:
        """Holders that have reserved rows and not written them yet."""
        return self._writes.holders()

    def expire(self, now: float) -> list[bytes]:
        """Let others reserve the keys of overdue writers; returns those keys.

        Their bytes stay claimed until the holder publishes, abandons or exits.
        """
        self._table.advance(now)
        return self._writes.expire()

    def holder_exited(self, holder: str) -> list[Evicted]:
        """Drop all leases and reservations of a process; the returned slabs must be invalidated."""
        freed: list[Evicted] = []
        for lease in [at for at, (owner, _) in self._leases.items() if owner == holder]:
            freed += self.release(lease)
        return freed + self._writes.holder_exited(holder)

    def persist(self, now: float, holder: str, tier: str, limit: int) -> Reserved:
        """Reserve, for the writer, up to ``limit`` ram rows this file tier lacks; parents first."""
        table = self._table
        found = [table.find(ref.key) for ref in self.unpersisted(tier, limit)]
        reserved = self.reserve(now, holder, [table.nodes.request(at) for at in found], tier)
        for answer in reserved.answers:
            table.tiers[tier].unpersisted.pop(table.find(answer.key), None)
        return reserved

    def queue_late_tails(self) -> bool:
        """Queue the delayed tails for their file tiers now; whether there were any."""
        queued = False
        for tier in self._table.file_tiers():
            queued = queued or bool(tier.late)
            tier.take_due(math.inf)
        return queued

    def is_late(self, tier: str) -> bool:
        """Whether copies of tails to this tier are being delayed."""
        return bool(self._table.tiers[tier].late)

    def unpersisted(self, tier: str, limit: int) -> list[BlockRef]:
        """Rows of faster tiers queued for ``tier`` whose parents it holds or gets before them."""
        return self._writes.unpersisted(tier, limit)

    def promote(
        self, now: float, holder: str, keys: Sequence[bytes], *, is_ahead: bool = False
    ) -> Reserved:
        """Reserve arena room for rows that only slower tiers hold; parents come before children.

        Hotter rows are not evicted for it. Unknown keys and rows in the arena are skipped.
        ``is_ahead``: of a use that is still to come. They rank as rows that are used now, or the
        next rows that are saved would evict them before.
        """
        self._table.advance(now)
        table = self._table
        ram = table.tiers.get(RAM)
        answers: list[Answer] = []
        evicted: list[Evicted] = []
        for key in keys:
            at = table.find(key)
            if ram is None or not at or ram.holds(at):
                continue
            if is_ahead:
                heat = table.nodes.heat
                heat[at] = max(heat[at], eviction.first_heat(table.now))
            request = table.nodes.request(at)
            answers.append(self._writes.reserve(holder, request, ram, evicted, is_promotion=True))
        return Reserved(answers, evicted)

    def open_tier(self, tier: str, *, is_open: bool) -> None:
        """Queue rows for a file tier, or for others of its kind while its disk refuses writes.

        The rows are queued by later calls of ``tidy``.
        """
        place = self._table.tiers[tier]
        place.is_open = is_open
        if is_open:
            self._maintenance.fill(place)
        else:
            self._maintenance.hand_over(place)

    def forget_tier(self, tier: str) -> None:
        """Drop every copy in a tier whose directory has vanished.

        Call ``tidy`` until ``is_tidy`` before rows of it are adopted again.
        """
        self._maintenance.forget(self._table.tiers[tier])

    @property
    def is_tidy(self) -> bool:
        """Whether no maintenance is left after tiers were opened, closed or forgotten."""
        return self._maintenance.is_idle

    def tidy(self, n_rows: int) -> None:
        """Do a part of the maintenance: visit at most ``n_rows`` rows."""
        self._maintenance.step(n_rows)

    def requeue(self, key: bytes) -> None:
        """Queue a row again for the tiers that lack it, after a copy of it has failed."""
        at = self._table.find(key)
        if at and not self._table.is_superseded(at):
            self._table.queue_copies(at)

    # ── rows that exist already ──────────────────────────────────────────────────────────────

    def adopt(
        self,
        now: float,
        tier: str,
        row: RowRequest,
        location: int | None = None,
        last_used: float | None = None,
    ) -> list[Evicted]:
        """Add a row found by a scan; parents may come after children.

        Returns the copies that must be removed: shorter rows that it contains, or the row itself if
        it is malformed, a duplicate, contained in a longer one, or worth less than every row that
        would be evicted for it.
        """
        table = self._table
        table.advance(now)
        place = table.tiers.get(tier)
        if place is None or not table.is_well_formed(row):
            return _refused(row, place, tier, location)
        at = table.find(row.key)
        writing = self._writes.open.get((tier, row.key))
        # A copy that the tier has already, or is being written, keeps its bytes; a second one goes.
        if (is_held := bool(at) and place.holds(at)) or writing is not None:
            here = place.location(at) if is_held else writing.location if writing else None
            return [] if here == location else _refused(row, place, tier, location)
        used = table.now if last_used is None else min(last_used, table.now)
        if table.is_contained(row.id, place):
            # Its tokens are stored in the longer row already; only its key is worth keeping.
            table.keep_finish_key(used, row.id)
            table.tails_removed += 1
            return _refused(row, place, tier, location)
        heat = table.nodes.heat[at] if at else eviction.first_heat(used)

        def rank() -> float:  # evicting a parent makes the row worthless: computed again each time
            return table.rank(at) if at else table.rank_found(row, heat)

        evicted: list[Evicted] = []
        nbytes = place.size_of(row.row_bytes)
        if not table.make_room(place, nbytes, (rank, location), evicted)[0]:
            table.keep_finish_key(used, row.id)
            return [*evicted, *_refused(row, place, tier, location)]
        table.add_child(place, row.id.parent)
        stored = table.hold(row, place, location, nbytes)
        table.nodes.heat[stored] = heat
        table.offer(stored)
        if not table.is_superseded(stored):
            table.queue_copies(stored)
        self._counters.adopted += 1
        return evicted + table.drop_superseded(stored)

    def add_location(
        self, now: float, key: bytes, tier: str, location: int | None, nbytes: int
    ) -> list[Evicted]:
        """Add the copy of a known row that was found in another tier; like ``adopt``."""
        at = self._table.find(key)
        if not at:
            return [Evicted(key, tier, location, nbytes)]
        return self.adopt(now, tier, self._table.nodes.request(at), location)

    def drop_location(self, key: bytes, tier: str) -> list[Evicted]:
        """Remove a copy that turned out to be corrupt or missing; unknown ones are ignored.

        A slab that is being read is freed by the last ``release``, not before.
        """
        place, at = self._table.tiers.get(tier), self._table.find(key)
        if place is None or not at or not place.holds(at):
            return []
        return self._table.drop(at, place)

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
        self._table.advance(now)
        want = count(tokens) if limit is None else max(0, min(limit, count(tokens)))
        if want < count(tokens):
            tokens = cut(tokens, 0, want)
        nodes = self._table.nodes
        path, tip = prefix.descend(self._table, root, tokens)
        at = len(path) * self.block_tokens
        rest = cut(tokens, at, at + self.block_tokens)
        node = path[-1] if path else nodes.find(root)
        child, shared = prefix.best_child(self._table, node, at, rest)
        # ``child`` shares the most tokens; a memory that cannot be cut needs a child used whole.
        used, n_used = child, shared
        if child and not cuttable and shared < nodes.n_tokens[child]:
            used, n_used = prefix.whole_child(self._table, tip, at, cut(rest, 0, shared))
        state = prefix.tip_child(self._table, node, at, rest)
        if state:  # only memories that cannot be cut have one, and nothing else is of use to them
            used, n_used = state, prefix.n_used_of_tip(self._table, state, rest)
        if used:
            path.append(used)
            at += n_used
        miss = None
        if at < want:
            miss = prefix.explain(self._table, root, node, child, shared, at)
            if self._writes.is_being_written(child_key(tip, rest)):
                miss = Miss(MissReason.BEING_WRITTEN, at)
        self._counters.count_lookup(at, want)
        return self._lease(holder, root, path, at, miss, tokens)

    def lookup_key(self, now: float, holder: str, key: bytes) -> Match | None:
        """The whole chain ending in ``key``, leased; None unless every row of it is stored.

        The key may be that of a tail that a longer row contains: then that row ends the chain.
        """
        self._table.advance(now)
        found = prefix.chain_of(self._table, key)
        if found is None:
            self._counters.count_lookup(0, 1)
            return None
        path, n_tokens = found
        nodes = self._table.nodes
        self._counters.count_lookup(n_tokens, n_tokens)
        self._counters.hits_resume += 1
        return self._lease(holder, nodes.key(nodes.root[path[0]]), path, n_tokens, None)

    def find(self, root: bytes, tokens: bytes) -> list[BlockRef]:
        """The rows that ``lookup`` would find now. Nothing is leased, and no use is counted."""
        table, nodes = self._table, self._table.nodes
        path, n_tokens = prefix.longest(table, root, tokens)
        found = [
            table.ref(at, self._fastest(at), min(nodes.n_tokens[at], n_tokens - nodes.start[at]))
            for at in path
        ]
        return [*found[:-1], self._marked(found[-1], path[-1], tokens)] if path else found

    def is_being_written(self, key: bytes) -> bool:
        """Whether this row is reserved and will soon be there, or not."""
        return self._writes.is_being_written(key)

    def release(self, lease: int) -> list[Evicted]:
        """Unpin a lease's rows; repeated or unknown leases are ignored.

        Returns slabs of rows dropped meanwhile, which must be invalidated now.
        """
        _, rows = self._leases.pop(lease, ("", ()))
        freed: list[Evicted] = []
        for at in rows:
            freed += self._table.unpin(at)
        return freed

    def snapshot(self) -> Snapshot:
        """Counters and sizes, frozen."""
        return self._counters.snapshot(
            rows=self._table.n_rows,
            leases=len(self._leases),
            reservations=len(self._writes),
            evictions=self._table.evictions,
            lost=self._table.lost,
            tails_removed=self._table.tails_removed,
            tiers={name: tier.use() for name, tier in self._table.tiers.items()},
        )

    # ── administration ───────────────────────────────────────────────────────────────────────

    def scan(self, cursor: int, limit: int) -> tuple[list[RowFacts], int]:
        """A page of rows in no order, and the cursor of the next; see ``cache.listing``."""
        return listing.scan(self._table, cursor, limit)

    def facts(self, key: bytes) -> RowFacts | None:
        """The facts of one row, or None."""
        return listing.facts(self._table, key)

    def children(self, key: bytes) -> list[bytes]:
        """Keys of the rows that continue this row or root."""
        return listing.children(self._table, key)

    def namespaces(self) -> list[NamespaceFacts]:
        """Every root with rows."""
        return listing.namespaces(self._table)

    def evict(self, now: float, tier: str) -> list[Evicted] | None:
        """Evict the least valuable row of a tier, to free memory; None: no row may be evicted."""
        self._table.advance(now)
        place = self._table.tiers.get(tier)
        return None if place is None else self._table.evict_one(place)

    def arena_holes(self) -> list[tuple[int, int]]:
        """(offset, bytes) of the arena's pages that belong to no slab."""
        ram = self._table.tiers.get(RAM)
        return [] if ram is None or ram.arena is None else ram.arena.holes()

    def check_integrity(self) -> None:
        """Recount everything; InvariantBroken if an account is wrong. For tests: O(rows)."""
        integrity.check(self._table, self._writes.all(), self._leases)

    def _lease(
        self,
        holder: str,
        root: bytes,
        path: list[int],
        n_tokens: int,
        miss: Miss | None,
        asked: bytes = b"",
    ) -> Match:
        if not path:
            return Match(0, (), 0, miss, root)
        table, nodes = self._table, self._table.nodes
        blocks: list[BlockRef] = []
        for at in path:
            table.pin(at)
            nodes.heat[at] = eviction.touched(nodes.heat[at], table.now)
            n_used = min(nodes.n_tokens[at], n_tokens - nodes.start[at])
            blocks.append(table.ref(at, self._fastest(at), n_used))
        blocks[-1] = self._marked(blocks[-1], path[-1], asked)
        self._last_lease += 1
        self._leases[self._last_lease] = (holder, array("I", path))
        return Match(n_tokens, tuple(blocks), self._last_lease, miss, blocks[-1].key)

    def _marked(self, ref: BlockRef, at: int, asked: bytes) -> BlockRef:
        """The last row of a path, marked if it is a tip that is used as a whole."""
        if not self._table.nodes.tokens(at).startswith(prefix.TIP_MARK):
            return ref
        is_mark_asked = cut(asked, ref.start, ref.start + 1) == prefix.TIP_MARK
        is_whole = ref.n_used + (not is_mark_asked) == ref.n_tokens
        return replace(ref, is_tip=True) if is_whole else ref

    def _fastest(self, at: int) -> Tier:
        """The fastest tier that holds a row."""
        return next(tier for tier in self._table.tiers.values() if tier.holds(at))


def _refused(row: RowRequest, tier: Tier | None, name: str, location: int | None) -> list[Evicted]:
    """The removal of a found row; empty if its pages belong to another slab by now."""
    arena = None if tier is None else tier.arena
    if arena is not None and (location is None or not arena.is_free(location)):
        return []
    nbytes = row.row_bytes if tier is None else tier.size_of(row.row_bytes)
    return [Evicted(row.key, name, location, nbytes)]
