"""The decisions of a supervisor, without processes, clocks or messages.

Events go in (a child is ready, a process ended, a timer fired, somebody asks for a child) and
effects come out (spawn, ask to stop, kill, arm a timer, answer). The shell in ``supervisor.py``
carries the effects out. Rules kept here, whatever order events arrive in:

* Every event names a child and an incarnation; one that does not match is late or repeated and
  changes nothing.
* A static supervisor does one thing at a time, from a queue: start in spec order, each child
  only after the one before is ready; stop in reverse order, each only after the other is gone.
* Children of a simple_one_for_one supervisor are independent: starting, stopping or restarting
  one never waits for another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from supervision.effects import (
    AllReady,
    AnswerStarted,
    AnswerStartFailed,
    AnswerTerminated,
    Arm,
    AskToStop,
    Child,
    Effect,
    Finished,
    Happened,
    Kill,
    Removed,
    Spawn,
    State,
    Timer,
)
from supervision.exits import ExitKind, ExitReason
from supervision.messages import StartFailure
from supervision.restart import RESTARTS_ON, RestartWindow, affected
from supervision.spec import BRUTAL_KILL, Restart, ShutdownMarker, Strategy, SupervisorSpec


class SupervisorCore:
    """One supervisor's state. Methods return the effects to carry out, in order."""

    def __init__(self, spec: SupervisorSpec, known: Mapping[str, int] | None = None) -> None:
        self.spec = spec
        self.children: dict[str, Child] = {one.id: Child(one) for one in spec.children}
        self.is_ready = False
        self.stopping: ExitReason | None = None
        self._finished = False
        self._known = dict(known or {})
        self._window = RestartWindow(spec.intensity, spec.period_s)
        self._queue: deque[tuple[str, str]] = deque()
        self._current: tuple[str, str] | None = None
        self._out: list[Effect] = []
        for child in self.children.values():
            child.incarnation = self._known.get(child.id, 0)

    @property
    def is_dynamic(self) -> bool:
        """Whether children come at run time."""
        return self.spec.strategy is Strategy.SIMPLE_ONE_FOR_ONE

    # ── events ───────────────────────────────────────────────────────────────

    def start(self) -> list[Effect]:
        """Begin: start every child of the spec, in order."""
        self._queue.extend(("start", one) for one in self.children)
        return self._settle()

    def child_ready(self, child_id: str, incarnation: int) -> list[Effect]:
        """A child says that its init is done."""
        child = self._match(child_id, incarnation, State.STARTING)
        if child is None:
            return []
        child.state = State.UP
        child.ever_ready = True
        child.failure = None
        self._out.append(Happened("up", child.id, child.incarnation))
        self._out.extend(AnswerStarted(asker, child.id) for asker in child.start_askers)
        child.start_askers.clear()
        self._done("start", child)
        return self._settle()

    def child_refused(
        self, child_id: str, incarnation: int, detail: str, error: object
    ) -> list[Effect]:
        """A child says that it cannot start; its exit follows."""
        child = self._match(child_id, incarnation, State.STARTING, State.STOPPING)
        if child is not None:
            child.failure = (StartFailure.INIT_FAILED, detail, error)
            child.notice = ExitReason(ExitKind.ABNORMAL, f"init failed: {detail}")
        return []

    def child_exiting(self, child_id: str, incarnation: int, reason: ExitReason) -> list[Effect]:
        """A child announces why it is about to end."""
        child = self._match(child_id, incarnation, State.STARTING, State.UP, State.STOPPING)
        if child is not None:
            child.notice = reason
        return []

    def child_exited(
        self, child_id: str, incarnation: int, reason: ExitReason, now: float
    ) -> list[Effect]:
        """A child's process is gone; ``reason`` is what the exit status tells."""
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
        if was is State.STOPPING:
            self._stopped(child)
        elif was is State.STARTING:
            self._start_failed(child, now)
        else:
            self._crashed(child, now)
        return self._settle()

    def timer_fired(self, timer: Timer, child_id: str, incarnation: int) -> list[Effect]:
        """A timer that was armed for this child and incarnation ran out."""
        child = self.children.get(child_id)
        if child is None or child.incarnation != incarnation:
            return []
        if timer is Timer.INIT and child.state is State.STARTING:
            text = f"not ready within {child.spec.init_timeout_s} s"
            child.failure = (StartFailure.INIT_TIMEOUT, text, None)
            child.notice = ExitReason(ExitKind.KILLED, text)
            self._out.append(Kill(child.id, incarnation, text))
        elif timer is Timer.STOP and child.state is State.STOPPING:
            self._out.append(Kill(child.id, incarnation, "did not stop in time"))
        elif timer is Timer.BACKOFF and child.state is State.RESTARTING:
            self._queue_restarts(self._group(child))
        return self._settle()

    def start_child(self, child_id: str, args: object, asker: object) -> list[Effect]:
        """Somebody wants a child up."""
        refusal = self._refusal(child_id)
        if refusal is not None:
            self._out.append(AnswerStartFailed(asker, child_id, *refusal))
            return self._settle()
        if self.spec.template is not None:
            old = self.children.pop(child_id, None)
            last = old.incarnation if old else self._known.get(child_id, 0)
            self.children[child_id] = Child(
                replace(self.spec.template, id=child_id, args=args), incarnation=last
            )
        child = self.children[child_id]
        child.start_askers.append(asker)
        child.state = State.RESTARTING
        self._queue_starts((child,))
        return self._settle()

    def terminate_child(self, child_id: str, asker: object) -> list[Effect] | None:
        """Somebody wants a child gone. None: there is no such child."""
        child = self.children.get(child_id)
        if child is None:
            return None
        child.stop_askers.append(asker)
        if child.has_process:
            self._queue_stop(child)
        else:
            self._drop_queued("start", {child_id})
            self._stopped(child)
        return self._settle()

    def stop(self, reason: ExitReason) -> list[Effect]:
        """Stop every child, in reverse start order, then finish with ``reason``."""
        if self.stopping is None:
            self._begin_stop(reason)
        return self._settle()

    # ── what follows an exit ─────────────────────────────────────────────────

    def _stopped(self, child: Child) -> None:
        """A child that was told to stop is gone (or had no process)."""
        self._refuse_askers(child, StartFailure.STOPPED, "terminated before it was ready")
        self._done("stop", child)
        if child.stop_askers:
            child.state = State.DOWN
            self._drop_queued("start", {child.id})
            for asker in child.stop_askers:
                self._out.append(AnswerTerminated(asker, child.id))
            child.stop_askers.clear()
            if self.is_dynamic:
                self._forget(child)
        elif ("start", child.id) in self._queue:
            child.state = State.RESTARTING

    def _start_failed(self, child: Child, now: float) -> None:
        """A child ended before it was ready."""
        reason, detail, error = child.failure or (
            StartFailure.DIED_IN_INIT, str(child.last_exit), None,
        )  # fmt: skip
        self._done("start", child)
        self._refuse_askers(child, reason, detail, error)
        if self.stopping is not None:
            return
        if not child.ever_ready and self.is_dynamic:
            self._forget(child)
        elif not child.ever_ready and not child.spec.restart_if_never_ready:
            return
        elif not self.is_ready:
            text = f"start of {child.id} failed: {reason.value}: {detail}"
            self._begin_stop(ExitReason(ExitKind.ABNORMAL, text))
        else:
            self._restart(child, now)

    def _crashed(self, child: Child, now: float) -> None:
        """A child that was up ended without being told to."""
        if self.stopping is not None:
            return
        kind = child.last_exit.kind if child.last_exit else ExitKind.ABNORMAL
        if kind in RESTARTS_ON[child.spec.restart]:
            self._restart(child, now)
        elif self.is_dynamic:
            self._forget(child)

    def _restart(self, child: Child, now: float) -> None:
        window = self._window
        if self.is_dynamic:
            child.window = child.window or RestartWindow(self.spec.intensity, self.spec.period_s)
            window = child.window
        if not window.record(now):
            text = f"more than {self.spec.intensity} restarts in {self.spec.period_s} s"
            self._out.append(Happened("give_up", child.id, child.incarnation, text))
            if not self.is_dynamic:
                last = f"{text}; {child.id} last: {child.last_exit}"
                self._begin_stop(ExitReason(ExitKind.ABNORMAL, last))
            return
        child.restarts += 1
        group = self._group(child)
        self._drop_queued("start", {one.id for one in group})
        pause_s = child.spec.backoff.delay_s(window.count(now)) if child.spec.backoff else 0.0
        text = f"with {', '.join(one.id for one in group)}" if len(group) > 1 else ""
        if pause_s:
            text = f"{text} in {pause_s:.2f} s".strip()
        self._out.append(Happened("restart", child.id, child.incarnation, text))
        for one in reversed(group):
            if one.has_process:
                self._queue_stop(one)
            elif one.spec.restart is not Restart.TEMPORARY:
                one.state = State.RESTARTING
        if pause_s:
            self._out.append(Arm(Timer.BACKOFF, child.id, child.incarnation, pause_s))
        else:
            self._queue_restarts(group)

    def _begin_stop(self, reason: ExitReason) -> None:
        self.stopping = reason
        self._queue.clear()
        if self._current is not None and self._current[0] == "start":
            self._current = None
        for child in reversed(self.children.values()):
            if child.has_process:
                self._queue_stop(child)
            else:
                child.state = State.DOWN
                self._refuse_askers(child, StartFailure.SUPERVISOR_STOPPING, str(reason))

    # ── queue ────────────────────────────────────────────────────────────────

    def _queue_restarts(self, group: Iterable[Child]) -> None:
        """A temporary child that a sibling's failure stopped stays down."""
        self._queue_starts(one for one in group if one.spec.restart is not Restart.TEMPORARY)

    def _queue_starts(self, group: Iterable[Child]) -> None:
        for child in group:
            if self.is_dynamic:
                self._begin_start(child)
            elif ("start", child.id) not in self._queue:
                self._queue.append(("start", child.id))

    def _queue_stop(self, child: Child) -> None:
        if child.state is State.STOPPING:
            return
        if self.is_dynamic or self._current == ("start", child.id):
            # A start in flight is cut short: nobody may have to wait for a slow init to stop it.
            if not self.is_dynamic:
                self._current = ("stop", child.id)
            self._begin_stop_of(child)
        elif ("stop", child.id) not in self._queue:
            self._queue.append(("stop", child.id))

    def _settle(self) -> list[Effect]:
        """Do the next queued things until one must be waited for; hand out the effects."""
        while self._current is None and self._queue:
            what, child_id = self._queue.popleft()
            child = self.children.get(child_id)
            if child is None:
                continue
            if what == "start" and not child.has_process:
                self._current = (what, child_id)
                self._begin_start(child)
            elif what == "stop" and child.has_process:
                self._current = (what, child_id)
                self._begin_stop_of(child)
        if self._current is None and not self._queue:
            self._announce()
        out, self._out = self._out, []
        return out

    def _announce(self) -> None:
        if self.stopping is not None:
            alive = any(child.has_process for child in self.children.values())
            if not alive and not self._finished:
                self._finished = True
                self._out.append(Finished(self.stopping))
        elif not self.is_ready:
            self.is_ready = True
            self._out.append(AllReady())

    def _begin_start(self, child: Child) -> None:
        child.incarnation += 1
        self._known[child.id] = child.incarnation
        child.state = State.STARTING
        child.failure = None
        self._out.append(Spawn(child.id, child.incarnation))
        self._out.append(Arm(Timer.INIT, child.id, child.incarnation, child.spec.init_timeout_s))

    def _begin_stop_of(self, child: Child) -> None:
        child.state = State.STOPPING
        how = child.spec.shutdown
        if how is BRUTAL_KILL:
            self._out.append(Kill(child.id, child.incarnation, "brutal_kill"))
            return
        self._out.append(AskToStop(child.id, child.incarnation))
        if not isinstance(how, ShutdownMarker):
            self._out.append(Arm(Timer.STOP, child.id, child.incarnation, float(how)))

    # ── small helpers ────────────────────────────────────────────────────────

    def _match(self, child_id: str, incarnation: int, *states: State) -> Child | None:
        child = self.children.get(child_id)
        if child is None or child.incarnation != incarnation or child.state not in states:
            return None
        return child

    def _group(self, child: Child) -> tuple[Child, ...]:
        return affected(self.spec.strategy, tuple(self.children.values()), child)

    def _refusal(self, child_id: str) -> tuple[StartFailure, str] | None:
        child = self.children.get(child_id)
        if self.stopping is not None:
            return StartFailure.SUPERVISOR_STOPPING, str(self.stopping)
        if child is None and not self.is_dynamic:
            return StartFailure.UNKNOWN_CHILD, "only simple_one_for_one takes new children"
        if child is not None and child.state is not State.DOWN:
            return StartFailure.ALREADY_STARTED, f"it is {child.state.value}"
        return None

    def _refuse_askers(
        self, child: Child, reason: StartFailure, detail: str, error: object = None
    ) -> None:
        for asker in child.start_askers:
            self._out.append(AnswerStartFailed(asker, child.id, reason, detail, error))
        child.start_askers.clear()

    def _done(self, what: str, child: Child) -> None:
        if self._current == (what, child.id):
            self._current = None

    def _drop_queued(self, what: str, ids: set[str]) -> None:
        kept = [op for op in self._queue if not (op[0] == what and op[1] in ids)]
        self._queue = deque(kept)

    def _forget(self, child: Child) -> None:
        self.children.pop(child.id, None)
        self._out.append(Removed(child))
