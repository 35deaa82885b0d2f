"""One attempt at a completion: send it, turn its replies into events, cancel it if it is left.

The one table that turns failures, which travel between processes as values, into exceptions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from actors import messages as m
from runtime import errors
from runtime.client.received import Received
from runtime.client.results import (
    CompletionEvent,
    Event,
    PrefillEvent,
    ResumedEvent,
    completion_from,
)
from supervision import Connection, forks
from supervision.errors import SupervisionError
from supervision.messages import new_ref

SILENCE_TIMEOUT_S: Final = 600.0  # one step of a huge model on a slow machine stays below it
LOST_TIMEOUT_S: Final = 120.0
"""A running request gets a message from its dispatcher every two seconds, or it is lost."""
GRACE_S: Final = 1.0
"""The node ends a request at its deadline; this long its answer may take."""
_WITHDRAW_S: Final = 0.5

_FAILURES: Final[Mapping[m.FailReason, Callable[[str, str], errors.LlamaActorsError]]] = {
    m.FailReason.MODEL_UNKNOWN: errors.ModelUnknown,
    m.FailReason.MODEL_DOWN: errors.ModelDown,
    m.FailReason.INTERRUPTED: errors.ModelDown,
    m.FailReason.MODEL_UNLOADED: errors.ModelUnloaded,
    m.FailReason.MODEL_STOPPED: errors.ModelStopped,
    m.FailReason.POISONOUS: errors.RequestPoisoned,
    m.FailReason.INVALID_REQUEST: lambda _, detail: errors.InvalidRequest(detail),
    m.FailReason.PROMPT_TOO_LONG: lambda _, detail: errors.PromptTooLong(detail),
    m.FailReason.OVERLOADED: lambda _, detail: errors.Overloaded(detail),
    m.FailReason.DEADLINE: lambda _, detail: errors.DeadlineExceeded(detail),
    m.FailReason.SESSION_BUSY: lambda _, detail: errors.SessionBusy(detail),
    m.FailReason.NOT_SUPPORTED: lambda _, detail: errors.NotSupported(detail),
    m.FailReason.ENGINE_ERROR: lambda _, detail: errors.EngineFailed(detail),
}


def failure(model: str, reason: m.FailReason, detail: str) -> errors.LlamaActorsError:
    """The exception for a failure that came as a value."""
    return _FAILURES[reason](model, detail)


def load_failure(model: str, failed: m.ModelNotLoaded) -> errors.ModelError:
    """The same for a model that was not loaded."""
    if failed.reason is m.LoadFailure.ALREADY_LOADED:
        return errors.ModelAlreadyLoaded(
            model, f"model {model!r} is already loaded; unload it first, or choose another id"
        )
    if failed.reason is m.LoadFailure.CRASHED:
        return errors.ModelLoadFailed(
            model,
            "ModelLoadCrashed",
            f"llama.cpp ended the loading process ({failed.detail}); the file is probably "
            "malformed: check it, or convert it again",
        )
    return errors.ModelLoadFailed(model, failed.kind, failed.detail)


class Attempt:
    """Sends a request once; its events go on where ``received`` ends, and are added to it."""

    def __init__(
        self,
        connection: Connection,
        request: m.Complete,
        progress: Progress,
        ends_at: float | None = None,
    ) -> None:
        """``ends_at``, on the monotonic clock: no answer is waited for after this."""
        self._connection = connection
        self._request = request
        self._progress = progress
        self._accepted: m.Accepted | None = None
        self._ended = False
        self._ends_at = ends_at
        self._process = forks.here()

    def events(self) -> Iterator[Event]:
        """Raises TargetDown when inflight died, NodeRestarted, or PartMissing: try again then.

        A model that dies is not this caller's business: inflight lets it go on in the next one.
        """
        request = replace(self._request, ref=new_ref())
        replies = self._connection.stream(
            "inflight",
            request,
            idle_timeout_s=LOST_TIMEOUT_S,
            ends_at=self._ends_at,
            until_down=True,
        )
        try:
            for reply in replies:
                yield from self._events(reply)
                if self._ended:
                    return
        finally:
            self._withdraw()

    def _withdraw(self) -> None:
        """Cancel the rest. An inflight that does not know the request asks all models.

        Not in a forked child, where a copy of this generator ends: the parent still reads it.
        """
        if self._ended or self._accepted is None or not forks.is_here(self._process):
            return
        cancel = m.Cancel(self._accepted.request_id)
        with contextlib.suppress(SupervisionError):
            self._connection.tell("inflight", cancel, timeout_s=_WITHDRAW_S)

    def _events(self, reply: object) -> Iterator[Event]:
        progress = self._progress
        match reply:
            case m.Accepted():
                self._accepted = reply
                progress.on_accepted(reply.request_id)
            case m.Resumed():
                progress.interrupted()
            case m.PrefillProgress(_, done, total, reused):
                if not progress.received:  # else it is a reply that is read again
                    progress.saw()
                    yield PrefillEvent(done, total, reused)
            case m.TokensDelivered():
                event = progress.received.take(reply)
                if event is not None:
                    yield from progress.went_on(event.index)
                    yield event
            case m.SpanEnded():
                span = progress.received.take_span(reply)
                if span is not None:
                    yield span
            case m.Completed():
                self._ended = True
                received = progress.received
                yield from progress.went_on(len(received))
                yield CompletionEvent(
                    completion_from(
                        reply,
                        received.text,
                        received.tokens,
                        progress.ttft_ms,
                        received.logprobs,
                        received.spans,
                    )
                )
            case m.CompletionFailed(_, reason, detail):
                self._ended = True
                raise failure(self._request.model, reason, detail)
            case _:
                pass  # a message of a newer node; nothing is lost by not knowing it


class Progress:
    """How far a request is, over all attempts at it, by this caller's clock."""

    def __init__(self, on_accepted: Callable[[str], None] = lambda _: None) -> None:
        """``on_accepted`` hears the request's id of each attempt."""
        self.on_accepted = on_accepted
        self.received = Received()
        self.ttft_ms: float | None = None
        self._began = self._saw_at = time.perf_counter()
        self._is_interrupted = False

    def saw(self) -> None:
        self._saw_at = time.perf_counter()

    def interrupted(self) -> None:
        """A process died under it; the next thing that is new ends a pause."""
        self._is_interrupted = True

    def went_on(self, n_tokens: int) -> Iterator[ResumedEvent]:
        """Something new came, after ``n_tokens``."""
        before, self._saw_at = self._saw_at, time.perf_counter()
        if self.ttft_ms is None and self.received:
            self.ttft_ms = 1e3 * (self._saw_at - self._began)
        if self._is_interrupted:
            self._is_interrupted = False
            yield ResumedEvent(n_tokens, 1e3 * (self._saw_at - before))
