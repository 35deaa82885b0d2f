"""Rows on their way between tiers: written behind, promoted, and what a tier that fails does.

Part of ``cache_meta``'s process. It decides when a row is copied and by whom; the writer and
ram_tier copy. Three things hold at every instant:

- what is under way is bounded, in rows and in bytes, so that a slow disk fills nobody's memory;
- a file is written only after those it displaces are gone, so that a directory keeps its budget;
- a tier whose storage refuses gets no more rows, is warned of once, and takes rows again when its
  own process has found that it can. Rows meant for it go to others of its kind, or wait in RAM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.actor_ids import (
    actor_of,
    holder_name,
    model_of,
    tier_actor_id,
    tier_of,
)
from cache.answers import RAM, BlockRef, Evicted, Refusal, Reservation
from cache.index import CacheIndex

if TYPE_CHECKING:
    from supervision import Address

WRITES_IN_FLIGHT = 32  # rows a tier: two batches of the writer
SHARE_IN_FLIGHT = 8  # and no more than this part of the arena, since they are held down meanwhile
PROMOTIONS_IN_FLIGHT = 8  # few: a prompt that is being restored now wants the same memory bandwidth
PROMOTIONS_WAITING = 4096  # rows; of more hits than that the oldest are not promoted
STALLED_S = 30.0  # a disk that finishes no write for so long is left alone for a while
KEYS_PER_DROP = 1024  # 34 bytes each, far below a message's limit

Send = Callable[["str | Address", object], bool]


@dataclass(slots=True)
class _FileTier:
    """What is known of one file tier, and what it is doing."""

    name: str
    scanned_by: str | None = None  # the process of the tier that has told of all its rows
    is_open: bool = True
    is_there: bool = True
    detail: str = ""
    is_warned: bool = False
    writing: dict[bytes, int] = field(default_factory=dict)  # key -> bytes
    dropping: set[int] = field(default_factory=set)
    held_back: list[m.CopyRow] = field(default_factory=list)
    moved_at: float = 0.0  # when something was last finished, or begun after nothing was under way
    copied: int = 0
    failed: int = 0
    outages: int = 0


@dataclass(slots=True)
class _Leaving:
    """A writer that was asked to stop and still takes orders."""

    holder: str
    address: Address
    finish: bool
    """It is to get all that waits, and not only what was promised to it."""
    has_last: bool = False
    """It was told that no order follows."""


class Copies:
    """See the module's words. ``holder`` names the living process of a child, or None."""

    def __init__(
        self,
        index: CacheIndex,
        file_tiers: Sequence[str],
        *,
        ram_bytes: int,
        send: Send,
        dispose: Callable[[Sequence[Evicted]], None],
        holder: Callable[[str], str | None],
        log: logging.Logger,
    ) -> None:
        self._index = index
        self._tiers = {name: _FileTier(name) for name in file_tiers}
        self._most_bytes = ram_bytes // SHARE_IN_FLIGHT
        self._send, self._dispose, self._holder, self._log = send, dispose, holder, log
        self._row_bytes = 1  # of the last row, to guess how many more may be under way
        self._drops = 0
        self._hit: dict[bytes, None] = {}
        self._promoting: dict[bytes, int] = {}
        self._promoted = self._not_promoted = 0
        self._last_failure: str | None = None
        self._leaving: _Leaving | None = None

    # ── what goes on ────────────────────────────────────────────────────────────────────────────

    def hit(self, blocks: Sequence[BlockRef]) -> None:
        """Rows that were found outside of the arena, parents first: they are to be promoted."""
        for block in blocks:
            if block.tier != RAM and block.key not in self._promoting:
                self._hit[block.key] = None
        while len(self._hit) > PROMOTIONS_WAITING:
            del self._hit[next(iter(self._hit))]
            self._not_promoted += 1

    def pump(self, now: float, *, may_promote: bool = True) -> None:
        """Hand out copies, a bounded number at a time."""
        self._write_behind(now)
        if may_promote and self._hit and self._leaving is None:
            self._promote(now)
        self._end_orders()

    def writer_stops(self, holder: str, address: Address, *, finish: bool) -> None:
        """The writer stops: it gets what waits, if it is to finish, then ``NoMoreCopies``."""
        self._leaving = _Leaving(holder, address, finish)

    def _end_orders(self) -> None:
        leaving = self._leaving
        if leaving is None or leaving.has_last:
            return
        # A model that has just ended may have sent rows that are not here yet.
        is_awaited = any(model_of(actor_of(one)) is not None for one in self._index.writers())
        has_more = is_awaited or any(map(self._has_more, self._tiers.values()))
        if not leaving.finish or not has_more:
            leaving.has_last = True
            self._send(leaving.address, m.NoMoreCopies())

    def _has_more(self, tier: _FileTier) -> bool:
        """Whether orders for this tier wait, or may follow from those under way."""
        if not (self._is_scanned(tier) and tier.is_open):
            return False
        return bool(tier.writing or self._index.unpersisted(tier.name, 1))

    def _copier(self, child: str) -> str | None:
        """Who holds the reservations for copies: the living process, or the writer that leaves."""
        if child == "writer" and self._leaving is not None:
            return self._leaving.holder
        return self._holder(child)

    def _write_behind(self, now: float) -> None:
        holder = self._copier("writer")
        if holder is None or (self._leaving is not None and not self._leaving.finish):
            return
        for tier in self._tiers.values():
            room = self._room(tier)
            if not (self._is_scanned(tier) and tier.is_open) or tier.held_back or room <= 0:
                continue
            answers, evicted = self._index.persist(now, holder, tier.name, room)
            self._dispose(evicted)
            if not tier.writing:
                tier.moved_at = now
            for answer in answers:
                if isinstance(answer, Reservation):
                    self._row_bytes = answer.row_bytes
                    tier.writing[answer.key] = answer.row_bytes
                    tier.held_back.append(_order(answer))
            self._release(tier)

    def _is_scanned(self, tier: _FileTier) -> bool:
        """Whether nobody scans there now: a scan takes a file being written for an orphan."""
        alive = self._holder(tier_actor_id(tier.name))
        return alive is not None and alive == tier.scanned_by

    def _room(self, tier: _FileTier) -> int:
        by_bytes = (self._most_bytes - sum(tier.writing.values())) // self._row_bytes
        at_least = 0 if tier.writing else 1
        return max(at_least, min(WRITES_IN_FLIGHT - len(tier.writing), by_bytes))

    def _release(self, tier: _FileTier) -> None:
        if tier.dropping or (self._leaving is not None and self._leaving.has_last):
            return
        target = "writer" if self._leaving is None else self._leaving.address
        for order in tier.held_back:
            self._send(target, order)
        tier.held_back.clear()

    def _promote(self, now: float) -> None:
        holder = self._holder("ram_tier")
        room = PROMOTIONS_IN_FLIGHT - len(self._promoting)
        if holder is None or room <= 0:
            return
        keys = [key for key, _ in zip(self._hit, range(room), strict=False)]
        for key in keys:
            del self._hit[key]
        answers, evicted = self._index.promote(now, holder, keys)
        self._dispose(evicted)  # before anybody may write there
        for answer in answers:
            if isinstance(answer, Refusal):
                self._not_promoted += 1
            else:
                self._promoting[answer.key] = answer.row_bytes
                self._send("ram_tier", _order(answer))

    # ── answers ─────────────────────────────────────────────────────────────────────────────────

    def handle(
        self, now: float, message: m.RowCopied | m.CopyFailed | m.FilesDropped | m.TierChanged
    ) -> None:
        """What the copying processes and the tiers report."""
        match message:
            case m.RowCopied():
                self._copied(now, message)
            case m.CopyFailed():
                self._failed(now, message)
            case m.FilesDropped():
                self._dropped(message)
            case m.TierChanged():
                self._tier_changed(now, message)

    def _copied(self, now: float, done: m.RowCopied) -> None:
        """The writer or ram_tier has made a copy."""
        child = "ram_tier" if done.tier == RAM else "writer"
        if done.tier == RAM:
            self._promoting.pop(done.key, None)
        holder = self._copier(child)
        if holder is not None:
            published = self._index.publish(now, holder, done.key, done.tier)
            self._dispose(published.evicted)
            self._promoted += published.accepted and done.tier == RAM
        tier = self._tiers.get(done.tier)
        if tier is not None:
            tier.writing.pop(done.key, None)
            tier.moved_at = now
            tier.copied += 1
            tier.is_warned = False

    def _failed(self, now: float, failed: m.CopyFailed) -> None:
        """A copy was not made: the row is bad, or a storage refuses."""
        self._last_failure = failed.detail
        holder = self._copier("ram_tier" if failed.tier == RAM else "writer")
        if holder is not None:
            self._dispose(self._index.abandon(holder, failed.key, failed.tier))
        if failed.tier == RAM:
            self._promoting.pop(failed.key, None)
            self._not_promoted += 1
        tier = self._tiers.get(failed.tier)
        if tier is not None:
            tier.writing.pop(failed.key, None)
            tier.moved_at = now
            tier.failed += 1
        if failed.is_bad:
            self._dispose_bad(failed)
        elif failed.refused_by in self._tiers:
            self._close(now, self._tiers[failed.refused_by], failed.detail, watch=True)
            if failed.refused_by == failed.tier:
                self._index.requeue(failed.key)

    def _dispose_bad(self, failed: m.CopyFailed) -> None:
        gone = self._index.drop_location(failed.key, failed.source)
        if failed.source == RAM:
            self._dispose(gone)
        else:
            self.quarantine(failed.source, failed.key)

    def quarantine(self, tier: str, key: bytes) -> None:
        """Have a bad file put aside; another one of its name is not written before that is done."""
        self._send(tier_actor_id(tier), m.QuarantineFile(key))
        self.drop_files(tier, (key,))

    def drop_files(self, tier: str, keys: Sequence[bytes]) -> None:
        """Have evicted rows' files removed; nothing is written there until they are gone."""
        place = self._tiers[tier]
        for at in range(0, len(keys), KEYS_PER_DROP):
            self._drops += 1
            order = m.DropFiles(self._drops, tuple(keys[at : at + KEYS_PER_DROP]))
            # A tier that is not up scans when it is: what it finds is taken in, or dropped again.
            if self._send(tier_actor_id(tier), order):
                place.dropping.add(self._drops)

    def _dropped(self, done: m.FilesDropped) -> None:
        """Files are gone."""
        tier = self._tiers.get(done.tier)
        if tier is not None:
            tier.dropping.discard(done.ref)
            self._release(tier)

    # ── tiers that fail ─────────────────────────────────────────────────────────────────────────

    def scanned(self, tier: str, incarnation: int) -> None:
        """A tier has told of all its rows."""
        if tier in self._tiers:
            self._tiers[tier].scanned_by = holder_name(tier_actor_id(tier), incarnation)

    def child_changed(self, child: str, *, is_new: bool) -> None:
        """A process of the cache has ended, or another one has taken its place."""
        tier = self._tiers.get(tier_of(child) or "")
        if tier is not None and is_new:
            tier.dropping.clear()
            tier.held_back.clear()
        if child == "writer" and is_new:
            self._leaving = None
            for one in self._tiers.values():
                if one.writing:
                    self._recount(one)
                one.writing.clear()
                one.held_back.clear()
        if child == "ram_tier" and is_new:
            self._promoting.clear()

    def _recount(self, tier: _FileTier) -> None:
        """The writer died at work: what it left there is in no account until a scan has found it.

        Temp files and rows that nobody was told of; with more beside them the budget would break.
        """
        if tier.is_open:
            tier.is_open, tier.detail = False, "the writer ended; what it left is being looked for"
            self._index.open_tier(tier.name, is_open=False)
        self._send(tier_actor_id(tier.name), m.WatchTier(tier.detail))

    def _tier_changed(self, now: float, change: m.TierChanged) -> None:
        """A tier's own process says how its directory is."""
        tier = self._tiers.get(change.tier)
        if tier is None:
            return
        if not change.is_open:
            self._close(now, tier, change.detail, watch=False)
        if tier.is_there and not change.is_there:
            self._index.forget_tier(tier.name)
        tier.is_there = change.is_there
        if change.is_open and not tier.is_open:
            tier.is_open, tier.detail, tier.moved_at = True, "", now
            self._index.open_tier(tier.name, is_open=True)
            self._log.info("the cache tier %s takes rows again", tier.name)
            self.pump(now)

    def look_after(self, now: float) -> None:
        """Find disks that hang; call it now and then."""
        for tier in self._tiers.values():
            if tier.is_open and tier.writing and now - tier.moved_at > STALLED_S:
                detail = f"no write has ended for {now - tier.moved_at:.0f} s"
                self._close(now, tier, detail, watch=True)

    def _close(self, now: float, tier: _FileTier, detail: str, *, watch: bool) -> None:
        tier.detail = detail
        if not tier.is_open:
            return
        tier.is_open = False
        tier.outages += 1
        for order in tier.held_back:
            tier.writing.pop(order.key, None)
            holder = self._copier("writer")
            if holder is not None:
                self._dispose(self._index.abandon(holder, order.key, tier.name))
        tier.held_back.clear()
        self._index.open_tier(tier.name, is_open=False)
        if watch:
            self._send(tier_actor_id(tier.name), m.WatchTier(detail))
        if not tier.is_warned:
            tier.is_warned = True
            self._log.warning(
                "the cache tier %s takes no rows until it recovers, and is tried again by itself: "
                "%s",
                tier.name,
                detail,
            )
        self.pump(now)  # others of its kind take over

    # ── for people ──────────────────────────────────────────────────────────────────────────────

    @property
    def is_all_persisted(self) -> bool:
        """Whether every file tier holds all that is worth keeping there."""
        return self._index.is_tidy and all(
            self._is_scanned(tier)
            and tier.is_open
            and not tier.writing
            and not self._index.unpersisted(tier.name, 1)
            and not self._index.is_late(tier.name)
            for tier in self._tiers.values()
        )

    @property
    def n_missing(self) -> int:
        """Copies that are still to be written to tiers that take rows; those under way count."""
        uses = self._index.snapshot().tiers
        return sum(uses[name].waiting + len(one.writing) for name, one in self._tiers.items())

    def status(self) -> dict[str, object]:
        """Counters since this process started."""
        return {
            "persist_failures": sum(tier.failed for tier in self._tiers.values()),
            "last_persist_failure": self._last_failure,
            "being_persisted": sum(len(tier.writing) for tier in self._tiers.values()),
            "all_persisted": self.is_all_persisted,
            "promoted": self._promoted,
            "not_promoted": self._not_promoted,
            "being_promoted": len(self._promoting),
        }

    def tier_status(self, name: str) -> dict[str, object]:
        """What is known of one tier beside its bytes."""
        tier = self._tiers.get(name)
        if tier is None:
            return {}
        return {
            "state": "open" if tier.is_open else "closed" if tier.is_there else "gone",
            "trouble": None if tier.is_open else tier.detail,
            "copied": tier.copied,
            "failed": tier.failed,
            "outages": tier.outages,
            "being_written": len(tier.writing),
            "being_removed": len(tier.dropping),
        }


def _order(granted: Reservation) -> m.CopyRow:
    return m.CopyRow(
        granted.key,
        granted.row_bytes,
        granted.source_tier or RAM,
        granted.source,
        granted.tier,
        granted.offset,
    )
