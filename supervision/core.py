"""The decisions of a supervisor, without processes, clocks or messages.

Events go in (a child is ready, a process ended, a timer fired, a child is asked for) and
effects come out (spawn, ask to stop, kill, arm a timer, answer), which ``supervisor.py`` carries
out. Rules kept here, whatever order events arrive in:

* Every event names a child and an incarnation; one that does not match is late or repeated and
  changes nothing.
* A static supervisor does one thing at a time, from a queue: start in spec order, each child
  only after the one before is ready; stop in reverse order, each only after the other is gone.
* Children of a simple_one_for_one supervisor are independent: starting, stopping or restarting
  one never waits for another.
* A start that was asked for fails for its asker only; any other start that fails is a failure of
  the supervisor's: its own start fails, or it counts a restart.
* Each asker is answered once.
"""

from __future__ import annotations

from collections.abc import Mapping

from supervision import requests
from supervision.effects import (
    AllReady,
    AnswerDeleted,
    AnswerDeleteFailed,
    AnswerNotFound,
    AnswerStarted,
    AnswerStartFailed,
    AnswerTerminated,
    Arm,
    Child,
    Crashed,
    Effect,
    Finished,
    Happened,
    Removed,
    State,
    Timer,
)
from supervision.errors import SpecError
from supervision.exits import FAILURES, SHUTDOWN, ExitKind, ExitReason
from supervision.messages import DeleteFailure, StartFailure
from supervision.operations import Operations
from supervision.restart import RESTARTS_ON, RestartWindow, affected, ends_supervisor
from supervision.spec import (
    BRUTAL_KILL,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)


class SupervisorCore:
    """One supervisor's state. Methods return the effects to carry out, in order."""

    def __init__(self, spec: SupervisorSpec, known: Mapping[str, int] | None = None) -> None:
        self.spec = spec
        self.children: dict[str, Child] = {}
        """In start order."""
        self.is_ready = False
        self.stopping: ExitReason | None = None
        self._finished = False
        self._known = dict(known or {})
        self._window = RestartWindow(spec.intensity, spec.period_s)
        self._auto_shutdown: ExitReason | None = None
        self._out: list[Effect] = []
        self._operations = Operations(self.children, self._out, one_at_a_time=not self.is_dynamic)
        for one in spec.children:
            self._add(one)

    @property
    def is_dynamic(self) -> bool:
        """Whether children come from a template, at run time."""
        return self.spec.strategy is Strategy.SIMPLE_ONE_FOR_ONE

    # ── events ───────────────────────────────────────────────────────────────

    def start(self) -> list[Effect]:
        """Begin: start every child of the spec, in order."""
        for child in self.children.values():
            self._operations.start(child)
        return self._settle()

    def child_ready(self, child_id: str, incarnation: int) -> list[Effect]:
        """A child has reported that its init is done."""
        child = self._match(child_id, incarnation, State.STARTING)
        if child is None:
            return []
        child.state = State.UP
        child.ever_ready = True
        child.is_new = False
        child.failure = None
        self._out.append(Happened("up", child.id, child.incarnation))
        self._out.extend(AnswerStarted(asker, child.id) for asker in child.start_askers)
        child.start_askers.clear()
        self._operations.started(child)
        return self._settle()

    def child_refused(
        self, child_id: str, incarnation: int, detail: str, error: object
    ) -> list[Effect]:
        """A child has reported that it cannot start; its exit follows."""
        child = self._match(child_id, incarnation, State.STARTING)
        if child is not None and child.failure is None:
            child.failure = (StartFailure.INIT_FAILED, detail, error)
            child.notice = ExitReason(ExitKind.ABNORMAL, f"init failed: {detail}")
        return []

    def child_exiting(self, child_id: str, incarnation: int, reason: ExitReason) -> list[Effect]:
        """A child has reported why it is about to end."""
        child = self._match(child_id, incarnation, State.STARTING, State.UP, State.STOPPING)
        if child is not None:
            child.notice = reason
        return []

    def child_exited(
        self, child_id: str, incarnation: int, reason: ExitReason, now: float
    ) -> list[Effect]:
        """A child's process is gone; ``reason`` is that of the exit status."""
        child = self._match(child_id, incarnation, State.STARTING, State.UP, State.STOPPING)
        if child is None:
            return []
        was = child.state
        child.last_exit = child.notice or reason
        child.notice = None
        child.state = State.DOWN
        self._out.append(
            Happened("down", child.id, incarnation, str(child.last_exit), child.last_exit)
        )
        if was is State.STOPPING or self._operations.is_to_stop(child):
            self._stopped(child)
        elif was is State.STARTING:
            self._start_failed(child, now)
        else:
            self._ended(child, child.last_exit.kind, now)
        was_killed_as_planned = was is State.STOPPING and child.spec.shutdown is BRUTAL_KILL
        if child.last_exit.kind in FAILURES and not was_killed_as_planned:
            return self._settle(Crashed(child, incarnation, child.last_exit))
        return self._settle()

    def timer_fired(self, timer: Timer, child_id: str, incarnation: int) -> list[Effect]:
        """A timer that was armed for this child and incarnation ran out."""
        child = self.children.get(child_id)
        if child is None or child.incarnation != incarnation:
            return []
        if timer is Timer.INIT and child.state is State.STARTING:
            text = f"not ready within {child.spec.init_timeout_s} s"
            if child.failure is None:
                child.failure = (StartFailure.INIT_TIMEOUT, text, None)
                child.notice = ExitReason(ExitKind.KILLED, text)
            self._operations.kill(child, text)
        elif timer is Timer.STOP and child.state is State.STOPPING:
            self._operations.kill(child, "did not stop in time")
        elif timer is Timer.BACKOFF and child.waits_for == child.id:
            self._operations.bring_back(child.id)
        return self._settle()

    # ── requests ─────────────────────────────────────────────────────────────

    def start_child(
        self, child_id: str, args: object, asker: object, spec: ChildSpec | None = None
    ) -> list[Effect]:
        """Handle a request for a new child, from the template or from the spec that comes along."""
        refusal = self._stopping_refusal() or requests.why_not_start(
            self.spec, self.children.get(child_id), has_spec=spec is not None
        )
        if refusal is None:
            try:
                made = requests.spec_of_new_child(self.spec, child_id, args, spec)
            except SpecError as error:
                refusal = StartFailure.BAD_SPEC, str(error)
            else:
                if old := self.children.pop(child_id, None):  # dynamic, down and given up
                    self._known[child_id] = old.incarnation
                child = self._add(made, is_new=True)
                child.start_askers.append(asker)
                self._operations.start(child)
        if refusal is not None:
            self._out.append(AnswerStartFailed(asker, child_id, *refusal))
        return self._settle()

    def restart_child(self, child_id: str, asker: object) -> list[Effect]:
        """Handle a request to start a known child that is down."""
        child = self.children.get(child_id)
        refusal = self._stopping_refusal() or requests.why_not_restart(self.spec, child)
        if refusal is not None:
            self._out.append(AnswerStartFailed(asker, child_id, *refusal))
        elif child is not None:
            child.start_askers.append(asker)
            self._operations.start(child)
        return self._settle()

    def terminate_child(self, child_id: str, asker: object) -> list[Effect]:
        """Handle a request to terminate a child."""
        child = self.children.get(child_id)
        if child is None:
            self._out.append(AnswerNotFound(asker, child_id))
            return self._settle()
        child.stop_askers.append(asker)
        self._operations.drop_starts({child.id})
        was_leading = child.waits_for == child.id
        child.waits_for = None
        if child.has_process:
            self._operations.stop(child)
        else:
            self._stopped(child)
        if was_leading:  # those that went down with it come back without it
            self._operations.bring_back(child.id)
        return self._settle()

    def delete_child(self, child_id: str, asker: object) -> list[Effect]:
        """Handle a request to forget a child that is down."""
        child = self.children.get(child_id)
        refusal = requests.why_not_delete(self.spec, child)
        if self.stopping is not None:
            refusal = DeleteFailure.SUPERVISOR_STOPPING, str(self.stopping)
        if refusal is not None:
            self._out.append(AnswerDeleteFailed(asker, child_id, *refusal))
        elif child is not None:
            self._forget(child)
            self._out.append(AnswerDeleted(asker, child_id))
        return self._settle()

    def stop(self, reason: ExitReason) -> list[Effect]:
        """Stop every child, in reverse start order, then finish with ``reason``."""
        if self.stopping is None:
            self._begin_stop(reason)
        return self._settle()

    # ── what follows an exit ─────────────────────────────────────────────────

    def _stopped(self, child: Child) -> None:
        """A child that was to stop is gone (or had no process)."""
        self._operations.stopped(child)
        if child.waits_for is not None:
            child.state = State.RESTARTING
            return
        child.state = State.DOWN
        why = self._stopping_refusal() or (StartFailure.STOPPED, "terminated before it was ready")
        self._refuse_askers(child, *why)
        child.is_new = False
        self._out.extend(AnswerTerminated(asker, child.id) for asker in child.stop_askers)
        child.stop_askers.clear()
        if self.stopping is None and self._is_forgotten_when_down(child):
            self._forget(child)

    def _start_failed(self, child: Child, now: float) -> None:
        """A child ended before it was ready."""
        reason, detail, error = child.failure or (
            StartFailure.DIED_IN_INIT, str(child.last_exit), None,
        )  # fmt: skip
        self._operations.started(child)
        was_asked_for = bool(child.start_askers)
        self._refuse_askers(child, reason, detail, error)
        if was_asked_for:
            if child.is_new or self._is_forgotten_when_down(child):
                self._forget(child)
        elif not child.ever_ready and not child.spec.restart_if_never_ready:
            if self._is_forgotten_when_down(child):
                self._forget(child)
        elif not self.is_ready:
            text = f"start of {child.id} failed: {reason.value}: {detail}"
            self._begin_stop(ExitReason(ExitKind.ABNORMAL, text))
        else:
            self._restart(child, now)

    def _ended(self, child: Child, kind: ExitKind, now: float) -> None:
        """A child that was up ended by itself."""
        if kind in RESTARTS_ON[child.spec.restart]:
            self._restart(child, now)
            return
        if self._is_forgotten_when_down(child):
            self._forget(child)
        if child.spec.significant and self._auto_shutdown is None:
            others = (one for one in self.children.values() if one.spec.significant)
            if ends_supervisor(self.spec.auto_shutdown, any(map(self._is_active, others))):
                text = f"auto_shutdown: {child.id} ended: {child.last_exit}"
                self._auto_shutdown = ExitReason(SHUTDOWN.kind, text)
                self._out.append(Happened("auto_shutdown", child.id, child.incarnation))

    def _restart(self, child: Child, now: float) -> None:
        window = self._window
        if self.is_dynamic:
            child.window = child.window or RestartWindow(self.spec.intensity, self.spec.period_s)
            window = child.window
        if not window.record(now):
            self._give_up(child)
            return
        child.restarts += 1
        group = affected(self.spec.strategy, tuple(self.children.values()), child)
        ids = [one.id for one in group]
        self._operations.drop_starts(ids)
        backoff = child.spec.backoff
        low_s, high_s = backoff.range_s(window.count(now)) if backoff else (0.0, 0.0)
        text = f"with {', '.join(ids)}" if len(group) > 1 else ""
        if backoff:
            text = f"{text} in {low_s:.2f} to {high_s:.2f} s".strip()
        self._out.append(Happened("restart", child.id, child.incarnation, text))
        for one in reversed(group):
            one.waits_for = child.id if self._comes_back(one) else None
            if one.has_process:
                self._operations.stop(one)
            elif one.waits_for is not None:
                one.state = State.RESTARTING
        if backoff:
            pause = Arm(Timer.BACKOFF, child.id, child.incarnation, low_s, high_s - low_s)
            self._out.append(pause)
        else:
            self._operations.bring_back(child.id)

    def _give_up(self, child: Child) -> None:
        text = f"more than {self.spec.intensity} restarts in {self.spec.period_s} s"
        self._out.append(Happened("give_up", child.id, child.incarnation, text))
        if not self.is_dynamic:
            last = f"{text}; {child.id} last: {child.last_exit}"
            self._begin_stop(ExitReason(ExitKind.ABNORMAL, last))

    def _begin_stop(self, reason: ExitReason) -> None:
        self.stopping = reason
        self._operations.only_stops()
        for child in reversed(self.children.values()):
            child.waits_for = None
            if child.has_process:
                self._operations.stop(child)
            else:
                child.state = State.DOWN
                self._refuse_askers(child, StartFailure.SUPERVISOR_STOPPING, str(reason))

    def _settle(self, report: Crashed | None = None) -> list[Effect]:
        """Do the next queued things until one must be waited for; return the effects."""
        self._operations.advance()
        if not self.is_ready and self.stopping is None and self._operations.is_idle:
            self.is_ready = True
            self._out.append(AllReady())
        if self._auto_shutdown is not None and self.is_ready and self.stopping is None:
            self._begin_stop(self._auto_shutdown)
            self._operations.advance()
        if report is not None:
            self._out.append(report)
        if self.stopping is not None and not self._finished and self._operations.is_idle:
            alive = any(child.has_process for child in self.children.values())
            if not alive:
                self._finished = True
                self._out.append(Finished(self.stopping))
        out = self._out.copy()
        self._out.clear()
        return out

    # ── small helpers ────────────────────────────────────────────────────────

    def _add(self, spec: ChildSpec, *, is_new: bool = False) -> Child:
        child = Child(spec, incarnation=self._known.get(spec.id, 0), is_new=is_new)
        self.children[child.id] = child
        return child

    def _match(self, child_id: str, incarnation: int, *states: State) -> Child | None:
        child = self.children.get(child_id)
        if child is None or child.incarnation != incarnation or child.state not in states:
            return None
        return child

    def _comes_back(self, child: Child) -> bool:
        """Whether a restart that takes this child along starts it again: not a temporary one.

        One that was still to start, or whose start was asked for, starts after all; one whose stop
        was asked for does not.
        """
        if child.stop_askers:
            return False
        is_owed = child.state is State.RESTARTING or bool(child.start_askers)
        return is_owed or child.spec.restart is not Restart.TEMPORARY

    def _is_active(self, child: Child) -> bool:
        """Whether it runs, or will again, as far as auto_shutdown is concerned."""
        leaves = child.state is State.STOPPING or self._operations.is_to_stop(child)
        return child.state is not State.DOWN and not (leaves and child.waits_for is None)

    def _is_forgotten_when_down(self, child: Child) -> bool:
        return self.is_dynamic or child.spec.restart is Restart.TEMPORARY

    def _stopping_refusal(self) -> tuple[StartFailure, str] | None:
        if self.stopping is None:
            return None
        return StartFailure.SUPERVISOR_STOPPING, str(self.stopping)

    def _refuse_askers(
        self, child: Child, reason: StartFailure, detail: str, error: object = None
    ) -> None:
        for asker in child.start_askers:
            self._out.append(AnswerStartFailed(asker, child.id, reason, detail, error))
        child.start_askers.clear()

    def _forget(self, child: Child) -> None:
        self._known[child.id] = child.incarnation
        self.children.pop(child.id, None)
        self._out.append(Removed(child))
