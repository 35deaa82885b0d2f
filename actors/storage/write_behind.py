"""Write-behind: rows are copied to file tiers in the background, and what a tier that fails does.

Part of ``cache_meta``'s process; the writer makes the copies. Three things hold at every instant:

- what is under way is bounded, in rows and in bytes, so that a slow disk does not fill memory;
- a file is written only after those it displaces are gone, so that a directory keeps its budget;
- a tier whose storage refuses gets no more rows, is warned of once, and takes rows again when its
  own process has found that it can. Rows meant for it go to others of its kind, or wait in RAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.actor_ids import actor_of, holder_name, model_of, tier_actor_id
from actors.storage.copy_ports import CopyPorts, copy_order
from actors.storage.tier_state import FileTierState
from cache.answers import Reservation
from cache.index import CacheIndex

if TYPE_CHECKING:
    from supervision import Address

SHARE_IN_FLIGHT = 8  # no more than this part of the arena, since rows under way are pinned
STALLED_S = 30.0  # a disk that finishes no write for so long is left alone for a while
KEYS_PER_DROP = 1024  # 34 bytes each, far below a message's limit
WRITER = "writer"


@dataclass(slots=True)
class _StoppingWriter:
    """A writer that was asked to stop and still takes orders."""

    holder: str
    address: Address
    finish: bool
    """It is to get all that waits, and not only what was promised to it."""
    has_last: bool = False
    """``NoMoreCopies`` was sent to it."""


class WriteBehind:
    """The file tiers, by name, and the writer that copies rows to them."""

    def __init__(
        self, index: CacheIndex, ports: CopyPorts, file_tiers: Sequence[str], *, ram_bytes: int
    ) -> None:
        self._index = index
        self._ports = ports
        self._tiers = {name: FileTierState(name) for name in file_tiers}
        self._most_bytes = ram_bytes // SHARE_IN_FLIGHT
        self._row_bytes = 1  # of the last row, to guess how many more may be under way
        self._n_drops = 0
        self._stopping: _StoppingWriter | None = None

    def __contains__(self, tier: object) -> bool:
        return tier in self._tiers

    @property
    def writer_stops(self) -> bool:
        """Whether the writer was asked to stop and no other one is up yet."""
        return self._stopping is not None

    @property
    def is_behind(self) -> bool:
        """Whether a disk has as many writes under way as it may: it is to read nothing ahead."""
        return any(
            tier.health.is_open
            and tier.writes.sizes
            and not tier.writes.room(self._most_bytes, self._row_bytes)
            for tier in self._tiers.values()
        )

    # ── orders ──────────────────────────────────────────────────────────────────────────────────

    def pump(self, now: float) -> None:
        """Order copies, a bounded number at a time."""
        holder = self._writer()
        if holder is None or (self._stopping is not None and not self._stopping.finish):
            return
        for tier in self._tiers.values():
            writes = tier.writes
            room = writes.room(self._most_bytes, self._row_bytes)
            if not self._takes_rows(tier) or writes.unsent or room <= 0:
                continue
            answers, evicted = self._index.persist(now, holder, tier.name, room)
            self._ports.dispose(evicted)
            if not writes.sizes:
                writes.moved_at = now
            for answer in answers:
                if isinstance(answer, Reservation):
                    self._row_bytes = answer.row_bytes
                    writes.begin(copy_order(answer))
            self._send_orders(tier)

    def _writer(self) -> str | None:
        """The process that holds the reservations: the living one, or the one that stops."""
        if self._stopping is not None:
            return self._stopping.holder
        return self._ports.holder(WRITER)

    def _takes_rows(self, tier: FileTierState) -> bool:
        """Whether it is open, and no scan runs: one takes a file being written for an orphan."""
        alive = self._ports.holder(tier_actor_id(tier.name))
        return alive is not None and alive == tier.scanned_by and tier.health.is_open

    def _send_orders(self, tier: FileTierState) -> None:
        if tier.drops or (self._stopping is not None and self._stopping.has_last):
            return
        target = WRITER if self._stopping is None else self._stopping.address
        for order in tier.writes.take_unsent():
            self._ports.send(target, order)

    def copied(self, now: float, done: m.RowCopied) -> None:
        """The writer has made a copy."""
        holder = self._writer()
        if holder is not None:
            published = self._index.publish(now, holder, done.key, done.tier)
            self._ports.dispose(published.evicted)
        tier = self._tiers.get(done.tier)
        if tier is not None:
            tier.writes.end(done.key, now, is_copied=True)
            tier.health.is_warned = False

    def failed(self, now: float, failed: m.CopyFailed) -> None:
        """The writer has not made a copy."""
        holder = self._writer()
        if holder is not None:
            self._ports.dispose(self._index.abandon(holder, failed.key, failed.tier))
        tier = self._tiers.get(failed.tier)
        if tier is not None:
            tier.writes.end(failed.key, now, is_copied=False)

    # ── the writer ends ─────────────────────────────────────────────────────────────────────────

    def stop_writer(self, incarnation: int, address: Address, *, finish: bool) -> None:
        """The writer stops: it gets what waits, if it is to finish, then ``NoMoreCopies``."""
        self._stopping = _StoppingWriter(holder_name(WRITER, incarnation), address, finish)

    def end_orders(self) -> None:
        """Send ``NoMoreCopies`` to a writer that stops, if no order follows."""
        stopping = self._stopping
        if stopping is None or stopping.has_last:
            return
        # A model that has just ended may have sent rows that are not here yet.
        is_awaited = any(model_of(actor_of(one)) is not None for one in self._index.writers())
        has_more = is_awaited or any(map(self._has_more, self._tiers.values()))
        if not stopping.finish or not has_more:
            stopping.has_last = True
            self._ports.send(stopping.address, m.NoMoreCopies())

    def _has_more(self, tier: FileTierState) -> bool:
        """Whether orders for this tier wait, or may follow from those under way."""
        if not self._takes_rows(tier):
            return False
        return bool(tier.writes.sizes or self._index.unpersisted(tier.name, 1))

    def writer_ended(self) -> None:
        """The writer has ended, or another one has taken its place."""
        self._stopping = None
        for tier in self._tiers.values():
            if tier.writes.sizes:
                self._recount(tier)
            tier.writes.sizes.clear()
            tier.writes.take_unsent()

    def _recount(self, tier: FileTierState) -> None:
        """The writer died at work: what it left there is in no account until a scan has found it.

        Temp files, and rows that were not reported; with more beside them the budget would break.
        """
        health = tier.health
        if health.is_open:
            health.is_open = False
            health.trouble = "the writer ended; what it left is being looked for"
            self._index.open_tier(tier.name, is_open=False)
        self._ports.send(tier_actor_id(tier.name), m.WatchTier(health.trouble))

    # ── files that go ───────────────────────────────────────────────────────────────────────────

    def quarantine(self, tier: str, key: bytes) -> None:
        """Have a bad file put aside; another one of its name is not written before that is done."""
        self._ports.send(tier_actor_id(tier), m.QuarantineFile(key))
        self.drop_files(tier, (key,))

    def drop_files(self, tier: str, keys: Sequence[bytes]) -> None:
        """Have evicted rows' files removed; nothing is written there until they are gone."""
        for at in range(0, len(keys), KEYS_PER_DROP):
            self._n_drops += 1
            order = m.DropFiles(self._n_drops, tuple(keys[at : at + KEYS_PER_DROP]))
            # A tier that is not up scans when it is: what it finds is taken in, or dropped again.
            if self._ports.send(tier_actor_id(tier), order):
                self._tiers[tier].drops.add(self._n_drops)

    def dropped(self, done: m.FilesDropped) -> None:
        """Files are gone."""
        tier = self._tiers.get(done.tier)
        if tier is not None:
            tier.drops.discard(done.ref)
            self._send_orders(tier)

    # ── tiers that fail ─────────────────────────────────────────────────────────────────────────

    def scanned(self, tier: str, incarnation: int) -> None:
        """A tier has reported all its rows."""
        if tier in self._tiers:
            self._tiers[tier].scanned_by = holder_name(tier_actor_id(tier), incarnation)

    def tier_ended(self, name: str) -> None:
        """A tier's process has ended, or another one has taken its place."""
        tier = self._tiers.get(name)
        if tier is not None:
            tier.drops.clear()
            tier.writes.take_unsent()

    def tier_changed(self, now: float, change: m.TierChanged) -> None:
        """A tier's own process reports how its directory is."""
        tier = self._tiers.get(change.tier)
        if tier is None:
            return
        health = tier.health
        if not change.is_open:
            self._close(now, tier, change.detail, watch=False)
        if health.is_there and not change.is_there:
            self._index.forget_tier(tier.name)
        health.is_there = change.is_there
        if change.is_open and not health.is_open:
            health.open()
            tier.writes.moved_at = now
            self._index.open_tier(tier.name, is_open=True)
            self._ports.log.info("the cache tier %s takes rows again", tier.name)
            self.pump(now)

    def refused(self, now: float, tier: str, detail: str) -> None:
        """A tier's storage has refused to read or to write."""
        self._close(now, self._tiers[tier], detail, watch=True)

    def close_stalled(self, now: float) -> None:
        """Find disks that hang; call it now and then."""
        for tier in self._tiers.values():
            writes = tier.writes
            if tier.health.is_open and writes.sizes and now - writes.moved_at > STALLED_S:
                detail = f"no write has ended for {now - writes.moved_at:.0f} s"
                self._close(now, tier, detail, watch=True)

    def _close(self, now: float, tier: FileTierState, detail: str, *, watch: bool) -> None:
        """No rows for this tier; with ``watch`` its process is asked to find when it recovers."""
        if not tier.health.close(detail):
            return
        holder = self._writer()
        for order in tier.writes.take_unsent():
            tier.writes.sizes.pop(order.key, None)
            if holder is not None:
                self._ports.dispose(self._index.abandon(holder, order.key, tier.name))
        self._index.open_tier(tier.name, is_open=False)
        if watch:
            self._ports.send(tier_actor_id(tier.name), m.WatchTier(detail))
        if not tier.health.is_warned:
            tier.health.is_warned = True
            self._ports.log.warning(
                "the cache tier %s takes no rows until it recovers, and is tried again by itself: "
                "%s",
                tier.name,
                detail,
            )
        self.pump(now)  # others of its kind take over

    # ── reports ─────────────────────────────────────────────────────────────────────────────────

    @property
    def is_all_persisted(self) -> bool:
        """Whether every file tier holds all that is worth keeping there."""
        return self._index.is_tidy and all(
            self._takes_rows(tier)
            and not tier.writes.sizes
            and not self._index.unpersisted(tier.name, 1)
            and not self._index.is_late(tier.name)
            for tier in self._tiers.values()
        )

    @property
    def n_missing(self) -> int:
        """Copies that are still to be written to tiers that take rows; those under way count."""
        uses = self._index.snapshot().tiers
        return sum(uses[name].waiting + len(one.writes.sizes) for name, one in self._tiers.items())

    def status(self) -> dict[str, object]:
        """Counters since this process started."""
        tiers = self._tiers.values()
        return {
            "persist_failures": sum(tier.writes.failed for tier in tiers),
            "being_persisted": sum(len(tier.writes.sizes) for tier in tiers),
            "all_persisted": self.is_all_persisted,
        }

    def tier_status(self, name: str) -> dict[str, object]:
        """What is known of one tier beside its bytes."""
        tier = self._tiers.get(name)
        return {} if tier is None else tier.status()
