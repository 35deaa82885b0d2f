"""Responses that run, or have ended lately: each is a task with a log of its frames.

A response is shown from its log, so several readers can, from any place, also after its end, and
whether or not the client that asked for it is there. One in the background has a log on the shelf
too: other workers show it from there, and the next process of this one goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from runtime import errors
from runtime.client.results import Completion, CompletionEvent, Event, TokenEvent
from runtime.gateway.explained import Explained
from runtime.gateway.frame_log import FrameLog
from runtime.gateway.kept_responses import KeptResponses
from runtime.gateway.ledger_client import LedgerGone
from runtime.gateway.ledger_messages import EndResponse
from runtime.gateway.responses_store import Stored, stored
from runtime.gateway.shelved_run import LOOK_S, ShelvedRun, run_name
from runtime.gateway.stream_log import HELD, HELD_S, Logged, LoggedHead, Mark, StreamLog
from runtime.gateway.time_limit import time_limit_of
from runtime.gateway.trace import NOT_SHOWN, Trace
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import failure_of
from runtime.gateway.wire.rates import Rates
from runtime.gateway.wire.responses_answer import ResponseAnswer
from runtime.gateway.wire.responses_items import Item
from runtime.gateway.wire.tokens import ids_of
from runtime.gateway.wire.wanted import Head, Wanted

if TYPE_CHECKING:
    from runtime.client.async_client import AsyncClient
    from runtime.gateway.keys import Key
    from runtime.gateway.service import Service
    from runtime.gateway.time_limit import ReplyStream
    from supervision.shelf import ShelfClient

WORKER: Final = "http:"
"""Beginning of the ids of workers in the tree."""
MAX_LOGS: Final = 256
_CANCEL_S: Final = 10.0
_LOG: Final = logging.getLogger("supervision.http")


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
        self.key = key
        self.owner = key.name
        self.log = FrameLog()
        self.error: errors.LlamaActorsError | None = None
        """What it has failed with."""
        self.ended_at: float | None = None
        """By the monotonic clock."""
        self.rates: Rates | None = None
        """What was left to its key when it began."""
        self.shelved: StreamLog | None = None
        """Its log on the shelf."""
        self.trace = _trace_of(key, head, wanted, answer)
        """Of one in the background; its request has another, and has ended."""
        self._has_begun = False
        self._is_left = self._is_cancelled = self._is_continued = False
        self._service = service
        self._head = head
        self._wanted = wanted
        self._store = store
        self._changed = asyncio.Event()
        self._stream: ReplyStream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def n_bytes(self) -> int:
        """What it takes to keep it."""
        shelved = 0 if self.shelved is None else self.shelved.n_bytes
        return self._n_sent + self.log.n_bytes + shelved

    @property
    def is_over(self) -> bool:
        return self.ended_at is not None

    def stream(self, client: AsyncClient) -> ReplyStream:
        """Its reply, which is sent by the first step."""
        limit = time_limit_of(self._wanted, is_shown=True)
        self._service.traces.asks(self.trace)
        return self._service.stream(
            *(client, self._head, self._wanted, 0, self.key, limit),
            traceparent=self.trace.traceparent,
        )

    def start(self, stream: ReplyStream) -> None:
        """Begin."""
        self._stream = stream
        self.trace.worker = self._service.number
        self._service.traces.begin(self.trace)
        self._task = asyncio.create_task(self._run(stream))
        self._task.add_done_callback(self._end_trace)

    def _end_trace(self, task: asyncio.Task[None]) -> None:
        outcome = "stopped" if task.cancelled() else "ok" if self.error is None else "failed"
        self._service.traces.end(self.trace, outcome)

    async def cancel(self) -> None:
        """End it with what there is; returns when it has ended."""
        if self._stream is None or self._task is None or self.is_over:
            return
        self._stream.cancel()
        await asyncio.wait({self._task}, timeout=_CANCEL_S)
        if not self.is_over:
            self._is_cancelled = True
            await self._abort()
            await self._keep()

    async def restore(self, logged: Logged) -> list[Event]:
        """Show what a predecessor has shown; the events to go on after.

        EngineFailed where that would not be the same.
        """
        known = logged.events(0)
        if "begin" in logged.marks:
            self._has_begun = True
            self.log.add(self.answer.begin())
        for event in known:
            await self._prepare(event)
            self.log.add(self.answer.event(event))
        if self.log.since(0) != logged.data[-self.log.n_bytes :]:
            raise errors.EngineFailed(
                "what was generated before its process ended cannot be shown again; send the "
                "request again"
            )
        return known

    async def give_up(self, error: Exception) -> None:
        """It has failed before it could go on."""
        known = error
        if not isinstance(known, errors.LlamaActorsError):
            _LOG.error("the response %s failed", self.answer.id, exc_info=error)
            known = errors.EngineFailed(failure_of(error).message)
        try:
            if not self._has_begun:
                self._add(self.answer.begin(), Mark("begin"))
            await self._fail(known)
        finally:
            self._service.traces.begin(self.trace)
            self._service.traces.end(self.trace, "failed")
            self._service.end(self.answer.id, self.trace.n_computed)

    def drop_log(self) -> None:
        """It is shown from the shelf no more."""
        if self.shelved is not None:
            self.shelved.drop()

    async def leave(self) -> None:
        """Drop what still runs."""
        self._is_left = True
        self.drop_log()
        await self._abort()

    async def _abort(self) -> None:
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

    async def _run(self, stream: ReplyStream) -> None:
        done: Completion | None = None
        try:
            if not self._has_begun:
                self._add(self.answer.begin(), Mark("begin"))
            async with stream:
                async for event in stream:
                    self.trace.note(0, event)
                    if type(event) in NOT_SHOWN:
                        continue
                    await self._prepare(event)
                    if isinstance(event, CompletionEvent):
                        done = event.completion
                    self._add(self.answer.event(event), event)
            if done is not None:
                self._service.own(Explained).note(self.key, "", self._head, self._wanted, {0: done})
            await self._keep()
            self._end(self.answer.end(), Mark("end"))
        except errors.LlamaActorsError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            # Else it was dropped, or this worker stops: its log has no end, and another goes on.
            self._end(self.answer.cancelled(), Mark("end") if self._is_cancelled else None)
            self._is_continued = not (self._is_cancelled or self._is_left)
            raise
        except Exception as error:  # noqa: BLE001 - a fault here is an answer, and a log line
            _LOG.exception("the response %s failed", self.answer.id)
            await self._fail(errors.EngineFailed(failure_of(error).message))
        finally:
            n_computed = 0 if self._is_continued else self.trace.n_computed
            self._service.end(self.answer.id, n_computed)

    async def _prepare(self, event: Event) -> None:
        if self._wanted.needs_pieces and isinstance(event, TokenEvent):
            await self._service.need_pieces(self._head.model, ids_of(event))

    async def _fail(self, error: errors.LlamaActorsError) -> None:
        failure = failure_of(error)
        self.trace.error = failure.fault.value
        frames = self.answer.failed(failure)
        await self._keep()
        self.error = error
        self._end(frames, Mark("failed"))

    async def keep_begun(self) -> None:
        """Store that it runs: should its process end, it is known that it has failed."""
        await self._keep()

    async def _keep(self) -> None:
        """Before its last frame is shown: a client may continue it at once."""
        if self._store is None or self._is_left:
            return
        who = self._service.ledger.who
        await self._store.keep(stored(self.answer.response(), self.sent, self.owner, who))

    def _add(self, frames: Sequence[bytes], item: Event | Mark | None = None) -> None:
        """Show frames; ``item`` is what they show, for the log on the shelf."""
        if self.shelved is not None and item is not None:
            self.shelved.note(-1 if isinstance(item, Mark) else 0, item)
            if frames or isinstance(item, Mark):
                self.shelved.wrote(b"".join(frames))
        if frames:
            self.log.add(frames)
            self._changed.set()
            self._changed = asyncio.Event()

    def _end(self, frames: Sequence[bytes], mark: Mark | None = None) -> None:
        self.ended_at = time.monotonic()
        self._add(frames, mark)
        if self.shelved is not None and mark is not None:
            self.shelved.end()


def _trace_of(key: Key, head: Head, wanted: Wanted, answer: ResponseAnswer) -> Trace:
    trace = Trace(answer.id, method="POST", route="/v1/responses", api="openai", client="")
    trace.is_http = False
    trace.called_by(key)
    trace.answer_id, trace.is_stream = answer.id, True
    trace.asks(wanted, head.model)
    return trace


class Responses:
    """The responses of one worker, and what all have stored."""

    def __init__(self, service: Service) -> None:
        self.store = KeptResponses(service.ledger)
        self.shelf: ShelfClient | None = None
        """Where those in the background are logged."""
        self._service = service
        self._runs: dict[str, ResponseRun] = {}
        self._resuming: dict[str, asyncio.Task[None]] = {}
        self._left: dict[str, tuple[float, int]] = {}
        """Names on the shelf of logs that a predecessor has ended, when found, and their bytes."""

    @property
    def number(self) -> int:
        """Of this worker."""
        return self._service.ledger.who.number

    async def start(
        self,
        run: ResponseRun,
        logged: LoggedHead,
        marks: Mapping[str, str],
        *,
        is_checked: bool = True,
    ) -> None:
        """Begin a response in the background; raises what the request is refused with.

        ``logged`` and ``marks``: what a successor needs to go on with it. ``is_checked``: as in
        ``Service.begin``.
        """
        service, name = self._service, run.answer.id
        run.trace.client = logged.client
        run.trace.part_of(dict(logged.headers))
        stream = run.stream(await service.client())
        run.rates = await service.begin(name, run.key, is_checked=is_checked)
        if self.shelf is not None:
            place = run_name(self.number, name)
            run.shelved = StreamLog.begin(self.shelf, place, None, logged)
        if run.shelved is not None:
            for prefix, value in marks.items():
                run.shelved.remember(prefix, value)
        self.keep(run)
        await run.keep_begun()
        run.start(stream)

    async def resume(self, run: ResponseRun, logged: Logged, log: StreamLog) -> None:
        """Go on with a response that a predecessor had begun, unless it was deleted meanwhile."""
        service = self._service
        if await self.store.is_dropped(run.answer.id, run.owner):
            log.drop()
            service.ledger.end(run.answer.id, 0)
            return
        await service.begin(run.answer.id, run.key, is_checked=False)
        run.shelved = log
        self.keep(run)
        asyncio.get_running_loop().call_later(HELD_S, log.remember, HELD, "")
        try:
            run.trace.n_taken = logged.n_taken_at_all
            run.trace.begun_at(logged.head.at)
            run.trace.client = logged.head.client
            run.trace.part_of(dict(logged.head.headers))
            for event in logged.events(0):
                run.trace.replay(0, event)
            known = await run.restore(logged)
            if logged.is_given_up:
                raise errors.EngineFailed(
                    f"{logged.n_taken_at_all} workers ended during this response"
                )
            stream = run.stream(await service.client())
            stream.continue_after(known)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the end of this response
            await run.give_up(error)
            return
        run.start(stream)

    def resuming(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """``work`` goes on with a response of this id."""
        task = self._resuming[name] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._resuming.pop(name, None))
        return task

    async def begun(self, name: str, key: Key) -> ResponseRun | ShelvedRun | None:
        """The response with this id that a predecessor of this worker had begun."""
        await self._resumed(name)
        return self._runs.get(name) or self.shown(name, key, self.number)

    async def _resumed(self, name: str) -> None:
        if (task := self._resuming.get(name)) is not None:
            await asyncio.wait({task})

    def left(self, name: str, n_bytes: int) -> None:
        """This log on the shelf was ended by a predecessor: it can be read for a time."""
        self._left[name] = (time.monotonic(), n_bytes)
        self._tidy(time.monotonic())

    def shown(self, name: str, key: Key, number: int) -> ShelvedRun | None:
        """A response in the background of any worker, from its log."""

        async def is_running() -> bool:
            return await self.store.is_running(name, key.name)

        if self.shelf is None:
            return None
        return ShelvedRun.open(self.shelf, number, name, is_running)

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
        """A response that runs here, or whose log is kept here."""
        self._tidy(time.monotonic())
        found = self._runs.get(name)
        return found if found is not None and found.owner == key.name else None

    async def forget(self, name: str, key: Key) -> bool:
        """Drop all of a response; False: it is not there."""
        await self._resumed(name)
        run = self.find(name, key)
        if run is not None:
            self.drop(run)
            await run.leave()
        was_stored, number = await self.store.forget(name, key.name)
        if number is not None and run is None:
            await self._end_at(number, name, key, is_dropped=True)
        return was_stored or run is not None

    async def cancel(self, name: str, key: Key, number: int) -> Stored | None:
        """End a response that runs at another worker; what is stored of it then."""
        ends_at = time.monotonic() + _CANCEL_S
        found = await self.store.find(name, key.name)
        while found is not None and found.is_running and time.monotonic() < ends_at:
            await self._end_at(number, name, key)  # again: it may be killed before it has done it
            await asyncio.sleep(LOOK_S)
            found = await self.store.find(name, key.name)
        return found

    async def _end_at(self, number: int, name: str, key: Key, *, is_dropped: bool = False) -> None:
        with contextlib.suppress(LedgerGone):
            await self._service.ledger.ask(
                lambda ref: EndResponse(ref, name, key.name, is_dropped),
                _CANCEL_S,
                f"{WORKER}{number}",
            )

    async def stop(self, run: ResponseRun) -> None:
        """End a response that runs here with what there is."""
        await self._resumed(run.answer.id)
        await run.cancel()

    async def end(self, asked: EndResponse) -> None:
        """A worker was asked to end a response that runs here, or is about to."""
        await self._resumed(asked.name)
        run = self._runs.get(asked.name)
        if run is None or run.owner != asked.owner:
            return
        if asked.is_dropped:
            self.drop(run)
            await run.leave()
        else:
            await run.cancel()

    def drop(self, run: ResponseRun) -> None:
        """Keep its log no more."""
        run.drop_log()
        with contextlib.suppress(KeyError):
            del self._runs[run.answer.id]

    def _tidy(self, now: float) -> None:
        """Drop logs that are too old, and the oldest of those that are too much together."""
        settings = self._service.settings
        n_bytes = sum(run.n_bytes for run in self._runs.values())
        n_runs = len(self._runs)
        ended = [one for one in self._runs.values() if one.ended_at is not None]
        for run in sorted(ended, key=lambda one: one.ended_at or 0.0):
            is_young = now - (run.ended_at or 0.0) <= settings.log_ttl_s
            if is_young and n_bytes <= settings.log_bytes and n_runs <= MAX_LOGS:
                break
            n_bytes -= run.n_bytes
            n_runs -= 1
            self.drop(run)
        n_left = sum(n for _, n in self._left.values())
        for name, (at, n) in list(self._left.items()):
            is_young = now - at <= settings.log_ttl_s
            if is_young and n_left <= settings.log_bytes and len(self._left) <= MAX_LOGS:
                break
            n_left -= n
            del self._left[name]
            if self.shelf is not None:
                self.shelf.forget(name)
