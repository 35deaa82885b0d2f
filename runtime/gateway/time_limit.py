"""The time limit of a reply that a client reads as it comes: it ends with what there is.

The node ends a request that is late as a failure. A client that has been shown a part of the reply
can use that part, and takes a failure for a broken stream. So the gateway has a clock of its own:
when it is over, the request is cancelled, and what the node reports of it is shown as a reply that
has reached its limit. Where nothing was shown yet, the limit is a failure as anywhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from actors import messages as m
from runtime import errors
from runtime.client.async_stream import AsyncStream
from runtime.client.diverted import TokenSink
from runtime.client.received import Received
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
    completion_from,
)
from runtime.gateway.wire.wanted import Wanted

NODE_S: Final = 5.0
"""How much longer the node's own clock runs: it is for a cancel that does not arrive."""
MAX_S: Final = 1e6
"""A longer limit is the node's alone."""


class TimeLimit:
    """The limit of one request, for all of its replies; each has its own clock."""

    def __init__(self, seconds: float, gone_s: float = 0.0) -> None:
        """``gone_s``: how much of it is over."""
        self.seconds = seconds
        self.left_s = max(0.0, seconds - gone_s)
        self.has_shown = False
        """Whether anything of a reply has come: it is shown at once."""

    @property
    def of_node(self) -> float:
        """``timeout_s`` of the request as it is sent."""
        return self.left_s + NODE_S


def time_limit_of(wanted: Wanted, *, is_shown: bool, gone_s: float = 0.0) -> TimeLimit | None:
    """The limit of a request; ``is_shown``: its replies are shown as they come.

    ``gone_s``: seconds since it came, if another process had it before.

    None: it has none, or the node's own clock is enough. What is no number of seconds is refused
    where all options are.
    """
    seconds = wanted.options.get("timeout_s")
    if not is_shown or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_S:
        return None
    return TimeLimit(float(seconds), gone_s)


class LimitedStream:
    """An ``AsyncStream`` that ends by its limit; the clock begins with the first step."""

    def __init__(self, stream: AsyncStream, limit: TimeLimit) -> None:
        self._stream = stream
        self._limit = limit
        self._received = Received()
        self._n_prompt = self._n_reused = 0
        self._timer: asyncio.TimerHandle | None = None
        self._scope: asyncio.Timeout | None = None
        self._is_late = self._is_over = False

    def cancel(self) -> None:
        """As ``AsyncStream.cancel``."""
        self._stream.cancel()

    def continue_after(self, events: Iterable[Event]) -> None:
        """As ``AsyncStream.continue_after``."""
        known = list(events)
        for event in known:
            self._note(event)
        self._stream.continue_after(known)

    def ready(self) -> list[Event]:
        """As ``AsyncStream.ready``."""
        found = [] if self._is_over else self._stream.ready()
        for event in found:
            self._note(event)
        return found

    def divert(self, sink: TokenSink) -> None:
        """As ``AsyncStream.divert``."""
        self._stream.divert(_NotedTokens(sink, self._note))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._is_over:
            raise StopAsyncIteration
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._limit.left_s, self._late)
        try:
            async with asyncio.timeout(None) as self._scope:
                if self._is_late:
                    self._end()
                event = await anext(self._stream)
        except TimeoutError:
            raise self._exceeded() from None
        except errors.DeadlineExceeded:  # by the node's clock: the cancel did not arrive
            if not self._limit.has_shown:
                raise
            self._is_late = True
            event = CompletionEvent(self._unreported())
        finally:
            self._scope = None
        self._note(event)
        if isinstance(event, CompletionEvent):
            self._stop()
            self._is_over = True
            return CompletionEvent(self._by_limit(event.completion))
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        await self._stream.__aexit__(kind, error, trace)

    # ── the clock ───────────────────────────────────────────────────────────────────────────────

    def _late(self) -> None:
        self._is_late = True
        self._end()

    def _end(self) -> None:
        """Cancel a reply of which something was shown; interrupt the step of another."""
        if self._limit.has_shown:
            self._stream.cancel()
        elif self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, event: Event) -> None:
        match event:
            case PrefillEvent():
                self._n_prompt, self._n_reused = event.total, event.reused
            case TokenEvent() | SpanEvent() | ToolCallEvent():
                self._limit.has_shown = True
                self._received.restore(event)
            case _:
                pass

    # ── ends ────────────────────────────────────────────────────────────────────────────────────

    def _exceeded(self) -> errors.DeadlineExceeded:
        return errors.DeadlineExceeded(
            f"nothing was generated within timeout_s = {self._limit.seconds:g}; give it more time, "
            "or shorten the prompt"
        )

    def _by_limit(self, done: Completion) -> Completion:
        if not self._is_late or done.finish_reason != m.FinishReason.CANCELLED.value:
            return done
        why = f"the reply was ended by timeout_s = {self._limit.seconds:g}"
        note = why if done.note is None else f"{done.note}; {why}"
        return replace(done, finish_reason=m.FinishReason.LENGTH.value, note=note)

    def _unreported(self) -> Completion:
        """What has come of a reply whose node does not answer; the rest is not known."""
        received = self._received
        done = m.Completed(
            ref="",
            request_id="",
            finish_reason=m.FinishReason.CANCELLED,
            finish_key=None,
            stop_sequence=None,
            usage=m.Usage(self._n_prompt, self._n_reused, len(received)),
            cache=m.CacheReport(m.HitKind.COLD, "none", 0.0, None, note="the node did not report"),
            timings=m.Timings(0.0, 0.0, 0.0, 0.0, 0.0),
        )
        return completion_from(
            done,
            received.text,
            received.tokens,
            None,
            received.logprobs,
            received.spans,
            received.calls,
        )


class _NotedTokens:
    """A ``TokenSink`` whose tokens are noted here too."""

    def __init__(self, sink: TokenSink, note: Callable[[Event], None]) -> None:
        self._note = note
        self._add = sink.add
        self.is_open: Callable[[], bool] = sink.is_open
        self.flush: Callable[[], None] = sink.flush

    def add(self, event: TokenEvent) -> None:
        self._note(event)
        self._add(event)


ReplyStream = AsyncStream | LimitedStream
"""One reply, as the gateway reads it."""
Begin = Callable[[], ReplyStream]
