"""Reservations: the right to write a row, until it is published, abandoned or its holder exits.

A reservation claims bytes before they are written. Overdue ones lose the *key*, so that another
writer may take it, but keep the *bytes*: their holder may be slow rather than dead, and must never
write into a slab that belongs to another writer by then.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from cache.answers import (
    Answer,
    BlockRef,
    Evicted,
    Published,
    Refusal,
    RefusalReason,
    Reservation,
    RowRequest,
)
from cache.counters import Counters
from cache.nodes import NIL
from cache.rows import RowIdentity, SaveReason
from cache.table import RowTable
from cache.tiers import Tier, Write

MAX_WAITING_VISITED: Final = 256  # bounds one call when parents are late


class Reservations:
    """Open and overdue reservations over a table. Private to the index."""

    def __init__(self, table: RowTable, counters: Counters, ttl_s: float) -> None:
        self._table = table
        self._counters = counters
        self._ttl_s = ttl_s
        self.open: dict[tuple[str, bytes], Write] = {}  # (tier, key)
        self.overdue: dict[tuple[str, str, bytes], Write] = {}  # (holder, tier, key)

    def __len__(self) -> int:
        return len(self.open) + len(self.overdue)

    def all(self) -> list[Write]:
        """Every claim on bytes that is not a row yet."""
        return [*self.open.values(), *self.overdue.values()]

    def is_being_written(self, key: bytes) -> bool:
        """Whether some tier will soon hold this row."""
        return any((tier, key) in self.open for tier in self._table.tiers)

    def reserve(
        self,
        holder: str,
        request: RowRequest,
        tier: Tier | None,
        evicted: list[Evicted],
        *,
        is_promotion: bool = False,
    ) -> Answer:
        """Claim the bytes of one row; rows evicted for it are added to ``evicted``.

        A promotion copies a row of a slower tier into the arena, and evicts no hotter row.
        """
        row_id, key = request.id, request.key
        if tier is None:
            return Refusal(key, RefusalReason.NO_SUCH_TIER)
        row = self._table.find(key)
        if row and tier.holds(row):
            return Refusal(key, RefusalReason.ALREADY_PRESENT)
        if (tier.name, key) in self.open or (holder, tier.name, key) in self.overdue:
            return Refusal(key, RefusalReason.WRITE_IN_PROGRESS)
        if not self._table.is_well_formed(request):
            return Refusal(key, RefusalReason.MALFORMED)
        # A tail's key is the caller's from now on, whether or not the tail gets a row.
        self._table.keep_finish_key(self._table.now, row_id)
        if self._table.is_contained(row_id, tier):
            return Refusal(key, RefusalReason.ALREADY_PRESENT)
        if not self._has_parent(row_id, tier):
            return Refusal(key, RefusalReason.NO_PARENT)
        is_copy = tier.arena is None or is_promotion
        source = self._table.source_for(row, tier) if row and is_copy else None
        # Both ends of the copy are pinned first: making room must not evict them.
        parent = self._table.add_child(tier, row_id.parent)
        if row:
            self._table.pin(row)
        nbytes = tier.size_of(request.row_bytes)
        promoted = row if is_promotion else NIL
        done, location = self._table.make_room(tier, nbytes, None, evicted, promoted)
        if not done:
            if row:
                evicted += self._table.unpin(row)
            self._table.remove_child(tier, parent)
            return Refusal(key, RefusalReason.OVER_BUDGET)
        tier.pinned_bytes += nbytes
        deadline = self._table.now + self._ttl_s
        self.open[tier.name, key] = Write(
            holder, request, tier, location, nbytes, deadline, row, is_promotion
        )
        return Reservation(
            key,
            location,
            request.row_bytes,
            tier.name,
            source.location(row) if source else None,
            source.name if source else None,
        )

    def publish(
        self, holder: str, key: bytes, tier: str, reason: SaveReason | None = None
    ) -> Published:
        """Make a reserved row visible. Late, repeated or foreign calls change nothing.

        A reservation that expired is still valid unless another writer has taken the key meanwhile;
        then its bytes are freed (``evicted``) and ``accepted`` is False.
        """
        write = self.open.get((tier, key))
        if write is not None and write.holder == holder:
            del self.open[tier, key]
        else:
            write = self.overdue.get((holder, tier, key))
            if write is None:
                return Published(accepted=False)
            del self.overdue[holder, tier, key]
            row = self._table.find(key)
            # Overdue: the key may have been reserved, or even written, by another writer since.
            if (tier, key) in self.open or (row and write.tier.holds(row)):
                self._counters.duplicate_dropped += 1
                return Published(accepted=False, evicted=tuple(self._cancel(write)))
        write.tier.pinned_bytes -= write.nbytes
        row = self._table.hold(write.request, write.tier, write.location, write.nbytes)
        freed = self._table.unpin(write.source) if write.source else []
        self._table.offer(row)
        lacking: tuple[str, ...] = ()
        if write.tier.arena is None:
            self._counters.persisted += 1
        elif not write.is_promotion:
            self._counters.count_save(reason or write.request.reason)
        if not self._table.is_superseded(row):
            lacking = self._table.queue_copies(row, write.tier.durability)
        freed += self._table.drop_superseded(row)
        return Published(accepted=True, to_persist=lacking, evicted=tuple(freed))

    def holders(self) -> set[str]:
        """The holders of open reservations."""
        return {write.holder for write in self.open.values()}

    def abandon(self, holder: str, key: bytes, tier: str) -> list[Evicted]:
        """End a reservation unwritten; the slab returned must be invalidated."""
        write = self.open.get((tier, key))
        if write is not None and write.holder == holder:
            return self._cancel(self.open.pop((tier, key)))
        late = self.overdue.pop((holder, tier, key), None)
        return [] if late is None else self._cancel(late)

    def expire(self) -> list[bytes]:
        """Let others reserve the keys of overdue writers; returns those keys.

        Their bytes stay claimed until the holder publishes, abandons or exits: it may be slow
        rather than dead, and must not write into a slab of another writer.
        """
        overdue = [at for at, write in self.open.items() if write.deadline <= self._table.now]
        for at in overdue:
            write = self.open.pop(at)
            self.overdue[write.holder, *at] = write
        return [key for _, key in overdue]

    def holder_exited(self, holder: str) -> list[Evicted]:
        """End every reservation of a process that has exited."""
        freed: list[Evicted] = []
        for at in [at for at, write in self.open.items() if write.holder == holder]:
            freed += self._cancel(self.open.pop(at), retry=True)
        for late in [at for at in self.overdue if at[0] == holder]:
            freed += self._cancel(self.overdue.pop(late), retry=True)
        return freed

    def unpersisted(self, tier: str, limit: int) -> list[BlockRef]:
        """Rows of faster tiers queued for ``tier`` whose parents it holds or gets before them."""
        table, place = self._table, self._table.tiers[tier]
        nodes = table.nodes
        place.take_due(table.now)
        chosen: dict[int, BlockRef] = {}
        for at in list(islice(place.unpersisted, limit + MAX_WAITING_VISITED)):
            if len(chosen) >= limit:
                break
            if nodes.parent[at] in chosen or self._has_parent(nodes.identity(at), place):
                source = table.source_for(at, place)
                if (tier, nodes.key(at)) not in self.open and source is not None:
                    chosen[at] = table.ref(at, source, nodes.n_tokens[at])
            else:  # its parent is not there yet: to the end of the queue
                del place.unpersisted[at]
                place.unpersisted[at] = None
        return list(chosen.values())

    def _has_parent(self, child: RowIdentity, tier: Tier) -> bool:
        """Whether the parent is stored as durably: what survives a restart must be whole chains."""
        if child.parent == child.root:
            return True
        table = self._table
        row = table.find(child.parent)
        if row and any(
            other.durability >= tier.durability and other.holds(row)
            for other in table.tiers.values()
        ):
            start, n_tokens = table.nodes.start[row], table.nodes.n_tokens[row]
        elif write := self.open.get((tier.name, child.parent)):
            start, n_tokens = write.request.id.start, write.request.id.n_tokens
        else:
            return False
        return n_tokens == table.block_tokens and start + n_tokens == child.start

    def _cancel(self, write: Write, *, retry: bool = False) -> list[Evicted]:
        """End a reservation unpublished; ``retry`` leaves a file copy to the next writer."""
        tier, row = write.tier, write.request.id
        tier.pinned_bytes -= write.nbytes
        tier.unclaim(write.location, write.nbytes)
        self._table.remove_child(tier, self._table.nodes.find(row.parent))
        freed = self._table.unpin(write.source) if write.source else []
        if tier.arena is not None:
            freed.append(Evicted(row.key, tier.name, write.location, write.nbytes))
        elif retry and (at := self._table.find(row.key)):
            self._table.queue_copies(at)
        return freed
