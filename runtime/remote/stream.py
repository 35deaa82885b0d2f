"""A completion that a gateway elsewhere generates, as its caller holds it: as ``CompletionStream``.

When it is cancelled the connection ends, and with it the request. What had come is returned as a
completion with the reason ``cancelled``; what only the node knows of it is missing there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from actors.messages.completion import CacheReport, HitKind, Timings, Usage
from cache.answers import Miss, MissReason
from runtime import errors
from runtime.client.event_json import event_of
from runtime.client.received import Received
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    TokenEvent,
)
from runtime.remote.connection import EventStream
from runtime.remote.failures import error_of

Numbered = tuple[int, Event]
BUSY_S: Final = 5.0
"""So long a session may still be busy with a reply that was cancelled."""
_AGAIN_S: Final = 0.05


def replies(stream: EventStream) -> Iterator[Numbered]:
    """The events of all replies of an answer, with their numbers; raises what it fails with."""
    for name, plain in stream:
        if name == "end":
            return
        if name == "error":
            raise _failed(plain)
        try:
            event = None if name == "begin" else event_of(name, plain)
            number = 0 if event is None else int(plain["reply"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise errors.NotAGateway(
                f"the gateway sent an event {name!r} that cannot be read ({error!r}); use the same "
                "version of llama-actors on both sides"
            ) from None
        if event is not None:
            yield number, event
    raise stream.cut_off()


def _failed(plain: Any) -> errors.LlamaActorsError:
    error = plain.get("error") if isinstance(plain, dict) else None
    if not isinstance(error, dict):
        return errors.GatewayRefused("the gateway reported a failure without a reason")
    text = str(error.get("message") or "the gateway gave no reason")
    return error_of(error) or errors.GatewayRefused(text)


class RemoteStream:
    """Events of one reply, the last one a ``CompletionEvent``.

    The request is sent by the first step. All from one thread but ``cancel``.
    """

    def __init__(
        self, begin: Callable[[], EventStream], on_cancel: Callable[[], None] = lambda: None
    ) -> None:
        self._begin = begin
        self._on_cancel = on_cancel
        self._lock = threading.Lock()
        self._stream: EventStream | None = None
        self._events: Iterator[Numbered] | None = None
        self._received = Received()
        self._prefill = PrefillEvent(0, 0, 0)
        self._began = 0.0
        self._ttft_ms: float | None = None
        self._is_cancelled = self._is_over = False

    def cancel(self) -> None:
        """End the request from any thread; the stream then ends with what has come."""
        with self._lock:
            self._is_cancelled = True
            stream = self._stream
        self._on_cancel()
        if stream is not None:
            stream.stop()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._is_over:
            raise StopIteration
        try:
            event = self._next()
        except errors.GatewayError:
            if not self._is_cancelled:
                self.close()
                raise
            event = CompletionEvent(self._cancelled())
        except BaseException:
            self.close()
            raise
        return self._taken(event)

    def _next(self) -> Event:
        if self._events is None:
            self._events = replies(self._opened())
        if self._is_cancelled:
            return CompletionEvent(self._cancelled())
        for _, event in self._events:
            return event
        raise errors.NotAGateway("the gateway ended the answer without its result")

    def _opened(self) -> EventStream:
        self._began = time.monotonic()
        stream = self._begin()
        with self._lock:
            self._stream = stream
            is_late = self._is_cancelled
        if is_late:
            stream.stop()
        return stream

    def _taken(self, event: Event) -> Event:
        match event:
            case PrefillEvent():
                self._prefill = event
            case CompletionEvent(done):
                self.close()
                took = self._ttft_ms
                timings = done.timings if took is None else replace(done.timings, ttft_ms=took)
                return CompletionEvent(replace(done, timings=timings))
            case _:
                if self._ttft_ms is None and not _is_prompt(event):
                    self._ttft_ms = 1e3 * (time.monotonic() - self._began)
                self._received.restore(event)
        return event

    def _cancelled(self) -> Completion:
        """What has come, as far as it is known here."""
        received, read = self._received, self._prefill
        return Completion(
            text=received.text,
            tokens=received.tokens,
            finish_reason="cancelled",
            finish_key=None,
            stop_sequence=None,
            usage=Usage(read.total, read.reused, len(received)),
            cache=CacheReport(HitKind.COLD, "none", 0.0, Miss(MissReason.NOT_STARTED)),
            timings=Timings(0.0, 0.0, 0.0, 0.0, 0.0),
            logprobs=received.logprobs or None,
            spans=received.spans,
            calls=received.calls,
        )

    def close(self) -> None:
        """Leave it; what still runs is cancelled. Does nothing at its end."""
        self._is_over = True
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()


def _is_prompt(event: Event) -> bool:
    return isinstance(event, TokenEvent) and event.kind == "prompt"


def unless_busy(begin: Callable[[], EventStream], *, may_wait: bool) -> EventStream:
    """The stream; a session is waited for whose reply before this one was cancelled just now.

    The gateway learns of that by the end of a connection, so it comes a moment later.
    """
    until = time.monotonic() + (BUSY_S if may_wait else 0.0)
    pause = threading.Event()
    while True:
        try:
            return begin()
        except errors.SessionBusy:
            if time.monotonic() >= until:
                raise
        pause.wait(_AGAIN_S)
