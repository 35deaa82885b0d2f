"""Tails that are stored late: the end of a reply, whose sequence most likely goes on at once.

Runs on the engine thread. The room for a tail is reserved when its request ends, and nothing is
written. When the next turn goes on from it, the block that contains it is stored instead, and the
room is given back; so a conversation writes every token once. It is written when nothing has gone
on from it for a moment, when its sequence has to make room, when the model is unloaded, and when
somebody else waits for it. Until then a crash of this process loses it: fewer tokens than a block.

A reservation is void when cache_meta has ended meanwhile; then the room is asked for again.
"""

from __future__ import annotations

import time
import uuid
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from actors import messages as m
from cache import tokens as token_bytes
from cache.answers import RefusalReason
from cache.finish_keys import NO_ENDS
from cache.rows import SaveReason

ASK_AGAIN_S = 1.0  # cache_meta is being restarted, or scans


@dataclass(slots=True, eq=False)
class LateTail:
    """A row that may be written, and where; 0 is no incarnation, so that is no reservation."""

    row: m.RowWanted
    offset: int
    incarnation: int
    logits: tuple[int, array[float]] | None = None
    """Of the prompt's last position, and how many tokens of the row come before its end."""
    due_at: float = 0.0
    ends: bytes = NO_ENDS
    """Where shorter tails end that it contains, see ``cache.finish_keys``."""

    @property
    def end(self) -> int:
        return self.row.start + token_bytes.count(self.row.tokens)


class Holder(Protocol):
    """A sequence with an unwritten tail."""

    @property
    def seq(self) -> int | None: ...

    @property
    def packed_tokens(self) -> bytes:
        """All that it holds, and for a request all that it will read."""
        ...

    @property
    def late_tail(self) -> LateTail | None: ...

    @late_tail.setter
    def late_tail(self, tail: LateTail | None) -> None: ...

    def will_store(self, end: int) -> bool:
        """Whether a row that reaches beyond its first ``end`` tokens is stored, or will be."""
        ...


class TailStore(Protocol):
    """What ``actors.kv.store`` does for this module."""

    @property
    def tail_delay_s(self) -> float: ...

    def is_granted(self, incarnation: int) -> bool:
        """Whether what this incarnation of cache_meta has reserved is still ours."""
        ...

    def write_tail(self, seq: int, tail: LateTail, reason: SaveReason) -> m.RowsWritten: ...

    def given_up(self, tail: LateTail, *, continued: bool) -> m.RowsWritten: ...

    def ask_for(self, ref: str, row: m.RowWanted) -> m.ReserveRows: ...

    def abandon(self, grants: m.RowsReserved) -> m.RowsWritten: ...


class LateTails:
    """Decides about the unwritten tails of one engine. ``others`` are all sequences there are."""

    def __init__(
        self,
        store: TailStore,
        send: Callable[[object, object], None],
        idle: Callable[[], Iterable[Holder]],
        running: Callable[[], Iterable[Holder]],
    ) -> None:
        self._store = store
        self._send = send
        self._idle = idle
        self._running = running
        self._asked: dict[str, Holder] = {}
        self.not_written = 0
        """Tails that a longer row made needless."""

    def keep(self, holder: Holder) -> None:
        """A request has ended, and its sequence stays idle."""
        if holder.late_tail is not None:
            holder.late_tail.due_at = time.monotonic() + self._store.tail_delay_s

    def leave(self, holder: Holder, going_on: Holder | None = None) -> None:
        """The sequence is about to be freed, or cut to go on as ``going_on``: now or never."""
        tail = holder.late_tail
        if tail is None:
            return
        if self._goes_on(holder, tail, going_on):
            self._give_up(holder, continued=True)
        else:
            self._write(holder, tail, SaveReason.EVICT)

    def forget(self, holder: Holder) -> None:
        """Its KV is gone, or not sound."""
        self._give_up(holder, continued=False)

    def write_all(self, reason: SaveReason) -> None:
        """Somebody waits for them, or the model is being unloaded."""
        for holder in self._idle():
            if holder.late_tail is not None and not self._goes_on(holder, holder.late_tail):
                self._write(holder, holder.late_tail, reason)

    def due_at(self) -> float | None:
        """When the next tail is to be written."""
        return min((one.late_tail.due_at for one in self._idle() if one.late_tail), default=None)

    def write_due(self, now: float) -> None:
        """Write those from which nothing has gone on."""
        for holder in self._idle():
            tail = holder.late_tail
            if tail is None or now < tail.due_at:
                continue
            if self._goes_on(holder, tail):
                tail.due_at = now + self._store.tail_delay_s  # its block comes, or it stays alone
            elif self._store.is_granted(tail.incarnation):
                self._write(holder, tail, SaveReason.FINISH)
            else:
                self._ask_again(holder, tail, now)

    # ── cache_meta is another one ───────────────────────────────────────────────────────────────

    def _ask_again(self, holder: Holder, tail: LateTail, now: float) -> None:
        tail.due_at = now + max(ASK_AGAIN_S, self._store.tail_delay_s)
        ref = uuid.uuid4().hex
        self._asked = {r: one for r, one in self._asked.items() if one is not holder}
        self._asked[ref] = holder
        self._send("cache_meta", self._store.ask_for(ref, tail.row))

    def granted(self, grants: m.RowsReserved) -> bool:
        """Cache_meta has answered; whether it was asked from here."""
        holder = self._asked.pop(grants.ref, None)
        if holder is None:
            return False
        tail = holder.late_tail
        offset = dict(grants.offsets).get(tail.row.key) if tail is not None else None
        if tail is None or offset is None:
            if grants.offsets:
                self._send("cache_meta", self._store.abandon(grants))
            if (
                dict(grants.refused).get(tail.row.key if tail else b"")
                is not RefusalReason.STARTING
            ):
                holder.late_tail = None  # it is there already, or cannot be stored
            return True
        tail.offset, tail.incarnation = offset, grants.incarnation
        tail.ends = dict(grants.ends).get(tail.row.key, NO_ENDS)
        self._write(holder, tail, SaveReason.FINISH)
        return True

    # ── both ways it ends ───────────────────────────────────────────────────────────────────────

    def _goes_on(self, holder: Holder, tail: LateTail, going_on: Holder | None = None) -> bool:
        """Whether another sequence holds these tokens too, and more, or will."""
        mine = token_bytes.cut(holder.packed_tokens, 0, tail.end)
        others = (going_on,) if going_on is not None else (*self._running(), *self._idle())
        return any(
            other is not holder
            and other.will_store(tail.end)
            and other.packed_tokens.startswith(mine)
            for other in others
        )

    def _write(self, holder: Holder, tail: LateTail, reason: SaveReason) -> None:
        holder.late_tail = None
        if holder.seq is not None and self._store.is_granted(tail.incarnation):
            self._send("cache_meta", self._store.write_tail(holder.seq, tail, reason))

    def _give_up(self, holder: Holder, *, continued: bool) -> None:
        tail, holder.late_tail = holder.late_tail, None
        if tail is not None and self._store.is_granted(tail.incarnation):
            self.not_written += continued
            self._send("cache_meta", self._store.given_up(tail, continued=continued))
