"""Events of one request, from the thread that reads them to a coroutine.

The thread waits when the coroutine is ``BUFFERED`` events behind: what comes meanwhile stays where
it was sent from, as with a reader that does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Final, Self

from runtime import errors
from runtime.client.results import Event
from runtime.client.stream import CompletionStream
from supervision import forks

BUFFERED: Final = 256

_End = BaseException | None


class Feed:
    """One stream on its way between two threads."""

    def __init__(self, events: CompletionStream, cancels: Executor, open_feeds: set[Feed]) -> None:
        """``cancels`` runs what tells the node to stop. Used on the loop's thread."""
        self._events = events
        self._cancels = cancels
        self._open = open_feeds
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()
        self._is_left = False
        self._end: list[_End] = []
        self._thread: Future[None] | None = None
        self._process = forks.here()

    # ── on the loop ─────────────────────────────────────────────────────────────────────────────

    def begin(self, streams: Executor) -> None:
        """Read it on one of these threads, as soon as one is free."""
        self._open.add(self)
        self._thread = streams.submit(self._read)
        self._thread.add_done_callback(self._thread_ended)
        ends_at = self._events.start_clock()
        if ends_at is not None:
            self._loop.call_later(ends_at - time.monotonic(), self._expire)

    async def next(self) -> Event | None:
        """The next event, or None at the end; raises what the stream raised."""
        self._require_own()
        while True:
            with self._changed:
                if self._waiting:
                    event = self._waiting.popleft()
                    self._changed.notify()
                    return event
                if self._end:
                    error = self._end[0]
                    if error is not None:
                        raise error
                    return None
                self._news.clear()
            await self._news.wait()

    def leave(self) -> None:
        """No reader is left: cancel what still runs. Returns at once."""
        if not forks.is_here(self._process):
            return  # a copy in a forked child; the parent still reads
        with self._changed:
            if self._is_left:
                return
            self._is_left = True
            self._changed.notify()
            is_over = bool(self._end)
        if is_over or (self._thread is not None and self._thread.cancel()):
            return
        with contextlib.suppress(RuntimeError):  # the node is closed, and the request with it
            self._cancels.submit(self._events.cancel)

    def _expire(self) -> None:
        """The caller's time is over: do not wait for a thread any longer."""
        if self._thread is not None and self._thread.cancel():
            with self._changed:
                self._end.append(
                    errors.DeadlineExceeded(
                        "no stream of this AsyncNode ended within timeout_s to make room for this"
                    )
                )
            self._news.set()

    def _require_own(self) -> None:
        if not forks.is_here(self._process):
            raise errors.ForkedProcess(
                f"this stream was begun in process {self._process[0]}, from which this one was "
                "forked; send the request again in this process"
            )

    def _thread_ended(self, _: Future[None]) -> None:
        self._open.discard(self)  # here, for the loop may have ended already
        self._tell(self._forget)

    def _forget(self) -> None:
        with self._changed:
            if not self._end:  # it got no thread before the node was closed
                self._end.append(errors.NoReply("the node was closed before this was sent"))
        self._news.set()

    # ── on the thread ───────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        error: _End = None
        try:
            with self._events as events:
                for event in events:
                    if not self._put(event):
                        break
        except BaseException as raised:  # noqa: BLE001 - it is raised where the stream is read
            error = raised
        with self._changed:
            self._end.append(error)
        self._tell(self._news.set)

    def _put(self, event: Event) -> bool:
        """Whether anybody still wants more."""
        with self._changed:
            while len(self._waiting) >= BUFFERED and not self._is_left:
                self._changed.wait()
            if self._is_left:
                return False
            self._waiting.append(event)
            is_first = len(self._waiting) == 1
        if is_first:
            self._tell(self._news.set)
        return True

    def _tell(self, hear: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody to tell
            self._loop.call_soon_threadsafe(hear)


class AsyncStream:
    """Events of one request, the last one a ``CompletionEvent``.

    The request is sent by the first step. Leaving it early, by ``aclose``, ``async with``, the end
    of the task or just by dropping it, cancels what still runs; so does ``cancel``, but then the
    reader gets what there is and a completion that says ``cancelled``.
    """

    def __init__(
        self,
        events: CompletionStream,
        streams: Executor,
        cancels: Executor,
        open_feeds: set[Feed],
    ) -> None:
        self._source = events
        self._cancels = cancels
        self._events = _events(events, streams, cancels, open_feeds)

    @property
    def request_id(self) -> str | None:
        """None until the node has accepted the request."""
        return self._source.request_id

    def cancel(self) -> None:
        """End the request; does not wait, and does not block."""
        self._source.require_own()
        with contextlib.suppress(RuntimeError):
            self._cancels.submit(self._source.cancel)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Leave it; what still runs is cancelled."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _events(
    events: CompletionStream, streams: Executor, cancels: Executor, open_feeds: set[Feed]
) -> AsyncGenerator[Event, None]:
    feed = Feed(events, cancels, open_feeds)
    feed.begin(streams)
    try:
        while (event := await feed.next()) is not None:
            yield event
    finally:
        feed.leave()
