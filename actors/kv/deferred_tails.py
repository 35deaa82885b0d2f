"""Tails whose writing is put off: the end of a reply, which the next turn usually extends at once.

Runs on the engine thread; times are seconds on its clock, passed in. The room for a tail is
reserved when its request ends, and nothing is written. When the next turn extends it, the block
that contains it is stored instead, and the room is given back; so a conversation writes every token
once. It is written when nothing has extended it for a moment, when its sequence has to make room,
when the model is unloaded, and when another process waits for it. Until then a crash of this
process loses it: fewer tokens than a block.

A reservation is void when cache_meta has ended meanwhile; then the room is asked for again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from actors import messages as m
from actors.kv.namespace import Namespace
from actors.kv.request_cache import DeferredTail, Grant
from actors.kv.store import KvStore
from cache import tokens as token_bytes
from cache.answers import RefusalReason
from cache.finish_keys import NO_ENDS
from cache.rows import SaveReason

ASK_AGAIN_S: Final = 1.0
"""Cache_meta is being restarted, or scans."""


class Holder(Protocol):
    """A sequence with an unwritten tail."""

    @property
    def seq(self) -> int | None: ...

    @property
    def packed_tokens(self) -> bytes:
        """All that it holds, and for a request all that it will read."""
        ...

    @property
    def namespace(self) -> Namespace:
        """Which its rows lie in."""
        ...

    @property
    def deferred_tail(self) -> DeferredTail | None: ...

    @deferred_tail.setter
    def deferred_tail(self, tail: DeferredTail | None) -> None: ...

    def will_store(self, end: int) -> bool:
        """Whether a row that reaches beyond its first ``end`` tokens is stored, or will be."""
        ...


class DeferredTails:
    """Decides about the unwritten tails of one engine."""

    def __init__(
        self,
        store: KvStore,
        send: Callable[[object, object], None],
        idle: Iterable[Holder],
        running: Callable[[], Iterable[Holder]],
    ) -> None:
        """``idle`` and ``running`` are all sequences there are, at the time they are read."""
        self._store = store
        self._writer = store.writer
        self._delay_s = store.policy.tail_delay_ms / 1e3
        self._send = send
        self._idle = idle
        self._running = running
        self._asked: dict[str, Holder] = {}
        self.not_written = 0
        """Tails that a longer row made needless."""

    def keep(self, holder: Holder, now: float) -> None:
        """A request has ended, and its sequence stays idle."""
        if holder.deferred_tail is not None:
            holder.deferred_tail.due_at = now + self._delay_s

    def leave(self, holder: Holder, extended_by: Holder | None = None) -> None:
        """The sequence is about to be freed, or taken by another: write or drop the tail."""
        tail = holder.deferred_tail
        if tail is None:
            return
        if self._is_extended(holder, tail, extended_by):
            self._drop(holder, is_extended=True)
        else:
            self._write(holder, tail, SaveReason.EVICT)

    def forget(self, holder: Holder) -> None:
        """Its KV is gone, or not sound."""
        self._drop(holder, is_extended=False)

    def write_all(self, reason: SaveReason) -> None:
        """Another process waits for them, or the model is being unloaded."""
        for holder in self._idle:
            tail = holder.deferred_tail
            if tail is not None and not self._is_extended(holder, tail):
                self._write(holder, tail, reason)

    def due_at(self) -> float | None:
        """When the next tail is to be written."""
        tails = (one.deferred_tail for one in self._idle)
        return min((tail.due_at for tail in tails if tail is not None), default=None)

    def write_due(self, now: float) -> None:
        """Write those that nothing has extended."""
        for holder in self._idle:
            tail = holder.deferred_tail
            if tail is None or now < tail.due_at:
                continue
            if self._is_extended(holder, tail):
                tail.due_at = now + self._delay_s  # its block will be stored, or it stays alone
            elif self._writer.is_granted(tail.grant.incarnation):
                self._write(holder, tail, SaveReason.FINISH)
            else:
                self._ask_again(holder, tail, now)

    # ── cache_meta is another one ───────────────────────────────────────────────────────────────

    def _ask_again(self, holder: Holder, tail: DeferredTail, now: float) -> None:
        tail.due_at = now + max(ASK_AGAIN_S, self._delay_s)
        ref = uuid.uuid4().hex
        self._asked = {r: one for r, one in self._asked.items() if one is not holder}
        self._asked[ref] = holder
        reason = int(SaveReason.FINISH)
        self._send(
            "cache_meta",
            m.ReserveRows(ref, self._store.holder, tail.grant.root, reason, (tail.row,)),
        )

    def granted(self, grants: m.RowsReserved) -> bool:
        """Cache_meta has answered; whether the question came from here."""
        holder = self._asked.pop(grants.ref, None)
        if holder is None:
            return False
        tail = holder.deferred_tail
        offset = dict(grants.offsets).get(tail.row.key) if tail is not None else None
        if tail is None or offset is None:
            if grants.offsets:
                self._send("cache_meta", self._store.abandon(grants))
            refused = dict(grants.refused).get(tail.row.key if tail else b"")
            if refused is not RefusalReason.STARTING:
                holder.deferred_tail = None  # it is there already, or cannot be stored
            return True
        ends = dict(grants.ends).get(tail.row.key, NO_ENDS)
        tail.grant = Grant(offset, grants.incarnation, tail.grant.root, ends)
        self._write(holder, tail, SaveReason.FINISH)
        return True

    # ── both ways it ends ───────────────────────────────────────────────────────────────────────

    def _is_extended(
        self, holder: Holder, tail: DeferredTail, extended_by: Holder | None = None
    ) -> bool:
        """Whether another sequence holds these tokens too, and more, or will."""
        mine = token_bytes.cut(holder.packed_tokens, 0, tail.end)
        others = (extended_by,) if extended_by is not None else (*self._running(), *self._idle)
        return any(
            other is not holder
            and other.namespace == holder.namespace
            and other.will_store(tail.end)
            and other.packed_tokens.startswith(mine)
            for other in others
        )

    def _write(self, holder: Holder, tail: DeferredTail, reason: SaveReason) -> None:
        holder.deferred_tail = None
        if holder.seq is None or not self._writer.is_granted(tail.grant.incarnation):
            return
        keys = (tail.row.key,)
        if self._writer.write_tail(holder.seq, tail, reason):
            written = m.RowsWritten(self._store.holder, keys, (), reason=int(reason))
        else:
            written = m.RowsWritten(self._store.holder, (), keys)
        self._send("cache_meta", written)

    def _drop(self, holder: Holder, *, is_extended: bool) -> None:
        """Give back the room of a tail that is not written."""
        tail, holder.deferred_tail = holder.deferred_tail, None
        if tail is None or not self._writer.is_granted(tail.grant.incarnation):
            return
        self.not_written += is_extended
        keys, none = (tail.row.key,), ()
        abandoned, continued = (none, keys) if is_extended else (keys, none)
        self._send("cache_meta", m.RowsWritten(self._store.holder, none, abandoned, continued))
