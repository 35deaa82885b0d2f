"""What one HTTP worker sends of its requests, and what its open pages show.

Requests that have ended are sent in any case, four times a second at most; those that run, and the
node, only while a page is open at some worker. All pages of a worker read one copy of the ledger's
board, each at its own pace: one that is slow leaves out states in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec

from runtime import errors
from runtime.gateway.board import MAX_BYTES, MAX_ENDED, Board, Noted
from runtime.gateway.ledger_client import LedgerClient, LedgerGone
from runtime.gateway.trace import Trace, Traces
from runtime.gateway.watch_messages import NoteRequests, NoteSnapshot, RequestsNoted, Seen

EVERY_S: Final = 0.25
ASK_S: Final = 2.0
MAX_PAGES: Final = 64
"""Streams of events that one worker has open; more are refused."""
_OURS: Final = "/llama/v1/"


def is_shown(trace: Trace) -> bool:
    """Whether a request is one of those that the page lists: it asks a model for something."""
    return trace.method == "POST" and bool(trace.route) and not trace.route.startswith(_OURS)


class Watch:
    """Of one worker, on its loop."""

    def __init__(
        self,
        ledger: LedgerClient,
        traces: Traces,
        look: Callable[[], Awaitable[bytes]],
    ) -> None:
        """``look`` returns the node as it is, as JSON."""
        self.board = Board()
        """As far as it was read, while a page is open."""
        self.epoch = 0
        """Of the ledger that the board was read from."""
        self.is_read = False
        """Whether the board is whole."""
        self.snapshot = b""
        self.snapshot_number = 0
        self._ledger = ledger
        self._traces = traces
        self._look_at = look
        self._n_pages = 0
        self._ended: deque[Noted] = deque(maxlen=MAX_ENDED)
        """All that the next process of the ledger will be sent again."""
        self._unsent: deque[Noted] = deque(maxlen=MAX_ENDED)
        self._sent: dict[str, object] = {}
        """In what state each request that runs was sent last."""
        self._epoch = 0
        """Of the ledger that has all that was sent."""
        self._task: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        traces.on_end.append(self._note_end)
        ledger.on_watched = self._wake

    @property
    def is_full(self) -> bool:
        """Whether no more pages may open here."""
        return self._n_pages >= MAX_PAGES

    @contextlib.contextmanager
    def page(self) -> Iterator[None]:
        """A page is open."""
        if not self._n_pages:
            self.epoch, self.is_read, self.board = 0, False, Board()
            self.snapshot, self.snapshot_number = b"", 0
        self._n_pages += 1
        self._wake()
        try:
            yield
        finally:
            self._n_pages -= 1

    async def changed(self, within_s: float) -> None:
        """Wait until there is something new, or for some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()

    # ── what is sent ────────────────────────────────────────────────────────────────────────────

    def _note_end(self, trace: Trace) -> None:
        if is_shown(trace):
            one = _noted(trace)
            self._ended.append(one)
            self._unsent.append(one)
            self._wake()

    def _wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Exchange with the ledger until there is nothing to send and no page is open."""
        while True:
            if not self._n_pages:
                await asyncio.sleep(EVERY_S)  # those that end meanwhile go together
            is_all = True
            with contextlib.suppress(LedgerGone, errors.LlamaActorsError):  # it is sent again
                is_all = await self._exchange()
            if not (self._n_pages or self._unsent or self._ledger.is_watched):
                self._sent.clear()
                return
            if is_all and self._n_pages:
                await asyncio.sleep(EVERY_S)

    async def _exchange(self) -> bool:
        """Send, and read what is new; whether there is no more. LedgerGone."""
        is_watched = bool(self._n_pages) or self._ledger.is_watched
        ended, running = self._news(is_watched=is_watched)
        states = {trace.id: _state_of(trace) for trace in running}
        noted = (*ended, *map(_noted, running))
        ids = [one.id for one in self._traces.running.values() if is_shown(one)]
        ids += [one.id for one in self._unsent]
        seen = Seen(self.epoch, self.board.last, self.snapshot_number) if self._n_pages else None

        def message(ref: str) -> object:
            return NoteRequests(
                ref, self._ledger.who, noted, tuple(ids) if is_watched else None, seen
            )

        answer = await self._ledger.ask(message, ASK_S)
        if not isinstance(answer, RequestsNoted):
            raise LedgerGone("another answer came")
        self._ledger.is_watched = answer.is_watched
        if answer.epoch != self._epoch:  # it has what was sent just now, and nothing else
            self._epoch = answer.epoch
            self._unsent, self._sent = self._ended.copy(), {}
        self._sent |= states
        for name in self._sent.keys() - set(ids):
            del self._sent[name]
        for one in ended:
            with contextlib.suppress(ValueError):
                self._unsent.remove(one)
        return self._read(answer)

    def _news(self, *, is_watched: bool) -> tuple[list[Noted], list[Trace]]:
        """What one message takes: requests that have ended, and some that run."""
        ended: list[Noted] = []
        n_bytes = 0
        for one in self._unsent:
            n_bytes += len(one.body)
            if ended and n_bytes > MAX_BYTES:
                return ended, []
            ended.append(one)
        changed = [
            trace
            for trace in self._traces.running.values()
            if is_watched and is_shown(trace) and self._sent.get(trace.id) != _state_of(trace)
        ]
        changed.sort(key=lambda trace: trace.id in self._sent)  # new ones first
        return ended, changed[: max(1, (MAX_BYTES - n_bytes) // _RUNNING_BYTES)]

    # ── what is read ────────────────────────────────────────────────────────────────────────────

    def _read(self, answer: RequestsNoted) -> bool:
        changes = answer.changes
        if answer.must_look and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())
        if changes is None:
            return not self._unsent
        is_new = changes.is_all or bool(changes.requests or changes.gone)
        if answer.epoch != self.epoch:
            self.board, self.epoch, self.is_read = Board(), answer.epoch, False
        self.board.take(changes)
        if answer.snapshot is not None:
            self.snapshot, is_new = zlib.decompress(answer.snapshot), True
        self.snapshot_number = answer.snapshot_number
        is_all = changes.is_last and not self._unsent
        if is_all and not self.is_read:
            self.is_read = is_new = True
        if is_new:
            self._changed.set()
            self._changed = asyncio.Event()
        return is_all

    async def _look(self) -> None:
        with contextlib.suppress(errors.LlamaActorsError):
            snapshot = await self._look_at()
            await self._ledger.tell(NoteSnapshot(zlib.compress(snapshot, 1)))


_RUNNING_BYTES: Final = 1 << 10
"""About what the record of a request that runs has."""


def _state_of(trace: Trace) -> object:
    replies = [
        (one.phase, one.place, one.n_read, one.n_generated, len(one.pauses))
        for one in trace.replies.values()
    ]
    return trace.model, trace.status, trace.n_taken, tuple(replies)


def _noted(trace: Trace) -> Noted:
    body = msgspec.json.encode(trace.record())
    return Noted(trace.id, trace.key, trace.worker, trace.outcome is not None, body)
