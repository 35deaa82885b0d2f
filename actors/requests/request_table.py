"""The requests in flight: events in, effects out. No clock, no process, no file.

Every request and question is in one of three states: *running* (its model has it), *held* (the
model runs a suspect of a crash alone, see ``crash_attribution``) or *waiting* (its model's process
is gone and a supervisor starts another, or it is not in memory and ``residency`` has it loaded).
Whatever happens to models, callers and the clock, each
ends once: with its model's answer, with a failure, or cancelled.

The actor calls one method per event and carries out the effects in order. Times are monotonic
seconds and are passed in.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from actors import messages as m
from actors.messages.actor_ids import RESIDENCY, model_actor_id, model_of
from actors.messages.queue_pace import QueuePace
from actors.requests import effects as fx
from actors.requests import failures
from actors.requests.crash_attribution import KILLED_WEIGHT, PROOF_TOKENS, Lane
from actors.requests.failures import Failure
from supervision import Address, Entry, ExitKind

LOOK_EVERY_S: Final = (
    0.25  # at models that requests wait for: there is no message that one will not come
)
GONE_S: Final = 0.5  # notices of a supervisor's end and of its children's may arrive apart
HEAL_TIMEOUT_S: Final = 30.0  # until a model that died is at least being loaded again
STOPPING_S: Final = 6.0  # a model gets five seconds to end its requests before it is killed
RUNS_LIMIT: Final = 8  # of one request; charges of crashes end it earlier, where they apply
HELD_LIMIT: Final = 256  # as many as may wait in a model
PROOF_EVERY_S: Final = 0.05
MAX_NAMED_TRACES: Final = 8
PING_EVERY_S: Final = 2.0
_BAD_EXITS: Final = (ExitKind.ABNORMAL, ExitKind.KILLED)

Request = m.Complete | m.Ask


@dataclass(slots=True)
class InFlight:
    """One request or question, from its arrival to its end."""

    request: Request
    reply_to: Address
    deadline: float | None = None
    incarnation: int | None = None
    """Of the model that runs it; ``None`` while it is held or waits."""
    waits_since: float | None = None
    """When its model's process ended; ``None`` while it runs or is held."""
    waits_under: int = 0
    """Incarnation of the models' supervisor at that time."""
    runs: int = 0
    """How often it was sent to its model."""
    proved_at: int = 1
    """Accepted tokens by which it has gone beyond what it did when a model died."""
    is_cancelled: bool = False
    """Its model is ending it; it is not run again if that model dies."""
    is_abandoned: bool = False
    """Its caller's process has ended, and it is being cancelled."""
    is_direct: bool = False
    """It was sent to the model itself: its caller does not expect messages from inflight."""

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def is_running(self) -> bool:
        return self.incarnation is not None

    @property
    def is_waiting(self) -> bool:
        return self.waits_since is not None

    @property
    def wants_pings(self) -> bool:
        """Whether its caller gets ``StillRunning``; not while a model answers a question."""
        is_question = isinstance(self.request, m.Ask)
        return not is_question or (not self.is_running and not self.is_direct)


@dataclass(slots=True)
class Counts:
    """Of all requests since the start."""

    accepted: int = 0
    resumed: int = 0
    poisonous: int = 0
    orphans: int = 0


class RequestTable:
    """Decides for every request which model has it, when it waits, and how it ends.

    ``directory`` is the tree as the actor sees it, and is only read. ``accepted`` counts the reply
    tokens that a request's journal holds; ``digest`` and ``part_digests`` identify requests.
    """

    def __init__(
        self,
        directory: Mapping[str, Entry],
        *,
        accepted: Callable[[str], int],
        digest: Callable[[Request], bytes | None],
        part_digests: Callable[[Request], Iterable[bytes]],
    ) -> None:
        self.requests: dict[str, InFlight] = {}
        self.counts = Counts()
        self._directory = directory
        self._accepted = accepted
        self._digest = digest
        self._part_digests = part_digests
        self._lanes: dict[str, Lane] = {}
        self._paces: dict[str, QueuePace] = {}
        self._lane_due: dict[str, float] = {}
        self._looking: set[str] = set()
        self._awaited: set[str] = set()
        """Models that are not there, and that ``residency`` has loaded."""
        self._holds: dict[str, tuple[str, int]] = {}
        """Models that are to leave memory: the ref of what tells that nothing runs there, and the
        incarnation."""
        self._reported: set[str] = set()
        """Of those: where that was reported."""
        self._used: dict[str, float] = {}
        self._is_pinging = False
        self._effects: list[fx.Effect] = []

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def arrived(
        self,
        now: float,
        request_id: str,
        request: Request,
        reply_to: Address,
        *,
        is_direct: bool = False,
    ) -> list[fx.Effect]:
        """A request or a question has arrived; ``request_id`` is new."""
        model = request.model
        entry = self._entry(model)
        lane = self._lanes.get(model) or Lane()
        # There is no suspect, nearly always; then no prompt is read here.
        digest = self._digest(request) if len(lane.sheet) else None
        refused = self._why_refused(now, lane, request, digest)
        if refused is not None:
            self._reply_failed(request, reply_to, refused)
            return self._done()
        self._lanes[model] = lane
        self._paces.setdefault(model, QueuePace()).arrived(now)
        self.counts.accepted += 1
        one = self.requests[request_id] = InFlight(request, reply_to, is_direct=is_direct)
        if isinstance(request, m.Complete):
            one.deadline = None if request.timeout_s is None else now + request.timeout_s
        at = len(self._effects)
        if entry is not None and entry.is_up and model not in self._holds:
            self._run(now, model, lane.arrive(request_id, digest, now))
        else:
            self._wait(now, model, [request_id])
        if isinstance(request, m.Complete):
            while at < len(self._effects) and isinstance(self._effects[at], fx.Start):
                at += 1  # the model begins before the caller has this
            self._effects.insert(at, fx.Reply(reply_to, m.Accepted(request.ref, request_id)))
        if not one.is_running:
            self._watch_deadline(now, request_id, one)
        if not self._is_pinging:
            self._is_pinging = True
            self._effects.append(fx.After(PING_EVERY_S, fx.PingCallers()))
        return self._done()

    def ended(self, now: float, request_id: str) -> list[fx.Effect]:
        """The model has ended a request; those that were held behind it may start."""
        self._remove(now, request_id)
        return self._done()

    def cancelled(self, now: float, request_id: str, *, awaits_end: bool = True) -> list[fx.Effect]:
        """The caller cancels a request, and reads its end only if it ``awaits_end``."""
        self._cancel(now, request_id, awaits_end=awaits_end)
        return self._done()

    def caller_gone(self, now: float, caller: Address) -> list[fx.Effect]:
        """A caller's process has ended: its requests are cancelled."""
        for request_id, one in list(self.requests.items()):
            if one.reply_to != caller or one.is_abandoned:
                continue
            one.is_abandoned = True
            self.counts.orphans += 1
            self._effects.append(
                fx.Log(f"request {request_id} is cancelled: its caller's process has ended")
            )
            self._cancel(now, request_id, awaits_end=False)
        return self._done()

    def directory_changed(self, now: float, changed: Iterable[Entry]) -> list[fx.Effect]:
        """Processes have started, stopped or died; ``directory`` is up to date already."""
        for one in changed:
            model = model_of(one.id)
            if model is None:
                if one.id == RESIDENCY:
                    self._residency_changed(now)
                continue
            entry = self._directory.get(one.id)
            self._awaited.discard(model)
            if entry is not None and entry.is_up and self._is_another(model, entry):
                self._release(model)
            if entry is None:
                # Its supervisor died and took it along, so no request is charged. Or it was
                # unloaded.
                self._interrupted(now, model)
                self._need(model)
            elif entry.state == "stopping":
                # It answers its callers itself; this is for those that it could not answer.
                is_left = model in self._holds  # by itself: those that wait wake it again
                ones = self._requests_of(model)
                theirs = frozenset(
                    one for one in ones if not (is_left and self.requests[one].is_waiting)
                )
                look = fx.LookStopping(model, entry.incarnation, theirs)
                self._effects.append(fx.After(LOOK_EVERY_S, look))
            else:
                self._may_have_died(now, model, entry)
                if entry.is_up:
                    self._resume(now, model)
        return self._done()

    # ── models that come and go ─────────────────────────────────────────────────────────────────

    def awaited(self, model: str) -> list[fx.Effect]:
        """``residency`` knows the model, and will have it loaded or refuse it."""
        if self._is_absent(model):
            self._awaited.add(model)
        return self._done()

    def loading(self, model: str, share: float) -> list[fx.Effect]:
        """So much of the file is read: those that wait for the model get that."""
        for request_id in self._waiting_for(model):
            one = self.requests[request_id]
            if isinstance(one.request, m.Complete) and one.request.load_events:
                told = m.ModelLoading(one.request.ref, share)
                self._effects.append(fx.Reply(one.reply_to, told))
        return self._done()

    def not_coming(self, model: str, failure: Failure | None) -> list[fx.Effect]:
        """The model will not be loaded; ``failure`` of None: there is no model of this name."""
        self._awaited.discard(model)
        if not self._is_absent(model):
            return self._done()  # a caller has loaded it meanwhile
        entry = self._entry(model)
        for request_id in self._waiting_for(model):
            runs = self.requests[request_id].runs
            gone = failures.unloaded(model) if runs else failures.absent(model, entry)
            self._fail(request_id, failure or gone)
        if not self._requests_of(model):
            self._lanes.pop(model, None)  # a name that no model has, or another file next time
            self._paces.pop(model, None)
        return self._done()

    def held(self, ref: str, model: str, incarnation: int, *, if_idle: bool) -> list[fx.Effect]:
        """The model shall leave memory: it gets no more, and nothing runs there in a moment."""
        if if_idle and self._requests_of(model):
            self._effects.append(fx.Held(ref, model, is_held=False))
        else:
            self._holds[model] = ref, incarnation
            self._reported.discard(model)
        return self._done()

    def released(self, now: float, model: str) -> list[fx.Effect]:
        """It stays, or has left: those that wait for it may start, or wake it."""
        self._release(model)
        self._resume_if_up(now, model)
        self._need(model)
        return self._done()

    def uses(self) -> tuple[m.ModelUse, ...]:
        """The models in the tree that have had requests, and how many they have now."""
        counts = dict.fromkeys(self._used, 0)
        for one in self.requests.values():
            counts[one.model] = counts.get(one.model, 0) + 1
        return tuple(
            m.ModelUse(one, n, self._used.get(one, 0.0))
            for one, n in counts.items()
            if self._entry(one) is not None
        )

    def _residency_changed(self, now: float) -> None:
        """The process that holds models may have ended: what it held and is up, is free again."""
        entry = self._directory.get(RESIDENCY)
        if entry is not None and entry.is_up:
            return
        self._awaited.clear()
        for model in list(self._holds):
            found = self._entry(model)
            if found is not None and found.is_up:
                self._release(model)
                self._resume_if_up(now, model)

    def _is_another(self, model: str, entry: Entry) -> bool:
        """Whether this is a successor of the process that is held."""
        return model in self._holds and self._holds[model][1] < entry.incarnation

    def _release(self, model: str) -> None:
        self._holds.pop(model, None)
        self._reported.discard(model)

    def _resume_if_up(self, now: float, model: str) -> None:
        entry = self._entry(model)
        if entry is not None and entry.is_up:
            self._resume(now, model)

    def _report_holds(self) -> None:
        """Of models where nothing runs any more."""
        for model, (ref, _) in self._holds.items():
            if model not in self._reported and all(
                one.is_waiting for one in self.requests.values() if one.model == model
            ):
                self._reported.add(model)
                self._effects.append(fx.Held(ref, model, is_held=True))

    def _is_absent(self, model: str) -> bool:
        """Whether the model is not there and not coming, and there is an actor that loads it."""
        return self._loads_models() and not failures.is_coming(self._entry(model))

    def _loads_models(self) -> bool:
        return failures.is_coming(self._directory.get(RESIDENCY))

    def _need(self, model: str) -> None:
        """Ask for a model that is not there, if something waits for it."""
        waiting = [self.requests[one].waits_since for one in self._waiting_for(model)]
        since = min((at for at in waiting if at is not None), default=None)
        if since is not None and self._is_absent(model):
            self._effects.append(fx.Need(model, since))

    def timer(self, now: float, timer: fx.Timer) -> list[fx.Effect]:
        """A timer that was asked for with ``After`` has fired."""
        match timer:
            case fx.LookStopping():
                self._look_stopping(now, timer)
            case fx.LookWaiting(model):
                self._looking.discard(model)
                self._look_waiting(now, model)
            case fx.LaneDue(model):
                self._let_in(now, model)
            case fx.Deadline(request_id):
                self._time_is_up(now, request_id)
            case fx.PingCallers():
                self._ping_callers()
        return self._done()

    def status(self) -> dict[str, object]:
        """Counts for a status report."""
        sheets = [lane.sheet.counts() for lane in self._lanes.values()]
        return {
            "in_flight": len(self.requests),
            "accepted": self.counts.accepted,
            "resumed": self.counts.resumed,
            "waiting_for_model": sum(one.is_waiting for one in self.requests.values()),
            "orphans_cancelled": self.counts.orphans,
            "held": sum(lane.n_held for lane in self._lanes.values()),
            "suspects": sum(suspects for suspects, _ in sheets),
            "poisonous_digests": sum(poisonous for _, poisonous in sheets),
            "poisonous_requests": self.counts.poisonous,
        }

    def _done(self) -> list[fx.Effect]:
        if self._holds:
            self._report_holds()
        effects, self._effects = self._effects, []
        return effects

    def _entry(self, model: str) -> Entry | None:
        return self._directory.get(model_actor_id(model))

    def _requests_of(self, model: str) -> list[str]:
        return [one for one, r in self.requests.items() if r.model == model]

    def _waiting_for(self, model: str) -> list[str]:
        return [one for one, r in self.requests.items() if r.model == model and r.is_waiting]

    # ── in ──────────────────────────────────────────────────────────────────────────────────────

    def _why_refused(
        self, now: float, lane: Lane, request: Request, digest: bytes | None
    ) -> Failure | None:
        model = request.model
        entry = self._entry(model)
        if not failures.is_coming(entry) and not self._loads_models():
            return failures.absent(model, entry)
        poisonous = self._why_poisonous(now, lane, request, digest)
        if poisonous is not None:
            return poisonous
        n_waiting = lane.n_held + len(self._waiting_for(model))
        if n_waiting < HELD_LIMIT:
            return None
        return failures.overloaded(n_waiting, self._paces[model].facts(now))

    def _why_poisonous(
        self, now: float, lane: Lane, request: Request, digest: bytes | None
    ) -> Failure | None:
        """``digest`` is that of the request, where the sheet is not empty."""
        if digest is None:
            return None
        if lane.sheet.is_poisonous(digest, now):
            return failures.poisonous(request.model, lane.sheet.why(digest))
        if lane.sheet.counts()[1] and any(
            lane.sheet.is_poisonous(part, now) for part in self._part_digests(request)
        ):
            return failures.poisonous_part(request.model)
        return None

    def _run(self, now: float, model: str, let_in: Iterable[str]) -> None:
        """Send requests to their model; set a timer for what the lane still waits for."""
        entry = self._entry(model)
        let_in = tuple(let_in)
        if let_in and (entry is None or not entry.is_up):
            self._interrupted(now, model)
            return
        if let_in:
            self._used[model] = now
        for request_id in let_in:
            one = self.requests[request_id]
            one.incarnation = 0 if entry is None else entry.incarnation
            one.runs += 1
            request = one.request
            if isinstance(request, m.Complete) and one.deadline is not None:
                request = replace(request, timeout_s=max(0.0, one.deadline - now))
            # If the process has ended already, its exit arrives next, and the request waits.
            self._effects.append(fx.Start(request_id, model, request, one.reply_to))
        self._watch_lane(now, model)

    def _watch_lane(self, now: float, model: str) -> None:
        lane = self._lanes[model]
        due = lane.due()
        if due is None:
            return
        if lane.alone is not None:
            due = min(due, now + PROOF_EVERY_S)
        if self._lane_due.get(model, due + 1.0) > due:
            self._lane_due[model] = due
            self._effects.append(fx.After(max(0.0, due - now), fx.LaneDue(model)))

    def _let_in(self, now: float, model: str) -> None:
        """Time has passed for those that are held; the suspect may have been cleared."""
        self._lane_due.pop(model, None)
        lane = self._lanes.get(model)
        if lane is None:
            return
        alone = self.requests.get(lane.alone or "")
        if lane.alone and alone and self._accepted(lane.alone) >= alone.proved_at:
            self._run(now, model, lane.proved(lane.alone, now))
        else:
            self._run(now, model, lane.tick(now))

    def _watch_deadline(self, now: float, request_id: str, one: InFlight) -> None:
        """Of a request that no model has; a model ends those that it has."""
        if one.deadline is not None:
            left_s = max(0.0, one.deadline - now)
            self._effects.append(fx.After(left_s, fx.Deadline(request_id)))

    # ── out ─────────────────────────────────────────────────────────────────────────────────────

    def _remove(self, now: float, request_id: str) -> InFlight | None:
        """Forget a request; those that were held behind it may start."""
        left = self.requests.pop(request_id, None)
        if left is not None:
            self._effects.append(fx.Forget(request_id))
            if not left.is_waiting:
                self._used[left.model] = now
                lane = self._lanes[left.model]
                let_in = lane.ended(request_id, now)
                is_busy = bool(lane.running or lane.n_held)
                self._paces[left.model].ended(now, is_busy=is_busy)
                self._run(now, left.model, let_in)
        return left

    def _fail(self, request_id: str, failure: Failure) -> None:
        """End a request that is in no lane."""
        left = self.requests.pop(request_id)
        self._effects.append(fx.Forget(request_id))
        self._reply_failed(left.request, left.reply_to, failure)

    def _reply_failed(self, request: Request, reply_to: Address, failure: Failure) -> None:
        self._effects.append(fx.Reply(reply_to, failures.failed(request, failure)))

    def _cancel(self, now: float, request_id: str, *, awaits_end: bool) -> None:
        one = self.requests.get(request_id)
        if one is None:
            # It has ended, or the inflight that had it has: then its model still runs it.
            self._effects.append(fx.Stop(request_id, None, awaits_end))
        elif isinstance(one.request, m.Ask):
            if not one.is_running:  # else the model answers it, and reports the end of that
                self._remove(now, request_id)
        elif one.is_running:
            one.is_cancelled = True
            self._lanes[one.model].interrupted(request_id)
            self._effects.append(fx.Stop(request_id, one.model, awaits_end))
        else:
            self._reply_cancelled(now, request_id, one)

    def _reply_cancelled(self, now: float, request_id: str, one: InFlight) -> None:
        """End a cancelled request that no model has."""
        self._effects.append(fx.ReplyCancelled(one.reply_to, request_id, one.request.ref))
        self._remove(now, request_id)

    def _time_is_up(self, now: float, request_id: str) -> None:
        one = self.requests.get(request_id)
        if one is not None and not one.is_running:
            failure = failures.out_of_time(is_held=not one.is_waiting)
            self._remove(now, request_id)
            self._reply_failed(one.request, one.reply_to, failure)

    def _ping_callers(self) -> None:
        """A ping that cannot be delivered shows that its caller's process has ended."""
        self._is_pinging = bool(self.requests)
        if self._is_pinging:
            self._effects.append(fx.After(PING_EVERY_S, fx.PingCallers()))
        pinged = [one for one in self.requests.values() if one.wants_pings]
        for caller, ref in {r.reply_to: r.request.ref for r in pinged}.items():
            self._effects.append(fx.Ping(caller, ref))

    # ── models that stop or die ─────────────────────────────────────────────────────────────────

    def _look_stopping(self, now: float, look: fx.LookStopping) -> None:
        model = look.model
        entry = self._entry(model)
        stops = entry is not None and (entry.state, entry.incarnation) == (
            "stopping",
            look.incarnation,
        )
        if stops and look.looks * LOOK_EVERY_S < STOPPING_S:
            again = replace(look, looks=look.looks + 1)
            self._effects.append(fx.After(LOOK_EVERY_S, again))
            return
        theirs = [one for one in self.requests if one in look.requests]
        for request_id in sorted(theirs, key=lambda one: self.requests[one].incarnation or 0):
            one = self.requests[request_id]
            if one.incarnation in (None, look.incarnation):
                self._remove(now, request_id)
                self._reply_failed(one.request, one.reply_to, failures.unloaded(model))
        if not self._requests_of(model):
            self._lanes.pop(model, None)  # what is loaded next may be another file
            self._paces.pop(model, None)

    def _may_have_died(self, now: float, model: str, entry: Entry) -> None:
        """If the process that runs requests ended by itself: charge them, and let them wait."""
        alive = entry.incarnation if entry.is_up else None
        ran = {
            one: self.requests[one]
            for one in self._requests_of(model)
            if self.requests[one].incarnation not in (None, alive)
        }
        if not ran:
            return
        if entry.last_exit is not None and entry.last_exit.kind in _BAD_EXITS:
            self._charge(now, model, entry, ran)
        if entry.state == "down":
            self._lanes[model].lost()
            for request_id in self._requests_of(model):
                self._fail(request_id, failures.absent(model, entry))
        else:
            self._interrupted(now, model)

    def _charge(self, now: float, model: str, entry: Entry, ran: dict[str, InFlight]) -> None:
        """One of those that ran may have crashed the model; the poisonous end here."""
        digests = {one: self._digest(r.request) for one, r in ran.items()}
        known = {one: digest for one, digest in digests.items() if digest is not None}
        is_sigkill = entry.last_exit is not None and entry.last_exit.signal == signal.SIGKILL
        weight = KILLED_WEIGHT if is_sigkill else 1.0
        why_killed = entry.last_exit.text if entry.last_exit is not None and is_sigkill else ""
        verdict = self._lanes[model].crashed(known, now, weight, why_killed)
        self.counts.poisonous += len(verdict.poisonous)
        poisonous = ", ".join(verdict.poisonous) or "none"
        traces = sorted({getattr(one.request, "trace_id", "") for one in ran.values()} - {""})
        named = f"; traces: {', '.join(traces[:MAX_NAMED_TRACES])}" if traces else ""
        self._effects.append(
            fx.Log(
                f"model {model} died ({entry.last_exit}) while it ran {len(ran)} requests: "
                f"{len(verdict.suspects)} are suspects, poisonous: {poisonous}{named}",
                is_warning=True,
            )
        )
        for request_id in verdict.poisonous:
            self._fail(request_id, failures.poisonous(model, why_killed))

    # ── waiting for a model ─────────────────────────────────────────────────────────────────────

    def _interrupted(self, now: float, model: str) -> None:
        """The model's process has ended: what was in its lane waits for the next one."""
        if model not in self._lanes:
            return
        self._lanes[model].lost()
        for request_id in self._requests_of(model):
            one = self.requests[request_id]
            if one.is_waiting:
                continue
            if one.is_cancelled:
                one.incarnation, one.waits_since = None, now
                self._reply_cancelled(now, request_id, one)
            elif isinstance(one.request, m.Ask) and one.is_running:
                self._fail(request_id, failures.interrupted(one.request))
            elif one.runs >= RUNS_LIMIT:
                entry = self._entry(model)
                why = None if entry is None else entry.last_exit
                self._fail(request_id, failures.died_too_often(model, one.runs, why))
            else:
                one.proved_at = self._accepted(request_id) + PROOF_TOKENS
                self._watch_deadline(now, request_id, one)
                self._wait(now, model, [request_id])

    def _wait(self, now: float, model: str, request_ids: Iterable[str]) -> None:
        models = self._directory.get("models")
        for request_id in request_ids:
            one = self.requests[request_id]
            one.incarnation, one.waits_since = None, now
            one.waits_under = 0 if models is None else models.incarnation
        self._need(model)
        self._keep_looking(model)

    def _resume(self, now: float, model: str) -> None:
        """The model is up: those that wait for it run, from where they were interrupted."""
        if model in self._holds:
            return
        for request_id in self._waiting_for(model):
            one, lane = self.requests[request_id], self._lanes.setdefault(model, Lane())
            digest = self._digest(one.request) if len(lane.sheet) else None
            poisonous = self._why_poisonous(now, lane, one.request, digest)
            if poisonous is not None:
                self._fail(request_id, poisonous)
                continue
            one.waits_since = None
            self.counts.resumed += one.runs > 0
            self._run(now, model, lane.arrive(request_id, digest, now))

    def _keep_looking(self, model: str) -> None:
        """There is no message that a model is stopped for good, or unloaded, while it is not up."""
        if model not in self._looking and self._waiting_for(model):
            self._looking.add(model)
            self._effects.append(fx.After(LOOK_EVERY_S, fx.LookWaiting(model)))

    def _look_waiting(self, now: float, model: str) -> None:
        for request_id in self._waiting_for(model):
            failure = self._why_not_back(now, model, self.requests[request_id])
            if failure is not None:
                self._fail(request_id, failure)
        self._need(model)
        self._keep_looking(model)

    def _why_not_back(self, now: float, model: str, one: InFlight) -> Failure | None:
        """Why a request need not wait for its model any longer."""
        entry, models = self._entry(model), self._directory.get("models")
        waited_s = now - (now if one.waits_since is None else one.waits_since)
        if model in self._holds:
            return None  # it waits for those that run, and then until the model is loaded again
        if self._is_absent(model) and (model in self._awaited or waited_s < HEAL_TIMEOUT_S):
            return None  # it is loaded, in its turn; or that is not known yet
        is_same = models is not None and models.is_up and models.incarnation == one.waits_under
        if entry is None and is_same and waited_s >= GONE_S:
            return failures.unloaded(model) if one.runs else failures.absent(model, None)
        if entry is not None and entry.state == "down":
            return failures.absent(model, entry)
        if waited_s >= HEAL_TIMEOUT_S and (entry is None or entry.state != "starting"):
            why = None if entry is None else entry.last_exit
            return failures.not_back(model, why, HEAL_TIMEOUT_S)
        return None
