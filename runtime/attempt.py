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
from supervision.errors import NoReply
from supervision.messages import new_ref

SILENCE_TIMEOUT_S: Final = 600.0  # one step of a huge model on a slow machine stays below it

_FAILURES: Final[Mapping[m.FailReason, Callable[[str, str], errors.LlamaActorsError]]] = {
    m.FailReason.MODEL_UNKNOWN: errors.ModelUnknown,
    m.FailReason.MODEL_DOWN: errors.ModelDown,
    m.FailReason.MODEL_UNLOADED: errors.ModelUnloaded,
    m.FailReason.INVALID_REQUEST: lambda _, detail: errors.InvalidRequest(detail),
    m.FailReason.PROMPT_TOO_LONG: lambda _, detail: errors.PromptTooLong(detail),
    m.FailReason.OVERLOADED: lambda _, detail: errors.Overloaded(detail),
    m.FailReason.DEADLINE: lambda _, detail: errors.DeadlineExceeded(detail),
    m.FailReason.ENGINE_ERROR: lambda _, detail: errors.EngineFailed(detail),
}


class Attempt:
    """One attempt at a request: sends it, turns its replies into events, cancels it if left."""

    def __init__(self, connection: Connection, request: m.Complete) -> None:
        self._connection = connection
        self._request = request
        self._request_id: str | None = None
        self._ttft_ms: float | None = None
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._ended = False

    @property
    def delivered(self) -> bool:
        return bool(self._tokens)

    def events(self) -> Iterator[Event]:
        started = time.perf_counter()
        request = replace(self._request, ref=new_ref())
        # Inflight tells of a model's death; the watch is for when inflight itself died with it.
        watch = Watch(self._connection, model_actor_id(request.model))
        replies = self._connection.stream(
            "inflight", request, idle_timeout_s=SILENCE_TIMEOUT_S, on_quiet=watch.look
        )
        try:
            for reply in replies:
                event = self._event(reply, started)
                if event is not None:
                    yield event
                if self._ended:
                    return
        except ActorGone as gone:
            model = request.model
            raise errors.ModelDown(
                model, f"model {model!r} went away during this request"
            ) from gone
        finally:
            if not self._ended and self._request_id is not None:
                with contextlib.suppress(NoReply):  # nobody is left to cancel
                    self._connection.tell("inflight", m.Cancel(self._request_id))

    def _event(self, reply: object, started: float) -> Event | None:
        match reply:
            case m.Accepted(_, request_id):
                self._request_id = request_id
            case m.PrefillProgress(_, done, total, reused):
                return PrefillEvent(done, total, reused)
            case m.TokensDelivered(_, index, tokens, text):
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
    """Looks, while nothing comes, whether an actor is still the same process."""

    def __init__(self, connection: Connection, actor: str) -> None:
        self._connection = connection
        self._actor = actor
        self._incarnation: int | None = None

    def look(self) -> None:
        entry = self._connection.where(self._actor)
        now = entry.incarnation if entry is not None and entry.is_up else None
        if self._incarnation is None:
            self._incarnation = now
        elif now != self._incarnation:
            raise ActorGone(self._actor)
