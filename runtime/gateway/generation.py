"""One HTTP request's replies: begun, merged, shown as they come, cancelled when unread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from runtime import errors
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    LoadEvent,
    TokenEvent,
)
from runtime.gateway.direct import DirectTokens, Writer
from runtime.gateway.stream_log import Logged, Mark, StreamLog
from runtime.gateway.time_limit import Begin, ReplyStream
from runtime.gateway.trace import NOT_SHOWN, Trace
from runtime.gateway.wire.failure import failure_of
from runtime.gateway.wire.tokens import ids_of
from runtime.gateway.wire.wanted import Answer, Head, Wanted

if TYPE_CHECKING:
    from runtime.gateway.service import Service

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]
AnswerWhole = Callable[[bytes], Awaitable[None]]
Numbered = tuple[int, Event]
Batch = list[Numbered]
"""Events that have come together."""

AT_ONCE: Final = 64
"""Replies of one request that a node has at the same time; the others follow as these end."""
STREAM_HEADERS: Final = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class ClientGone(Exception):
    """The client has closed the connection."""


async def merged(begin: Sequence[Begin | None], n: int) -> AsyncGenerator[Batch]:
    """The events of several replies, ``n`` to each input, with their numbers.

    Tokens that have come while others were shown are one batch, and so one write.

    The first reply to an input begins alone; once its first token has come, its prompt is in the
    context, and the others read it from there. None: a reply that has ended already.
    """
    if len(begin) == 1:
        if begin[0] is not None:
            async with begin[0]() as only:
                async for event in only:
                    yield [(0, event), *[(0, more) for more in only.ready()]]
        return
    several = _Several(begin, n)
    try:
        while (item := await several.next()) is not None:
            yield item
    finally:
        await several.leave()


class _Several:
    """Replies that run at the same time, each in a task, with one queue for their events."""

    def __init__(self, begin: Sequence[Begin | None], n: int) -> None:
        self._n = n
        self._queue: asyncio.Queue[Batch | BaseException | None] = asyncio.Queue()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._gates = [asyncio.Event() for _ in range(len(begin) // n)]
        self._left = len(begin)
        self._tasks = [asyncio.create_task(self._run(*one)) for one in enumerate(begin)]

    async def _run(self, number: int, begin: Begin | None) -> None:
        gate = self._gates[number // self._n]
        if begin is None:
            gate.set()
            self._queue.put_nowait(None)
            return
        if number % self._n:
            await gate.wait()
        try:
            async with self._slots, begin() as stream:
                async for event in stream:
                    if _is_generated(event):
                        gate.set()
                    batch = [event, *stream.ready()]
                    self._queue.put_nowait([(number, one) for one in batch])
        except Exception as error:  # noqa: BLE001 - ``next`` raises it
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)

    async def next(self) -> Batch | None:
        """The next events of any reply, None after the last; raises what one fails with."""
        while self._left:
            item = await self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                return item
            self._left -= 1
        return None

    async def leave(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _is_generated(event: Event) -> bool:
    """Whether the prompt has been read before this."""
    return isinstance(event, CompletionEvent) or (
        isinstance(event, TokenEvent) and event.kind != "prompt"
    )


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Socket:
    """What is known of the socket that an answer goes to."""

    log: StreamLog | None = None
    """Where the answer is logged, so that a successor can continue it."""
    is_paused: Callable[[], bool] = _never
    """Whether more was written than the client reads at present."""
    logged: Logged | None = None
    """What a predecessor had logged, whose bytes are sent, or on their way."""
    notes_events: bool = True
    """Whether a successor needs the events, beside marks and bytes."""
    writer: Writer | None = None
    """Writes parts of the answer beside ``send``; None: there is no such way."""


class Generation:
    """The replies to one request, as an answer of one API."""

    def __init__(
        self,
        service: Service,
        wanted: Wanted,
        head: Head,
        answer: Answer,
        begin: Callable[[int], ReplyStream],
        headers: Sequence[tuple[bytes, bytes]] = (),
        socket: Socket | None = None,
        trace: Trace | None = None,
    ) -> None:
        """``begin`` makes the stream of the reply with a number. ``trace`` sees every event."""
        socket = socket or Socket()
        self.trace = trace or Trace("", method="", route="", api="", client="")
        self._service = service
        self._wanted = wanted
        self._head = head
        self._answer = answer
        self._begin = begin
        self._headers = list(headers)
        self._log = socket.log
        self._notes_events = socket.notes_events
        self._is_paused = socket.is_paused
        self._logged = socket.logged
        self._writer = socket.writer
        self._only: ReplyStream | None = None
        """The stream of the reply, where there is one alone."""
        self.done: dict[int, Completion] = {}
        """What has ended, by the number of the reply."""

    @property
    def n_computed(self) -> int:
        """Tokens that were computed for it: what a key's limits count."""
        firsts = [one for number, one in self.done.items() if number % self._wanted.n == 0]
        read = sum(one.usage.prompt_tokens - one.usage.cached_tokens for one in firsts)
        cut = [(number, one) for number, one in self.trace.replies.items() if one.done is None]
        read += sum(one.n_prompt_computed for number, one in cut if number % self._wanted.n == 0)
        generated = sum(one.usage.completion_tokens for one in self.done.values())
        return read + generated + sum(one.n_generated for _, one in cut)

    async def run(self, receive: Receive, send: Send, answer: AnswerWhole) -> None:
        """Answer the request, by ``answer`` where it is one object.

        Raises what it fails with before the answer has begun, ClientGone.
        """
        work, has_gone = asyncio.current_task(), False

        async def watch() -> None:
            nonlocal has_gone
            await _gone(receive)
            has_gone = True
            if work is not None:
                work.cancel()

        watcher = asyncio.create_task(watch())
        try:
            await self._work(send, answer)
        except asyncio.CancelledError:
            if has_gone and work is not None and not work.uncancel():
                raise ClientGone from None
            raise
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def run_through(self, send: Send, answer: AnswerWhole) -> None:
        """The same to the end, also when the client has gone."""
        await self._work(send, answer)

    async def _work(self, send: Send, answer: AnswerWhole) -> None:
        async with contextlib.aclosing(self._events()) as events:
            if not self._wanted.is_stream:
                await answer(await self._one(events))
            elif self._logged is not None and self._logged.data:
                await self._continue(self._logged, events, send)
            else:
                await self._stream(events, send)

    async def _events(self) -> AsyncGenerator[Batch]:
        """What is shown; what is only for the trace is left out."""
        trace = self.trace
        async with contextlib.aclosing(merged(self._replies(), self._wanted.n)) as batches:
            async for batch in batches:
                trace.note_all(batch)
                shown = [one for one in batch if self._is_shown(one[1])]
                if shown:
                    yield shown

    def _is_shown(self, event: Event) -> bool:
        if type(event) is LoadEvent:
            return self._wanted.is_stream and self._answer.shows_load
        return type(event) not in NOT_SHOWN

    def _replies(self) -> list[Begin | None]:
        return [self._reply(number) for number in range(self._wanted.n_replies)]

    def _reply(self, number: int) -> Begin | None:
        known = [] if self._logged is None else self._logged.events(number)
        if known and isinstance(last := known[-1], CompletionEvent):
            self.done[number] = last.completion
            self.trace.replay(number, last)
            return None
        return partial(self._begun, number, known)

    def _begun(self, number: int, known: Sequence[Event]) -> ReplyStream:
        """The stream of a reply, after these of its events."""
        stream = self._begin(number)
        if known:
            stream.continue_after(known)
        if self._wanted.n_replies == 1:
            self._only = stream
        return stream

    # ── one object ──────────────────────────────────────────────────────────────────────────────

    async def _one(self, events: AsyncGenerator[Batch]) -> bytes:
        async for batch in events:
            for number, event in batch:
                self._count(number, event)
                if self._answer.needs_events:
                    await self._prepare(event)
                    self._answer.event(number, event)
        done = [self.done[number] for number in sorted(self.done)]
        if self._wanted.needs_pieces:
            await self._need(token for one in done for token in ids_of(one))
        return self._answer.whole(done)

    async def _need(self, tokens: Iterable[int]) -> None:
        await self._service.need_pieces(self._head.model, tokens)

    # ── a stream ────────────────────────────────────────────────────────────────────────────────

    async def _stream(self, events: AsyncGenerator[Batch], send: Send) -> None:
        """Nothing is sent until something has come, so that a refusal has a status of its own.

        At the latest after ``keepalive_s``: a long queue is not silent.
        """
        early: asyncio.Task[Pulse] | None = None

        def begin_early() -> None:
            nonlocal early
            early = asyncio.create_task(self._begin_stream(send, is_early=True))

        every_s = self._service.settings.keepalive_s
        timer = asyncio.get_running_loop().call_later(every_s, begin_early)
        first: Batch | BaseException
        try:
            first = await anext(events)
        except errors.LlamaActorsError as error:
            if early is None:
                raise
            first = error
        except BaseException:
            if early is not None:
                early.cancel()
                await asyncio.gather(early, return_exceptions=True)
            raise
        finally:
            timer.cancel()
        with await (early or self._begin_stream(send)) as pulse:
            await self._follow(pulse, _after(first, events))

    async def _begin_stream(self, send: Send, *, is_early: bool = False) -> Pulse:
        """The head, and what the API has before the first event; ``is_early``: none has come."""
        headers = [(b"content-type", self._answer.content_type.encode())]
        headers += [*self._headers, *STREAM_HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        pulse = self._pulse(send)
        try:
            await self._mark(pulse, "begin", self._answer.begin())
            if is_early:
                await pulse.send(self._answer.keepalive())
        except BaseException:
            pulse.stop()
            raise
        return pulse

    async def _continue(self, logged: Logged, events: AsyncGenerator[Batch], send: Send) -> None:
        """Go on after what a predecessor has logged; the renderer reads it, and nothing is sent."""
        begin = self._answer.begin()
        for number, item in logged.items:
            if not isinstance(item, Mark):
                self.trace.replay(number, item)
                self._count(number, item)
                await self._prepare(item)
                self._answer.event(number, item)
        with self._pulse(send) as pulse:
            if "begin" not in logged.marks:
                await self._mark(pulse, "begin", begin)
            await self._follow(pulse, events)

    async def _follow(self, pulse: Pulse, events: AsyncGenerator[Batch]) -> None:
        """Show events as they come, and then the end, or why there is none."""
        direct = self._direct(pulse)
        try:
            async for batch in events:
                if direct is not None:
                    direct.check()
                if self._wanted.needs_pieces:
                    for _, event in batch:
                        await self._prepare(event)
                await pulse.send(b"".join([self._shown(*one) for one in batch]))
                if direct is not None and self._only is not None:
                    self._only.divert(direct)
            self._note(-1, Mark("end"))
            await pulse.finish(self._answer.end())
        except errors.LlamaActorsError as error:
            self._note(-1, Mark("failed"))
            frames = self._answer.failed(failure_of(error))
            await pulse.finish(frames, is_clean=self._answer.failure_ends)

    def _direct(self, pulse: Pulse) -> DirectTokens | None:
        """What shows tokens while ``_follow`` waits for an event; None where it must see each."""
        if self._writer is None or self._wanted.n_replies != 1 or self._wanted.needs_pieces:
            return None
        return DirectTokens(self._writer, partial(self._shown_directly, pulse))

    def _shown_directly(self, pulse: Pulse, events: Sequence[TokenEvent]) -> bytes:
        for event in events:
            self.trace.note(0, event)
        pulse.beat()
        return b"".join([self._shown(0, event) for event in events])

    def _count(self, number: int, event: Event) -> None:
        if isinstance(event, CompletionEvent):
            self.done[number] = event.completion

    def _shown(self, number: int, event: Event) -> bytes:
        self._count(number, event)
        if type(event) is not LoadEvent:  # a successor begins with what the model has done
            self._note(number, event)
        return self._answer.event(number, event)

    async def _prepare(self, event: Event) -> None:
        if self._wanted.needs_pieces and isinstance(event, TokenEvent):
            await self._need(ids_of(event))

    async def _mark(self, pulse: Pulse, name: str, frames: bytes) -> None:
        if frames:
            self._note(-1, Mark(name))
            await pulse.send(frames)

    def _note(self, number: int, item: Event | Mark) -> None:
        if self._log is not None and (self._notes_events or isinstance(item, Mark)):
            self._log.note(number, item)

    def _pulse(self, send: Send) -> Pulse:
        every_s = self._service.settings.keepalive_s
        return Pulse(send, every_s, self._answer.keepalive, self._is_paused)


async def _after(
    first: Batch | BaseException, events: AsyncGenerator[Batch]
) -> AsyncGenerator[Batch]:
    """The first events, which have come already, or what came in their place; and the others."""
    if isinstance(first, BaseException):
        raise first
    yield first
    async for one in events:
        yield one


class Pulse:
    """Sends the frames of a stream, and a comment where none was sent for some seconds."""

    def __init__(
        self,
        send: Send,
        every_s: float,
        comment: Callable[[], bytes],
        is_paused: Callable[[], bool],
    ) -> None:
        """``is_paused``: more was written than the client reads; then a comment shows nothing."""
        self._send = send
        self._every_s = every_s
        self._comment = comment
        self._is_paused = is_paused
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._is_sending = False
        self._is_over = False
        self._task: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(every_s, self._look)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def send(self, frames: bytes) -> None:
        """Send; waits while the client is slow."""
        if not frames:
            return
        self._is_sending = True
        try:
            await self._send({"type": "http.response.body", "body": frames, "more_body": True})
        finally:
            self._is_sending = False
            self.beat()

    def beat(self) -> None:
        """Something was sent."""
        self._last = self._loop.time()

    async def finish(self, frames: bytes, *, is_clean: bool = True) -> None:
        """Send the last frames, and end the stream.

        Not ``is_clean``: the connection breaks instead of ending, because clients take a stream
        that ends without its last event for a whole one.
        """
        self.stop()
        if self._task is not None:
            await asyncio.wait({self._task})
        if not is_clean:
            await self.send(frames)
            raise BrokenStream
        await self._send({"type": "http.response.body", "body": frames, "more_body": False})

    def stop(self) -> None:
        """Send no more comments."""
        self._is_over = True
        self._timer.cancel()

    def _look(self) -> None:
        if self._is_over:
            return
        idle_s = self._loop.time() - self._last
        if idle_s >= self._every_s and not self._is_sending:
            self._task = self._loop.create_task(self._say())
            idle_s = 0.0
        self._timer = self._loop.call_later(max(0.01, self._every_s - idle_s), self._look)

    async def _say(self) -> None:
        # Not while frames wait to be written: what is written next is what was noted last.
        if not (self._is_over or self._is_sending or self._is_paused()):
            await self.send(self._comment())


class BrokenStream(Exception):
    """A stream has failed, and shows that: the connection is closed without the stream's end."""


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
