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
from actors.inflight import model_actor_id
from cache import tokens as token_bytes
from runtime import errors
from runtime.results import CompletionEvent, Event, PrefillEvent, TokenEvent, completion_from
from supervision import Connection
from supervision.errors import SupervisionError
from supervision.messages import new_ref

SILENCE_TIMEOUT_S: Final = 600.0  # one step of a huge model on a slow machine stays below it

_FAILURES: Final[Mapping[m.FailReason, Callable[[str, str], errors.LlamaActorsError]]] = {
    m.FailReason.MODEL_UNKNOWN: errors.ModelUnknown,
    m.FailReason.MODEL_DOWN: errors.ModelDown,
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


class Attempt:
    """One attempt at a request: sends it, turns its replies into events, cancels it if left."""

    def __init__(self, connection: Connection, request: m.Complete) -> None:
        self._connection = connection
        self._request = request
        self._accepted: m.Accepted | None = None
        self._ttft_ms: float | None = None
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._begun = False
        self._ended = False

    @property
    def delivered(self) -> bool:
        return bool(self._tokens)

    def events(self) -> Iterator[Event]:
        started = time.perf_counter()
        request = replace(self._request, ref=new_ref())
        # Inflight tells of a model's death. The watch is for when inflight itself died with what
        # it knew, or before it passed the request on.
        model, inflight = (
            Watch(self._connection, model_actor_id(request.model)),
            Watch(self._connection, "inflight"),
        )

        def look() -> None:
            accepted = self._accepted
            if accepted is not None or self._begun:
                model.look(accepted.model if accepted is not None else 0)
            if not self._begun:
                inflight.look(accepted.inflight if accepted is not None else 0)

        replies = self._connection.stream(
            "inflight", request, idle_timeout_s=SILENCE_TIMEOUT_S, on_quiet=look
        )
        try:
            for reply in replies:
                event = self._event(reply, started)
                if event is not None:
                    yield event
                if self._ended:
                    return
        except ActorGone as gone:
            self._withdraw(model_actor_id(request.model), m.CancelRun)
            raise errors.ModelDown(
                request.model, f"{gone} went away during this request; send it again"
            ) from gone
        finally:
            self._withdraw("inflight", m.Cancel)

    def _withdraw(self, actor: str, cancel: Callable[[str], object]) -> None:
        """Nobody waits for the rest; if the actor is gone too, nobody is left to cancel."""
        if not self._ended and self._accepted is not None:
            with contextlib.suppress(SupervisionError):
                self._connection.tell(actor, cancel(self._accepted.request_id))

    def _event(self, reply: object, started: float) -> Event | None:
        match reply:
            case m.Accepted():
                self._accepted = reply
            case m.PrefillProgress(_, done, total, reused):
                self._begun = True
                return PrefillEvent(done, total, reused)
            case m.TokensDelivered(_, index, tokens, text):
                self._begun = True
                if self._ttft_ms is None:
                    self._ttft_ms = 1e3 * (time.perf_counter() - started)
                ids = tuple(token_bytes.unpack(tokens))
                self._tokens += ids
                self._text.append(text)
                return TokenEvent(index, ids, text)
            case m.Completed():
                self._ended = True
                whole = "".join(self._text), tuple(self._tokens)
                return CompletionEvent(completion_from(reply, *whole, self._ttft_ms))
            case m.CompletionFailed(_, reason, detail):
                self._ended = True
                raise _FAILURES[reason](self._request.model, detail)
            case _:
                pass  # a message of a newer node; nothing is lost by not knowing it
        return None


class ActorGone(Exception):
    """The process that should answer is not the one that was asked."""


class Watch:
    """Looks, while nothing comes, whether an actor is still the process that it was."""

    def __init__(self, connection: Connection, actor: str) -> None:
        self._connection = connection
        self._actor = actor
        self._since = time.time()
        self._incarnation = 0

    def look(self, incarnation: int = 0) -> None:
        """Raise ActorGone if it is down or another incarnation.

        Without knowing the incarnation, one that started after this watch began is another.
        """
        entry = self._connection.where(self._actor)
        if entry is None or not entry.is_up:
            raise ActorGone(self._actor)
        known = incarnation or self._incarnation
        if known == 0 and entry.started_at > self._since:
            raise ActorGone(self._actor)
        self._incarnation = known or entry.incarnation
        if entry.incarnation != self._incarnation:
            raise ActorGone(self._actor)
