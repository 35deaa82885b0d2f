"""Requests in flight: who asked, which model works on it, and an end for each of them.

Owns: the table of requests, and what is known of requests that crash models (``suspicion``).
Answers: ``Complete``, ``Submit``, ``Cancel``. Asks: models. It lives outside the model processes on
purpose: when one dies, its callers are told here, at once.

When this actor itself dies, running requests go on (models answer their callers directly) and
callers keep their own deadlines. Lost with the table are the right to be told of a later model
crash, for which callers watch the model themselves, and every suspicion: that costs a model one
more crash per poisonous request, which is cheaper than a table that outlives its bugs.
"""

from __future__ import annotations

import signal
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from actors import messages as m
from actors.request_digest import digest_of
from actors.suspicion import KILLED_WEIGHT, POISON_CRASHES, Lane
from supervision import ExitKind, Worker

if TYPE_CHECKING:
    from supervision import Address, Entry

LOOK_EVERY_S = 0.25
STOPPING_S = 6.0  # a model gets five seconds to end its requests before it is killed
HELD_LIMIT = 256  # as many as a model lets wait
_BAD_EXITS = (ExitKind.ABNORMAL, ExitKind.KILLED)
_ENDED = (
    "the process of model {model!r} ended during this request; it is being restarted, "
    "send the request again"
)
_UNLOADED = "model {model!r} was unloaded during this request; load it again"
_STOPPED = (
    "model {model!r} crashed so often that it was stopped (last: {why}); see the log, then load it "
    "again"
)
_POISONOUS = (
    f"model {{model!r}} died {POISON_CRASHES} times while it ran this request, at last as the only "
    "suspect: it hits a fault in llama.cpp or in the model file, and is refused for some minutes. "
    "Change the prompt or the model, or report the fault with the log"
)
_HELD_TOO_LONG = (
    "not started within its time limit, because a request that may have crashed the model runs "
    "alone; raise timeout_s"
)


@dataclass(slots=True)
class _InFlight:
    request: m.Complete
    reply_to: Address
    incarnation: int | None = None
    """Of the model that runs it; ``None`` while it is held."""
    deadline: float | None = None

    @property
    def model(self) -> str:
        return self.request.model


@dataclass(frozen=True, slots=True)
class _Look:
    """Timer: does the model still stop?"""

    model: str
    incarnation: int
    looks: int


@dataclass(frozen=True, slots=True)
class _LaneDue:
    """Timer: a suspect's time alone, or its wait for it, is over."""

    model: str


@dataclass(frozen=True, slots=True)
class _Deadline:
    """Timer: a held request's time limit is over."""

    request_id: str


class InflightActor(Worker):
    """The one place that knows every running request."""

    def init(self, args: object) -> None:
        del args
        self._requests: dict[str, _InFlight] = {}
        self._lanes: dict[str, Lane] = {}
        self._timers: dict[str, float] = {}
        self._total = 0
        self._poisonous = 0

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case m.Complete():
                self._accept(message, sender)
            case m.Submit(request, reply_to):
                self._accept(request, reply_to)
            case m.Cancel(request_id):
                self._cancel(request_id)
            case m.RequestEnded(request_id):
                self._let_go(request_id)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    # ── in ──────────────────────────────────────────────────────────────────────────────────────

    def _accept(self, request: m.Complete, reply_to: Address) -> None:
        entry = self.directory.get(model_actor_id(request.model))
        if entry is None or not entry.is_up:
            self._fail_request(request, reply_to, *_why_absent(request.model, entry))
            return
        now = time.monotonic()
        lane = self._lanes.setdefault(request.model, Lane())
        # Nobody is suspected, nearly always; then no prompt is read here.
        digest = digest_of(request) if len(lane.sheet) else None
        if digest is not None and lane.sheet.is_poisonous(digest, now):
            detail = _POISONOUS.format(model=request.model)
            self._fail_request(request, reply_to, m.FailReason.POISONOUS, detail)
            return
        if lane.n_held >= HELD_LIMIT:
            detail = f"{lane.n_held} requests already wait for this model; try again later"
            self._fail_request(request, reply_to, m.FailReason.OVERLOADED, detail)
            return
        request_id = uuid.uuid4().hex
        self._total += 1
        deadline = None if request.timeout_s is None else now + request.timeout_s
        self._requests[request_id] = _InFlight(request, reply_to, deadline=deadline)
        accepted = m.Accepted(request.ref, request_id, self.incarnation, entry.incarnation)
        self.tell(reply_to, accepted)
        self._run(request.model, lane.arrive(request_id, digest, now))
        if deadline is not None and self._requests[request_id].incarnation is None:
            self.after(deadline - now, _Deadline(request_id))

    def _run(self, model: str, let_in: tuple[str, ...]) -> None:
        """Send requests to their model; see to what the lane still waits for."""
        now = time.monotonic()
        entry = self.directory.get(model_actor_id(model))
        for request_id in let_in:
            running = self._requests[request_id]
            running.incarnation = 0 if entry is None else entry.incarnation
            request = running.request
            if running.deadline is not None:
                request = replace(request, timeout_s=max(0.0, running.deadline - now))
            # If the model is gone, its exit is about to be heard here and ends the request.
            self.tell(model_actor_id(model), m.Run(request_id, running.reply_to, request))
        due = self._lanes[model].due()
        if due is not None and self._timers.get(model) != due:
            self._timers[model] = due
            self.after(max(0.0, due - now), _LaneDue(model))

    def _fail_request(
        self, request: m.Complete, reply_to: Address, reason: m.FailReason, detail: str
    ) -> None:
        self.tell(reply_to, m.CompletionFailed(request.ref, reason, detail))

    # ── out ─────────────────────────────────────────────────────────────────────────────────────

    def _let_go(self, request_id: str) -> None:
        left = self._requests.pop(request_id, None)
        if left is not None:
            lane = self._lanes[left.model]
            self._run(left.model, lane.ended(request_id, time.monotonic()))

    def _cancel(self, request_id: str) -> None:
        running = self._requests.get(request_id)
        if running is None:
            # It has ended, or the inflight that knew it has: then its model still runs it.
            for entry in self.directory.values():
                if entry.id != entry.id.removeprefix("model:"):
                    self.tell(entry.id, m.CancelRun(request_id))
            return
        if running.incarnation is not None:
            self._lanes[running.model].interrupted(request_id)
            self.tell(model_actor_id(running.model), m.CancelRun(request_id))
            return
        self._let_go(request_id)
        self.tell(running.reply_to, _nothing(running.request.ref, request_id))

    def handle_timer(self, payload: object) -> None:
        match payload:
            case _Look():
                self._look(payload)
            case _LaneDue(model):
                self._timers.pop(model, None)
                if model in self._lanes:
                    self._run(model, self._lanes[model].tick(time.monotonic()))
            case _Deadline(request_id):
                held = self._requests.get(request_id)
                if held is not None and held.incarnation is None:
                    self._let_go(request_id)
                    self._fail_request(
                        held.request, held.reply_to, m.FailReason.DEADLINE, _HELD_TOO_LONG
                    )
            case _:
                self.log.warning("an unknown timer went off: %r", payload)

    # ── models that go ──────────────────────────────────────────────────────────────────────────

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        for entry in changed:
            model = entry.id.removeprefix("model:")
            if model == entry.id:
                continue
            now = self.directory.get(entry.id)
            if now is None:
                # Its supervisor died and took it along, or it was unloaded: nobody's fault.
                self._end_all(model, m.FailReason.MODEL_DOWN, _ENDED.format(model=model))
            elif now.state == "stopping":
                # It tells its callers itself; this is for those it could not.
                self.after(LOOK_EVERY_S, _Look(model, now.incarnation, 1))
            else:
                self._died(model, now)

    def _look(self, look: _Look) -> None:
        model = look.model
        now = self.directory.get(model_actor_id(model))
        stops = now is not None and (now.state, now.incarnation) == ("stopping", look.incarnation)
        if stops and look.looks * LOOK_EVERY_S < STOPPING_S:
            self.after(LOOK_EVERY_S, _Look(model, look.incarnation, look.looks + 1))
        elif now is None or not now.is_up:
            self._end_all(model, m.FailReason.MODEL_UNLOADED, _UNLOADED.format(model=model))
            self._lanes.pop(model, None)  # what is loaded next may be another file

    def _died(self, model: str, now: Entry) -> None:
        """The model's process ended by itself; charge its requests, and end them all."""
        alive = now.incarnation if now.is_up else None
        dead = {
            one: running
            for one, running in self._requests.items()
            if running.model == model and running.incarnation != alive
        }
        if not dead:
            return
        if now.last_exit is None or now.last_exit.kind not in _BAD_EXITS:
            self._end_all(model, m.FailReason.MODEL_DOWN, _ENDED.format(model=model))
            return
        ran = {one: digest_of(r.request) for one, r in dead.items() if r.incarnation is not None}
        known = {one: digest for one, digest in ran.items() if digest is not None}
        weight = KILLED_WEIGHT if now.last_exit.signal == signal.SIGKILL else 1.0
        verdict = self._lanes[model].crashed(known, time.monotonic(), weight)
        self._poisonous += len(verdict.poisonous)
        self.log.warning(
            "model %s died (%s) while it ran %s requests: %s are suspects, poisonous: %s",
            model, now.last_exit, len(ran), len(verdict.suspects),
            ", ".join(verdict.poisonous) or "none",
        )  # fmt: skip
        for request_id in verdict.poisonous:
            running = self._requests.pop(request_id)
            detail = _POISONOUS.format(model=model)
            self._fail_request(running.request, running.reply_to, m.FailReason.POISONOUS, detail)
        if now.state == "down":
            reason, detail = _why_absent(model, now)
        else:
            reason, detail = m.FailReason.MODEL_DOWN, _ENDED.format(model=model)
        self._end_all(model, reason, detail)

    def _end_all(self, model: str, reason: m.FailReason, detail: str) -> None:
        if model in self._lanes:
            self._lanes[model].lost()
        for request_id in [one for one, r in self._requests.items() if r.model == model]:
            running = self._requests.pop(request_id)
            self._fail_request(running.request, running.reply_to, reason, detail)

    def status(self) -> dict[str, object]:
        sheets = [lane.sheet.counts() for lane in self._lanes.values()]
        return {
            "in_flight": len(self._requests),
            "accepted": self._total,
            "held": sum(lane.n_held for lane in self._lanes.values()),
            "suspects": sum(suspects for suspects, _ in sheets),
            "poisonous_digests": sum(poisonous for _, poisonous in sheets),
            "poisonous_requests": self._poisonous,
        }


def model_actor_id(model: str) -> str:
    """The id of a model's actor in the tree."""
    return f"model:{model}"


def _why_absent(model: str, entry: Entry | None) -> tuple[m.FailReason, str]:
    if entry is None:
        return (
            m.FailReason.MODEL_UNKNOWN,
            f"no model {model!r} is loaded; load it first (`load {model}=PATH`)",
        )
    if entry.state == "down":
        return m.FailReason.MODEL_STOPPED, _STOPPED.format(model=model, why=entry.last_exit)
    return (
        m.FailReason.MODEL_DOWN,
        f"model {model!r} is {entry.state}; try again in a moment",
    )


def _nothing(ref: str, request_id: str) -> m.Completed:
    """The end of a request that was cancelled before it was sent to its model."""
    return m.Completed(
        ref=ref,
        request_id=request_id,
        finish_reason=m.FinishReason.CANCELLED,
        finish_key=None,
        stop_sequence=None,
        usage=m.Usage(0, 0, 0),
        cache=m.CacheReport(m.HitKind.COLD, "none", 0.0, "not_started"),
        timings=m.Timings(0.0, 0.0, 0.0, 0.0, 0.0),
    )
