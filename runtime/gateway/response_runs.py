"""Responses that run, or have ended lately: each is a task with a log of its frames.

A response is shown from its log, so several readers can, from any place, also after its end, and
whether or not the client that asked for it is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from runtime import errors
from runtime.client.results import Completion, CompletionEvent, Event, TokenEvent
from runtime.gateway.generation import BrokenStream, Generation
from runtime.gateway.kept_responses import KeptResponses
from runtime.gateway.responses_store import stored
from runtime.gateway.wire import sse
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Failure, failure_of
from runtime.gateway.wire.rates import Rates
from runtime.gateway.wire.responses_answer import ResponseAnswer
from runtime.gateway.wire.responses_items import Item
from runtime.gateway.wire.tokens import ids_of
from runtime.gateway.wire.wanted import Answer, Head, Wanted

if TYPE_CHECKING:
    from runtime.client.async_stream import AsyncStream
    from runtime.gateway.call import Call
    from runtime.gateway.keys import Key
    from runtime.gateway.service import Service

LOG_BYTES: Final = 4 << 20
"""Of the frames of one response; the oldest go first."""
LOGS_BYTES: Final = 64 << 20
LOG_TTL_S: Final = 300.0
"""After the end."""
_CANCEL_S: Final = 10.0
_LOG: Final = logging.getLogger("supervision.http")


class FrameLog:
    """The last frames of one response, each with its number from 0."""

    def __init__(self, max_bytes: int = LOG_BYTES) -> None:
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self.first = 0
        """Number of the oldest that is kept."""
        self.n_bytes = 0

    @property
    def next(self) -> int:
        """Number of the next one that comes."""
        return self.first + len(self._frames)

    def add(self, frames: Sequence[bytes]) -> None:
        """Append; the last one always stays, however big."""
        self._frames.extend(frames)
        self.n_bytes += sum(map(len, frames))
        while self.n_bytes > self._max_bytes and len(self._frames) > 1:
            self.n_bytes -= len(self._frames.popleft())
            self.first += 1

    def since(self, number: int) -> bytes:
        """The frame with this number, and all after it."""
        start = max(0, number - self.first)
        return b"".join(self._frames[at] for at in range(start, len(self._frames)))


class ResponseRun:
    """One response: a task that generates it, whatever is read of it."""

    def __init__(
        self,
        service: Service,
        key: Key,
        head: Head,
        wanted: Wanted,
        answer: ResponseAnswer,
        sent: list[Item],
        store: KeptResponses | None,
    ) -> None:
        """``sent``: the items that it answers. ``store``: where it is kept at its end."""
        self.answer = answer
        self.sent = sent
        self._n_sent = len(encode(sent))
        self.owner = key.name
        self.log = FrameLog()
        self.error: errors.LlamaActorsError | None = None
        """What it has failed with."""
        self.ended_at: float | None = None
        """By the monotonic clock."""
        self.rates: Rates | None = None
        """What was left to its key when it began."""
        self._service = service
        self._head = head
        self._wanted = wanted
        self._store = store
        self._changed = asyncio.Event()
        self._stream: AsyncStream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def n_bytes(self) -> int:
        """What it takes to keep it."""
        return self._n_sent + self.log.n_bytes

    @property
    def is_over(self) -> bool:
        return self.ended_at is not None

    def start(self, stream: AsyncStream) -> None:
        """Begin."""
        self._stream = stream
        self._task = asyncio.create_task(self._run(stream))

    async def cancel(self) -> None:
        """End it with what there is; returns when it has ended."""
        if self._stream is None or self._task is None or self.is_over:
            return
        self._stream.cancel()
        await asyncio.wait({self._task}, timeout=_CANCEL_S)
        await self.leave()

    async def leave(self) -> None:
        """Drop what still runs."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ── for an answer that a client waits for ───────────────────────────────────────────────────

    def show(self, frames: Sequence[bytes]) -> bytes:
        """Log frames; they are written one after the other."""
        self._add(frames)
        return b"".join(frames)

    def finish(self, frames: Sequence[bytes]) -> bytes:
        """The same for the last ones; what is stored is stored before they are read."""
        if self._store is not None:
            self._task = asyncio.ensure_future(self._keep())
        self._end(frames)
        return b"".join(frames)

    async def settled(self) -> None:
        """Wait until ``finish`` has stored it, or that has to be retried."""
        if self._task is not None:
            await asyncio.wait({self._task})

    # ── for readers ─────────────────────────────────────────────────────────────────────────────

    async def changed(self) -> None:
        """Wait until the log has more, or all."""
        if not self.is_over:
            await self._changed.wait()

    # ── the task ────────────────────────────────────────────────────────────────────────────────

    async def _run(self, stream: AsyncStream) -> None:
        done: Completion | None = None
        try:
            self._add(self.answer.begin())
            async with stream:
                async for event in stream:
                    if self._wanted.needs_pieces and isinstance(event, TokenEvent):
                        await self._service.need_pieces(self._head.model, ids_of(event))
                    if isinstance(event, CompletionEvent):
                        done = event.completion
                    self._add(self.answer.event(event))
            if done is not None:
                self._service.counts.note(done)
            await self._keep()
            self._end(self.answer.end())
        except errors.LlamaActorsError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            self._end(self.answer.cancelled())
            raise
        except Exception as error:  # noqa: BLE001 - a fault here is an answer, and a log line
            _LOG.exception("the response %s failed", self.answer.id)
            await self._fail(errors.EngineFailed(failure_of(error).message))
        finally:
            self._service.end(self.answer.id, _n_computed(done))

    async def _fail(self, error: errors.LlamaActorsError) -> None:
        frames = self.answer.failed(failure_of(error))
        await self._keep()
        self.error = error
        self._end(frames)

    async def keep_begun(self) -> None:
        """Store that it runs: should its process end, it is known that it has failed."""
        await self._keep()

    async def _keep(self) -> None:
        """Before its last frame is shown: a client may continue it at once."""
        if self._store is None:
            return
        who = self._service.ledger.who
        await self._store.keep(stored(self.answer.response(), self.sent, self.owner, who))

    def _add(self, frames: Sequence[bytes]) -> None:
        if frames:
            self.log.add(frames)
            self._changed.set()
            self._changed = asyncio.Event()

    def _end(self, frames: Sequence[bytes]) -> None:
        self.ended_at = time.monotonic()
        self._add(frames)


def _n_computed(done: Completion | None) -> int:
    if done is None:
        return 0
    usage = done.usage
    return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens


class Foreground(Answer):
    """The answer to a request for a response that its client waits for; see ``wanted.Answer``.

    It is logged as those in the background are, so that it can be read again.
    """

    content_type = sse.CONTENT_TYPE
    needs_events = True
    failure_ends = True

    def __init__(self, run: ResponseRun, begun: Callable[[], None]) -> None:
        """``begun`` is called when the response has an id that its client knows."""
        self._run = run
        self._begun = begun
        self._is_known = False

    def begin(self) -> bytes:
        self._know()
        return self._run.show(self._run.answer.begin())

    def event(self, number: int, event: Event) -> bytes:  # noqa: ARG002 - there is one reply
        return self._run.show(self._run.answer.event(event))

    def end(self) -> bytes:
        return self._run.finish(self._run.answer.end())

    def failed(self, failure: Failure) -> bytes:
        return self._run.finish(self._run.answer.failed(failure))

    def keepalive(self) -> bytes:
        return sse.COMMENT

    def whole(self, done: Sequence[Completion]) -> bytes:  # noqa: ARG002 - it has read the events
        self._know()
        self._run.finish(self._run.answer.end())
        return encode(self._run.answer.response())

    def _know(self) -> None:
        if not self._is_known:
            self._is_known = True
            self._begun()


class Follower(Answer):
    """Shows a run from its log as the answer of one request; see ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE

    def __init__(self, run: ResponseRun, after: int = -1) -> None:
        """Frames from the one after ``after``."""
        self._run = run
        self._next = after + 1

    async def events(self) -> AsyncGenerator[tuple[int, Any]]:
        """Frames as they come, several at once."""
        run = self._run
        while True:
            is_last = run.is_over
            if self._next < run.log.first:
                raise BrokenStream  # it reads so slowly that what follows is kept no more
            frames = self._take()
            if frames or is_last:
                yield 0, frames
            if is_last:
                return
            if run.log.next <= self._next:
                await run.changed()

    def begin(self) -> bytes:
        return b""

    def event(self, number: int, event: Any) -> bytes:  # noqa: ARG002 - there is one reply
        frames: bytes = event
        return frames

    def end(self) -> bytes:
        return b""

    def failed(self, failure: Failure) -> bytes:  # noqa: ARG002 - the log has it
        return self._take()

    def keepalive(self) -> bytes:
        return sse.COMMENT

    def whole(self, done: Sequence[Completion]) -> bytes:  # noqa: ARG002 - the run has it
        return encode(self._run.answer.response())

    def _take(self) -> bytes:
        log = self._run.log
        frames = log.since(self._next)
        self._next = max(self._next, log.next)
        return frames


class Shown(Generation):
    """A run as it is read from its log."""

    def __init__(self, call: Call, head: Head, follower: Follower) -> None:
        wanted = Wanted(model="", kind="chat", inputs=(), is_stream=True)
        super().__init__(call.service, wanted, head, follower, _never_begun, call.own_headers())
        self._follower = follower

    def _events(self) -> AsyncGenerator[tuple[int, Any]]:
        return self._follower.events()


def _never_begun(number: int) -> AsyncStream:
    raise AssertionError(f"reply {number} of a log")


class Responses:
    """The responses of one worker, and what all have stored."""

    def __init__(self, service: Service) -> None:
        self.store = KeptResponses(service.ledger)
        self._service = service
        self._runs: dict[str, ResponseRun] = {}

    async def start(
        self, key: Key, head: Head, wanted: Wanted, answer: ResponseAnswer, sent: list[Item]
    ) -> ResponseRun:
        """Begin a response in the background; raises what the request is refused with."""
        service = self._service
        client = await service.client()
        stream = service.stream(client, head, wanted, 0, key)
        rates = await service.begin(answer.id, key)
        run = self.made(key, head, wanted, answer, sent)
        run.rates = rates
        self.keep(run)
        await run.keep_begun()
        run.start(stream)
        return run

    def made(
        self, key: Key, head: Head, wanted: Wanted, answer: ResponseAnswer, sent: list[Item]
    ) -> ResponseRun:
        """A response that has not begun."""
        store = self.store if answer.is_stored else None
        return ResponseRun(self._service, key, head, wanted, answer, sent, store)

    def keep(self, run: ResponseRun) -> None:
        """Let it be found by its id, if it is to be."""
        if run.answer.is_stored:
            self._tidy(time.monotonic())
            self._runs[run.answer.id] = run

    def find(self, name: str, key: Key) -> ResponseRun | None:
        """A response that runs, or whose log is kept."""
        self._tidy(time.monotonic())
        found = self._runs.get(name)
        return found if found is not None and found.owner == key.name else None

    async def forget(self, name: str, key: Key) -> bool:
        """Drop all of a response; False: it is not there."""
        run = self.find(name, key)
        if run is not None:
            self.drop(run)
            await run.leave()
        was_stored, _ = await self.store.forget(name, key.name)
        return was_stored or run is not None

    def drop(self, run: ResponseRun) -> None:
        """Keep its log no more."""
        with contextlib.suppress(KeyError):
            del self._runs[run.answer.id]

    def _tidy(self, now: float) -> None:
        """Drop logs that are too old, and the oldest of those that are too much together."""
        n_bytes = sum(run.n_bytes for run in self._runs.values())
        ended = [one for one in self._runs.values() if one.ended_at is not None]
        for run in sorted(ended, key=lambda one: one.ended_at or 0.0):
            if now - (run.ended_at or 0.0) <= LOG_TTL_S and n_bytes <= LOGS_BYTES:
                break
            n_bytes -= run.n_bytes
            self.drop(run)
