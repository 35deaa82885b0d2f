"""Rows that are copied between tiers: ``write_behind`` to files, ``promotion`` into the arena.

Part of ``cache_meta``'s process. Reports of copies come in here and go to the half that ordered
them; a copy that turns out to be bad, or a storage that refuses to be read, concerns both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.actor_ids import tier_of
from actors.storage.copy_ports import CopyPorts
from actors.storage.prefetch import Waiting
from actors.storage.promotion import RAM_TIER, Promotion
from actors.storage.write_behind import WRITER, WriteBehind
from cache.answers import RAM, BlockRef
from cache.index import CacheIndex

if TYPE_CHECKING:
    from supervision import Address


class TierCopies:
    """Decides when a row is copied and by which process."""

    def __init__(
        self, index: CacheIndex, ports: CopyPorts, file_tiers: Sequence[str], *, ram_bytes: int
    ) -> None:
        self._index = index
        self._dispose = ports.dispose
        self._written = WriteBehind(index, ports, file_tiers, ram_bytes=ram_bytes)
        self._promotion = Promotion(index, ports, ram_bytes=ram_bytes)
        self._last_failure: str | None = None

    def hit(self, blocks: Sequence[BlockRef]) -> None:
        """Rows that were found outside of the arena, parents first: they are to be promoted."""
        self._promotion.hit(blocks)

    def prefetch(self, who: Waiting, rows: Sequence[BlockRef]) -> None:
        """A queued request will need these rows, which lie outside of the arena."""
        self._promotion.ahead.begin(who, rows)

    def end_prefetch(self, who: Waiting) -> None:
        """It has started, or does not wait any more."""
        self._promotion.ahead.end(who)

    def holder_exited(self, holder: str) -> None:
        """A model's process has ended, and its queue with it."""
        self._promotion.ahead.holder_exited(holder)

    def pump(self, now: float, *, may_promote: bool = True) -> None:
        """Order copies, a bounded number at a time."""
        self._written.pump(now)
        if may_promote and not self._written.writer_stops:
            self._promotion.pump(now, may_prefetch=not self._written.is_behind)
        self._written.end_orders()

    def writer_stops(self, incarnation: int, address: Address, *, finish: bool) -> None:
        """The writer stops: it gets what waits, if it is to finish, then ``NoMoreCopies``."""
        self._written.stop_writer(incarnation, address, finish=finish)

    # ── reports of processes ────────────────────────────────────────────────────────────────────

    def handle(
        self,
        now: float,
        message: m.RowCopied | m.RowsPromoted | m.CopyFailed | m.FilesDropped | m.TierChanged,
    ) -> None:
        """What the copying processes and the tiers report."""
        match message:
            case m.RowCopied():
                self._written.copied(now, message)
            case m.RowsPromoted(keys, failed):
                for key in keys:
                    self._promotion.copied(now, key)
                for one in failed:
                    self._failed(now, one)
            case m.CopyFailed():
                self._failed(now, message)
            case m.FilesDropped():
                self._written.dropped(message)
            case m.TierChanged():
                self._written.tier_changed(now, message)

    def _failed(self, now: float, failed: m.CopyFailed) -> None:
        """A copy was not made: the row is bad, or a storage refuses."""
        self._last_failure = failed.detail
        if failed.tier == RAM:
            self._promotion.failed(failed.key)
        else:
            self._written.failed(now, failed)
        if failed.is_bad:
            self.drop_bad(failed.source, failed.key)
        elif failed.refused_by is not None and failed.refused_by in self._written:
            self._written.refused(now, failed.refused_by, failed.detail)
            if failed.refused_by == failed.tier:
                self._index.requeue(failed.key)

    def drop_bad(self, tier: str, key: bytes) -> None:
        """A copy of a row failed its checks: it is found no more, and its place is free."""
        gone = self._index.drop_location(key, tier)
        if tier == RAM:
            self._dispose(gone)
        else:
            self._written.quarantine(tier, key)

    def drop_files(self, tier: str, keys: Sequence[bytes]) -> None:
        """Have evicted rows' files removed; nothing is written there until they are gone."""
        self._written.drop_files(tier, keys)

    def scanned(self, tier: str, incarnation: int) -> None:
        """A tier has reported all its rows."""
        self._written.scanned(tier, incarnation)

    def process_ended(self, child: str) -> None:
        """A process of the cache has ended, or another one has taken its place."""
        tier = tier_of(child)
        if tier is not None:
            self._written.tier_ended(tier)
        elif child == WRITER:
            self._written.writer_ended()
        elif child == RAM_TIER:
            self._promotion.copier_ended()

    def close_stalled(self, now: float) -> None:
        """Find disks that hang; call it now and then."""
        self._written.close_stalled(now)

    # ── status ──────────────────────────────────────────────────────────────────────────────────

    @property
    def is_all_persisted(self) -> bool:
        """Whether every file tier holds all that is worth keeping there."""
        return self._written.is_all_persisted

    @property
    def n_missing(self) -> int:
        """Copies that are still to be written to tiers that take rows; those under way count."""
        return self._written.n_missing

    def status(self) -> dict[str, object]:
        """Counters since this process started."""
        return {
            **self._written.status(),
            "last_persist_failure": self._last_failure,
            **self._promotion.status(),
        }

    def tier_status(self, name: str) -> dict[str, object]:
        """What is known of one tier beside its bytes."""
        return self._written.tier_status(name)
