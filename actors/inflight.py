"""Requests in flight: who asked, which model works on it, and an end for each of them.

Owns: the table of requests. Answers: ``Complete``, ``Submit``, ``Cancel``. Asks: models. It lives
outside the model processes on purpose: when one dies, its callers are told here, at once. When this
actor itself dies, running requests go on (models answer their callers directly) and callers keep
their own deadlines; only the right to be told of a later model crash is lost with the table.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from supervision import Worker

if TYPE_CHECKING:
    from supervision import Address, Entry

LOOK_EVERY_S = 0.25
STOPPING_S = 6.0  # a model gets five seconds to end its requests before it is killed
_ENDED = (
    "the process of model {model!r} ended during this request; it is being restarted, "
    "send the request again"
)
_UNLOADED = "model {model!r} was unloaded during this request; load it again"


@dataclass(frozen=True, slots=True)
class _InFlight:
    ref: str
    reply_to: Address
    model: str
    incarnation: int


class InflightActor(Worker):
    """The one place that knows every running request."""

    def init(self, args: object) -> None:
        del args
        self._requests: dict[str, _InFlight] = {}
        self._total = 0

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case m.Complete():
                self._accept(message, sender)
            case m.Submit(request, reply_to):
                self._accept(request, reply_to)
            case m.Cancel(request_id):
                running = self._requests.get(request_id)
                if running is not None:
                    self.tell(model_actor_id(running.model), m.CancelRun(request_id))
            case m.RequestEnded(request_id):
                self._requests.pop(request_id, None)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def _accept(self, request: m.Complete, reply_to: Address) -> None:
        entry = self.directory.get(model_actor_id(request.model))
        if entry is None or not entry.is_up:
            down = m.CompletionFailed(request.ref, *_why_absent(request.model, entry))
            self.tell(reply_to, down)
            return
        request_id = uuid.uuid4().hex
        self._total += 1
        self._requests[request_id] = _InFlight(
            request.ref, reply_to, request.model, entry.incarnation
        )
        self.tell(model_actor_id(request.model), m.Run(request_id, reply_to, request))
        self.tell(reply_to, m.Accepted(request.ref, request_id))

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        for entry in changed:
            model = entry.id.removeprefix("model:")
            if model == entry.id:
                continue
            now = self.directory.get(entry.id)
            if now is not None and now.state == "stopping":
                # It tells its callers itself; this is for those it could not.
                self.after(LOOK_EVERY_S, (model, now.incarnation, 1))
            else:
                alive = now.incarnation if now is not None and now.is_up else None
                self._fail_all(model, alive, m.FailReason.MODEL_DOWN, _ENDED)

    def handle_timer(self, payload: object) -> None:
        match payload:
            case (str(model), int(incarnation), int(looks)):
                now = self.directory.get(model_actor_id(model))
                stops = now is not None and (now.state, now.incarnation) == (
                    "stopping",
                    incarnation,
                )
                if stops and looks * LOOK_EVERY_S < STOPPING_S:
                    self.after(LOOK_EVERY_S, (model, incarnation, looks + 1))
                elif now is None or not now.is_up:
                    self._fail_all(model, None, m.FailReason.MODEL_UNLOADED, _UNLOADED)
            case _:
                self.log.warning("an unknown timer went off: %r", payload)

    def _fail_all(self, model: str, alive: int | None, reason: m.FailReason, detail: str) -> None:
        """End the requests of every incarnation of ``model`` but the one that is alive."""
        for request_id, running in list(self._requests.items()):
            if running.model == model and running.incarnation != alive:
                del self._requests[request_id]
                failed = m.CompletionFailed(running.ref, reason, detail.format(model=model))
                self.tell(running.reply_to, failed)

    def status(self) -> dict[str, object]:
        return {"in_flight": len(self._requests), "accepted": self._total}


def model_actor_id(model: str) -> str:
    """The id of a model's actor in the tree."""
    return f"model:{model}"


def _why_absent(model: str, entry: Entry | None) -> tuple[m.FailReason, str]:
    if entry is None or entry.state == "down":
        return (
            m.FailReason.MODEL_UNKNOWN,
            f"no model {model!r} is loaded; load it first (`load {model}=PATH`)",
        )
    return (
        m.FailReason.MODEL_DOWN,
        f"model {model!r} is {entry.state}; try again in a moment",
    )
