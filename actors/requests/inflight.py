"""Requests in flight: who asked, which model works on it, and an end for each of them.

Owns: the table of requests and questions, journals of requests (``journal``), and what is known of
those that crash models (``suspicion``). Answers: ``Complete``, ``Ask``, ``Submit``, ``Cancel``.
Asks: models. It lives outside the model processes on purpose: when one dies, its requests wait here
for its next incarnation, and go on in it at their next token; a question may be asked again.
Callers that die are noticed, and their requests are cancelled.

When this actor itself dies, its callers hear that at once and ask its successor, with what they
have received. Lost with the table is every suspicion: that costs a model one more crash per
poisonous request, which is cheaper than a table that outlives its bugs.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

from actors import messages as m
from actors.messages.actor_ids import model_actor_id, model_of
from actors.requests import request_table as core
from actors.requests.crash_attribution import KILLED_WEIGHT, PROOF_TOKENS, Lane
from actors.requests.model_wait import LOOK_EVERY_S, WaitingForModels
from actors.requests.questions import Question
from actors.requests.request_digest import digest_of, part_digests
from actors.requests.request_table import InFlight, why_absent
from supervision import Address, Entry, ExitKind

STOPPING_S = 6.0  # a model gets five seconds to end its requests before it is killed
RUNS_LIMIT = 8  # of one request; charges of crashes end it earlier, where they apply
HELD_LIMIT = 256  # as many as a model lets wait
PROOF_EVERY_S = 0.05
ASK_CALLERS_EVERY_S = 2.0
_BAD_EXITS = (ExitKind.ABNORMAL, ExitKind.KILLED)


class InflightActor(WaitingForModels):
    """The one place that knows every running request."""

    def init(self, args: object) -> None:
        del args
        self._requests: dict[str, InFlight] = {}
        self._lanes: dict[str, Lane] = {}
        self._timers: dict[str, float] = {}
        self._looking: set[str] = set()
        self._asking = False
        self._total = self._resumed = self._poisonous = self._orphans = 0
        with contextlib.suppress(OSError, ValueError):  # a journal per request: as many as allowed
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case m.Complete():
                self._accept(message, sender)
            case m.Ask() if isinstance(message.question, Question):
                self._accept(message, sender)
            case m.Submit(request, reply_to):
                self._accept(request, reply_to, is_direct=True)
            case m.Cancel(request_id):
                self._cancel(request_id)
            case m.RequestEnded(request_id):
                self._let_go(request_id)
            case m.CallerGone(caller):
                self._abandoned_by(caller)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    # ── in ──────────────────────────────────────────────────────────────────────────────────────

    def _accept(
        self, request: m.Complete | m.Ask, reply_to: Address, *, is_direct: bool = False
    ) -> None:
        model, now = request.model, time.monotonic()
        entry = self.directory.get(model_actor_id(model))
        if not core.is_coming(entry):
            self._fail_request(request, reply_to, *why_absent(model, entry))
            return
        lane = self._lanes.setdefault(model, Lane())
        # Nobody is suspected, nearly always; then no prompt is read here.
        digest = digest_of(request) if len(lane.sheet) else None
        why_poisonous = self._why_poisonous(lane, request, digest)
        if why_poisonous is not None:
            self._fail_request(request, reply_to, m.FailReason.POISONOUS, why_poisonous)
            return
        n_held = lane.n_held + len(self._waiting_for(model))
        if n_held >= HELD_LIMIT:
            detail = f"{n_held} requests already wait for this model; try again later"
            self._fail_request(request, reply_to, m.FailReason.OVERLOADED, detail)
            return
        request_id = uuid.uuid4().hex
        self._total += 1
        one = self._requests[request_id] = InFlight(request, reply_to, is_direct=is_direct)
        if isinstance(request, m.Complete):
            one.deadline = None if request.timeout_s is None else now + request.timeout_s
            self.tell(reply_to, m.Accepted(request.ref, request_id))
        if entry is not None and entry.is_up:
            self._run(model, lane.arrive(request_id, digest, now))
        else:
            self._wait(model, [request_id])
        if one.incarnation is None:
            self._mind_deadline(request_id, one)
        if not self._asking:
            self._asking = True
            self.after(ASK_CALLERS_EVERY_S, core.AskCallers())

    def _why_poisonous(
        self, lane: Lane, request: m.Complete | m.Ask, digest: bytes | None
    ) -> str | None:
        """Why a request is refused; ``digest`` is its own, where the sheet is not empty."""
        now, model = time.monotonic(), request.model
        if digest is None:
            return None
        if lane.sheet.is_poisonous(digest, now):
            return core.poisonous(model, lane.sheet.why(digest))
        if lane.sheet.counts()[1] and any(
            lane.sheet.is_poisonous(part, now) for part in part_digests(request)
        ):
            return core.POISONOUS_PART.format(model=model)
        return None

    def _run(self, model: str, let_in: Sequence[str]) -> None:
        """Send requests to their model; see to what the lane still waits for."""
        now = time.monotonic()
        entry = self.directory.get(model_actor_id(model))
        if let_in and (entry is None or not entry.is_up):
            self._interrupted(model)
            return
        for request_id in let_in:
            one = self._requests[request_id]
            one.incarnation = 0 if entry is None else entry.incarnation
            one.runs += 1
            # If it is gone already, its exit is about to be heard here, and the request waits.
            self.tell(model_actor_id(model), self._order(request_id, one, now))
        self._mind_lane(model, now)

    def _order(self, request_id: str, one: InFlight, now: float) -> m.Run | m.Answer:
        """What is sent to a model to have this done."""
        request = one.request
        if isinstance(request, m.Ask):
            return m.Answer(request_id, one.reply_to, request.question)
        if one.deadline is not None:
            request = replace(request, timeout_s=max(0.0, one.deadline - now))
        return m.Run(request_id, one.reply_to, request, one.open_journal())

    def _mind_lane(self, model: str, now: float) -> None:
        lane = self._lanes[model]
        due = lane.due()
        if due is None:
            return
        if lane.alone is not None:
            due = min(due, now + PROOF_EVERY_S)
        if self._timers.get(model, due + 1.0) > due:
            self._timers[model] = due
            self.after(max(0.0, due - now), core.LaneDue(model))

    def _lane_due(self, model: str) -> None:
        """Time has passed for those who are held; perhaps who holds them up has proved innocent."""
        self._timers.pop(model, None)
        lane = self._lanes.get(model)
        if lane is None:
            return
        now = time.monotonic()
        alone = self._requests.get(lane.alone or "")
        if lane.alone and alone and alone.n_accepted() >= alone.proved_at:
            self._run(model, lane.proved(lane.alone, now))
        else:
            self._run(model, lane.tick(now))

    def _mind_deadline(self, request_id: str, one: InFlight) -> None:
        """Of a request that no model has; a model minds those that it has."""
        if one.deadline is not None:
            self.after(max(0.0, one.deadline - time.monotonic()), core.Deadline(request_id))

    # ── out ─────────────────────────────────────────────────────────────────────────────────────

    def _let_go(self, request_id: str) -> InFlight | None:
        """Forget a request; who waited behind it may start."""
        left = self._requests.pop(request_id, None)
        if left is not None:
            left.close()
            if left.waits_since is None:
                self._run(left.model, self._lanes[left.model].ended(request_id, time.monotonic()))
        return left

    def _cancel(self, request_id: str) -> None:
        one = self._requests.get(request_id)
        if one is None:
            # It has ended, or the inflight that knew it has: then its model still runs it.
            for entry in self.directory.values():
                if model_of(entry.id) is not None:
                    self.tell(entry.id, m.CancelRun(request_id))
        elif isinstance(one.request, m.Ask):
            if one.incarnation is None:  # else the model answers it, and says when that is done
                self._let_go(request_id)
        elif one.incarnation is not None:
            self._lanes[one.model].interrupted(request_id)
            self.tell(model_actor_id(one.model), m.CancelRun(request_id))
        else:
            answer = core.cancelled(request_id, one)
            self._let_go(request_id)
            self.tell(one.reply_to, answer)

    # ── callers that go ─────────────────────────────────────────────────────────────────────────

    def undelivered(self, target: Address | str, message: object) -> None:
        if isinstance(target, Address):
            self._abandoned_by(target)
        else:
            super().undelivered(target, message)

    def _abandoned_by(self, caller: Address) -> None:
        for request_id, one in list(self._requests.items()):
            if one.reply_to != caller or one.is_abandoned:
                continue
            one.is_abandoned = True
            self._orphans += 1
            self.log.info("request %s is cancelled: its caller is gone", request_id)
            self._cancel(request_id)

    def _ask_callers(self) -> None:
        """A word to each: one that does not arrive says that its process is gone."""
        self._asking = bool(self._requests)
        if self._asking:
            self.after(ASK_CALLERS_EVERY_S, core.AskCallers())
        pinged = [one for one in self._requests.values() if one.wants_pings]
        for caller, ref in {r.reply_to: r.request.ref for r in pinged}.items():
            if not self.backlog(caller):  # else it has not read what it got, and may be at anything
                self.tell(caller, m.StillRunning(ref))

    # ── models that go ──────────────────────────────────────────────────────────────────────────

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        for entry in changed:
            model = model_of(entry.id)
            if model is None:
                continue
            now = self.directory.get(entry.id)
            if now is None:
                # Its supervisor died and took it along: nobody's fault. Or it was unloaded.
                self._interrupted(model)
            elif now.state == "stopping":
                # It tells its callers itself; this is for those it could not.
                theirs = frozenset(one for one, r in self._requests.items() if r.model == model)
                self.after(LOOK_EVERY_S, core.LookStopping(model, now.incarnation, theirs))
            else:
                self._may_have_died(model, now)
                if now.is_up:
                    self._go_on(model)

    def handle_timer(self, payload: object) -> None:
        match payload:
            case core.LookStopping():
                self._look_stopping(payload)
            case core.LookWaiting(model):
                self._looking.discard(model)
                self._look_waiting(model)
            case core.LaneDue(model):
                self._lane_due(model)
            case core.Deadline(request_id):
                self._time_is_up(request_id)
            case core.AskCallers():
                self._ask_callers()
            case _:
                self.log.warning("an unknown timer went off: %r", payload)

    def _time_is_up(self, request_id: str) -> None:
        one = self._requests.get(request_id)
        if one is not None and one.incarnation is None:
            detail = core.HELD_TOO_LONG if one.waits_since is None else core.AWAY_TOO_LONG
            self._let_go(request_id)
            self._fail_request(one.request, one.reply_to, m.FailReason.DEADLINE, detail)

    def _look_stopping(self, look: core.LookStopping) -> None:
        model = look.model
        now = self.directory.get(model_actor_id(model))
        stops = now is not None and (now.state, now.incarnation) == ("stopping", look.incarnation)
        if stops and look.looks * LOOK_EVERY_S < STOPPING_S:
            self.after(LOOK_EVERY_S, replace(look, looks=look.looks + 1))
            return
        theirs = [one for one in self._requests if one in look.requests]
        for request_id in sorted(theirs, key=lambda one: self._requests[one].incarnation or 0):
            one = self._requests[request_id]
            if one.incarnation in (None, look.incarnation):
                self._let_go(request_id)
                detail = core.UNLOADED.format(model=model)
                self._fail_request(one.request, one.reply_to, m.FailReason.MODEL_UNLOADED, detail)
        if not any(r.model == model for r in self._requests.values()):
            self._lanes.pop(model, None)  # what is loaded next may be another file

    def _may_have_died(self, model: str, now: Entry) -> None:
        """If the process that runs requests ended by itself: charge them, and let them wait."""
        alive = now.incarnation if now.is_up else None
        ran = {
            one: r
            for one, r in self._requests.items()
            if r.model == model and r.incarnation not in (None, alive)
        }
        if not ran:
            return
        if now.last_exit is not None and now.last_exit.kind in _BAD_EXITS:
            self._charge(model, now, ran)
        if now.state == "down":
            self._end_all(model, *why_absent(model, now))
        else:
            self._interrupted(model)

    def _charge(self, model: str, now: Entry, ran: dict[str, InFlight]) -> None:
        """One of those that ran may have crashed the model; the poisonous end here."""
        digests = {one: digest_of(r.request) for one, r in ran.items()}
        known = {one: digest for one, digest in digests.items() if digest is not None}
        is_sigkill = now.last_exit is not None and now.last_exit.signal == signal.SIGKILL
        weight = KILLED_WEIGHT if is_sigkill else 1.0
        why_killed = now.last_exit.text if now.last_exit is not None and is_sigkill else ""
        verdict = self._lanes[model].crashed(known, time.monotonic(), weight, why_killed)
        self._poisonous += len(verdict.poisonous)
        self.log.warning(
            "model %s died (%s) while it ran %s requests: %s are suspects, poisonous: %s",
            model, now.last_exit, len(ran), len(verdict.suspects),
            ", ".join(verdict.poisonous) or "none",
        )  # fmt: skip
        for request_id in verdict.poisonous:
            self._fail(request_id, m.FailReason.POISONOUS, core.poisonous(model, why_killed))

    # ── waiting for a model ─────────────────────────────────────────────────────────────────────

    def _interrupted(self, model: str) -> None:
        """The model's process is gone: whoever was in its lane waits for the next one."""
        if model not in self._lanes:
            return
        self._lanes[model].lost()
        in_lane = [
            one for one, r in self._requests.items() if r.model == model and r.waits_since is None
        ]
        for request_id in in_lane:
            one = self._requests[request_id]
            if isinstance(one.request, m.Ask) and one.incarnation is not None:
                self._fail(request_id, *core.why_interrupted(one.request))
                continue
            if one.runs >= RUNS_LIMIT:
                entry = self.directory.get(model_actor_id(model))
                why = None if entry is None else entry.last_exit
                detail = core.TOO_OFTEN.format(model=model, runs=one.runs, why=why or "see the log")
                self._fail(request_id, m.FailReason.MODEL_DOWN, detail)
                continue
            one.proved_at = one.n_accepted() + PROOF_TOKENS
            self._mind_deadline(request_id, one)
        self._wait(model, [one for one in in_lane if one in self._requests])

    def _go_on(self, model: str) -> None:
        """The model is up: those that wait for it run, from where they were interrupted."""
        now = time.monotonic()
        for request_id in self._waiting_for(model):
            one, lane = self._requests[request_id], self._lanes.setdefault(model, Lane())
            digest = digest_of(one.request) if len(lane.sheet) else None
            why_poisonous = self._why_poisonous(lane, one.request, digest)
            if why_poisonous is not None:
                self._fail(request_id, m.FailReason.POISONOUS, why_poisonous)
                continue
            one.waits_since = None
            self._resumed += one.runs > 0
            self._run(model, lane.arrive(request_id, digest, now))

    def _end_all(self, model: str, reason: m.FailReason, detail: str) -> None:
        if model in self._lanes:
            self._lanes[model].lost()
        for request_id in [one for one, r in self._requests.items() if r.model == model]:
            self._fail(request_id, reason, detail)

    def status(self) -> dict[str, object]:
        sheets = [lane.sheet.counts() for lane in self._lanes.values()]
        waiting = sum(1 for r in self._requests.values() if r.waits_since is not None)
        return {
            "in_flight": len(self._requests),
            "accepted": self._total,
            "resumed": self._resumed,
            "waiting_for_model": waiting,
            "orphans_cancelled": self._orphans,
            "held": sum(lane.n_held for lane in self._lanes.values()),
            "suspects": sum(suspects for suspects, _ in sheets),
            "poisonous_digests": sum(poisonous for _, poisonous in sheets),
            "poisonous_requests": self._poisonous,
        }
