"""The supervisor: carries out what its core decides.

When a worker is killed, the kernel makes its pidfd readable, the core returns effects, the next
incarnation is forked, and when it is ready every worker of the tree gets its new address
(``directory.py``).
"""

from __future__ import annotations

import importlib
import os
import random
import time
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from supervision import kill_watch, logs
from supervision.address import Address
from supervision.core import SupervisorCore
from supervision.directory import ChildProcess, DirectoryKeeper, LocateDue, PushDue
from supervision.effects import (
    AllReady,
    Answer,
    AnswerDeleted,
    AnswerDeleteFailed,
    AnswerNotFound,
    AnswerStarted,
    AnswerStartFailed,
    AnswerTerminated,
    Arm,
    AskToStop,
    Child,
    Crashed,
    Effect,
    Finished,
    Happened,
    Kill,
    Removed,
    Spawn,
    Timer,
)
from supervision.exits import ExitKind, ExitReason, reason_of_exit_code
from supervision.lifelog import write_crash, write_event, write_kill, write_stopped
from supervision.messages import (
    ChildDeleted,
    ChildDeleteFailed,
    ChildNotFound,
    ChildrenCounted,
    ChildrenListed,
    ChildStarted,
    ChildStartFailed,
    ChildStartProgress,
    ChildTerminated,
    CountChildren,
    DeleteChild,
    Demonitor,
    DirectoryListing,
    Entry,
    Exiting,
    Init,
    InitDone,
    InitFailed,
    InitProgress,
    ListDirectory,
    Monitor,
    ReportVitals,
    RestartChild,
    Shutdown,
    StartChild,
    StartFailure,
    SubtreeChanged,
    TerminateChild,
    VitalsReported,
    WhereIs,
    WhichChildren,
)
from supervision.process import kill
from supervision.pulse import Reading
from supervision.spec import ROOT_ID, ChildKind, SupervisorSpec, ids_below
from supervision.vitals import Pulses, page_for, vitals_of

ACTOR = "supervision.supervisor.Supervisor"
"""The ``actor`` of a ChildSpec that is a supervisor."""
ROOT = ROOT_ID
_FORK_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class _NotForked:
    """Timer: the kernel gave no process for this start."""

    id: str
    incarnation: int
    why: str


@dataclass(frozen=True, slots=True)
class _Ended:
    """A process that has ended, for the report on it."""

    pid: int
    uptime_s: float
    last: Reading | None
    """What its page showed in the end."""


@dataclass(frozen=True, slots=True)
class _Asker:
    """A process that waits for a child to start or stop."""

    address: Address
    ref: str
    progress: bool = False


class Supervisor(DirectoryKeeper):
    """A worker whose work is its children. ``args`` is a SupervisorSpec."""

    core: SupervisorCore

    def init(self, args: object) -> None:
        if not isinstance(args, SupervisorSpec):
            raise TypeError(f"a supervisor needs a SupervisorSpec, not {type(args).__name__}")
        for module in args.preload:
            importlib.import_module(module)
        self._by_pid: dict[int, tuple[str, int]] = {}
        self.core = SupervisorCore(args, self._incarnations)
        self._pulses = Pulses()
        logs.collect_faults()
        self.defer_ready()
        self.progress(os.getpid())
        if self._is_root:
            self._apply_directory((self._own_entry(ACTOR),), ())
        self._carry_out(self.core.start())
        self.after(self._pulses.interval_s, Timer.INIT)

    # ── messages ─────────────────────────────────────────────────────────────

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case InitDone(child_id, incarnation, pid):
                self._child_ready(child_id, incarnation, pid, sender)
            case InitFailed(child_id, incarnation, detail, error):
                self._carry_out(self.core.child_refused(child_id, incarnation, detail, error))
            case InitProgress(child_id, incarnation, detail):
                self._forward_progress(child_id, incarnation, detail)
            case Exiting(child_id, incarnation, reason):
                self._carry_out(self.core.child_exiting(child_id, incarnation, reason))
            case SubtreeChanged(child_id, incarnation, changed, removed, lost):
                child = self.core.children.get(child_id)
                if child is not None and child.incarnation == incarnation and child.has_process:
                    self._report(changed, removed, lost)
            case StartChild() | RestartChild() | TerminateChild() | DeleteChild():
                self._carry_out(self._asked(message, sender))
            case _:
                self._answer(message, sender)

    def _asked(
        self, message: StartChild | RestartChild | TerminateChild | DeleteChild, sender: Address
    ) -> list[Effect]:
        asker = _Asker(sender, message.ref, getattr(message, "progress", False))
        match message:
            case StartChild(_, child_id, args, _, spec):
                taken = self._id_taken(child_id, spec.args if spec else args)
                if taken is not None:
                    why = f"the tree has a child {taken!r} already"
                    return [AnswerStartFailed(asker, child_id, StartFailure.ID_TAKEN, why)]
                return self.core.start_child(child_id, args, asker, spec)
            case RestartChild(_, child_id):
                return self.core.restart_child(child_id, asker)
            case TerminateChild(_, child_id):
                return self.core.terminate_child(child_id, asker)
            case DeleteChild(_, child_id):
                return self.core.delete_child(child_id, asker)

    def _id_taken(self, child_id: str, args: object) -> str | None:
        """An id of a wanted child, or of one below it, that another part of the tree has."""
        elsewhere = {one.id for one in self.directory.values() if one.parent != self.id}
        wanted_below = set(ids_below(args)) if isinstance(args, SupervisorSpec) else set()
        clashes = {child_id} & elsewhere or wanted_below & {*elsewhere, *self.core.children}
        return min(clashes, default=None)

    def _answer(self, message: object, sender: Address) -> None:
        match message:
            case WhereIs():
                self._locate(message, sender)
            case ListDirectory(ref):
                self.tell(sender, DirectoryListing(ref, tuple(self.directory.values())))
            case WhichChildren(ref):
                entries = tuple(self._entry(child) for child in self.core.children.values())
                self.tell(sender, ChildrenListed(ref, entries))
            case CountChildren(ref):
                self.tell(sender, self._counted(ref))
            case Monitor() | Demonitor():
                self._set_monitor(message, sender)
            case ReportVitals(ref):
                self.tell(sender, self._vitals(ref))
            case _:
                self.log.warning("ignored a %s from %s", type(message).__name__, sender)

    def _counted(self, ref: str) -> ChildrenCounted:
        children = list(self.core.children.values())
        supervisors = sum(1 for one in children if one.spec.kind is ChildKind.SUPERVISOR)
        return ChildrenCounted(
            ref,
            specs=len(children),
            active=sum(1 for one in children if one.has_process),
            supervisors=supervisors,
            workers=len(children) - supervisors,
        )

    def _vitals(self, ref: str) -> VitalsReported:
        now = time.monotonic()
        vitals = self._pulses.vitals(self._living(), now)
        if self._is_root:
            mine = self._mailbox.pulse.read()
            own = vitals_of(self.id, self.incarnation, os.getpid(), mine, now)
            vitals = (replace(own, busy_s=None, busy_with=""), *vitals)
        return VitalsReported(ref, vitals)

    def _living(self) -> list[tuple[int, Child]]:
        return [
            (process.pid, self.core.children[one])
            for one, process in self._processes.items()
            if one in self.core.children and self.core.children[one].has_process
        ]

    def _child_ready(self, child_id: str, incarnation: int, pid: int, sender: Address) -> None:
        process = self._processes.get(child_id)
        if process is not None and process.pid == pid:
            process.address = sender
            self._carry_out(self.core.child_ready(child_id, incarnation))

    def _forward_progress(self, child_id: str, incarnation: int, detail: object) -> None:
        child = self.core.children.get(child_id)
        if child is None or child.incarnation != incarnation:
            return
        for asker in child.start_askers:
            if isinstance(asker, _Asker) and asker.progress:
                self.tell(asker.address, ChildStartProgress(asker.ref, child_id, detail))

    def status(self) -> dict[str, object]:
        return {
            "strategy": self.core.spec.strategy.value,
            "children": {one.id: one.state.value for one in self.core.children.values()},
            "directory": len(self.directory),
            "monitors": len(self._monitors),
        }

    # ── exits and timers ─────────────────────────────────────────────────────

    def _child_exited(self, pid: int, code: int | None) -> None:
        child_id, incarnation = self._by_pid.pop(pid, ("", 0))
        child = self.core.children.get(child_id)
        reason = reason_of_exit_code(code)
        if child is not None and not child.killed:
            reason = kill_watch.explained(reason)
        effects = self.core.child_exited(child_id, incarnation, reason, time.monotonic())
        process = self._processes.get(child_id)
        if child is not None and child.spec.kind is ChildKind.SUPERVISOR:
            self._report((), (), (child_id,))
        uptime_s = time.time() - process.started_at if process else 0.0
        self._carry_out(effects, _Ended(pid, uptime_s, self._pulses.take(pid)))
        if process is not None and self._processes.get(child_id) is process:
            del self._processes[child_id]
            self._unpushed.pop(child_id, None)

    def handle_timer(self, payload: object) -> None:
        match payload:
            case Arm(timer, child_id, incarnation):
                self._carry_out(self.core.timer_fired(timer, child_id, incarnation))
            case _NotForked(child_id, incarnation, why):
                reason = ExitReason(ExitKind.ABNORMAL, f"could not be forked: {why}")
                now = time.monotonic()
                self._carry_out(self.core.child_exited(child_id, incarnation, reason, now))
            case LocateDue():
                self._locate_due(payload)
            case PushDue():
                self._push_due = False
                self._push_all()
            case _:
                self._look()
                self.after(self._pulses.interval_s, Timer.INIT)

    def _look(self) -> None:
        """Kill each child that hangs."""
        kill_watch.look()
        for child, text in self._pulses.hung(self._living(), time.monotonic()):
            why = ExitReason(ExitKind.KILLED, text)
            self._carry_out(self.core.child_exiting(child.id, child.incarnation, why))
            self._kill(child.id, child.incarnation, text)

    def _shutdown(self, reason: ExitReason) -> None:
        self._carry_out(self.core.stop(reason))

    # ── effects ──────────────────────────────────────────────────────────────

    def _carry_out(self, effects: list[Effect], ended: _Ended | None = None) -> None:
        removed: list[Entry] = []
        finished: ExitReason | None = None
        for effect in effects:
            match effect:
                case Spawn(child_id, incarnation):
                    self._spawn(self.core.children[child_id], incarnation)
                case AskToStop(child_id, _):
                    self._to_child(child_id, Shutdown())
                case Kill(child_id, incarnation, why):
                    self._kill(child_id, incarnation, why)
                case Arm(_, _, _, seconds, spread_s):
                    self.after(seconds + random.uniform(0.0, spread_s), effect)  # noqa: S311 - chance, not secrecy
                case AllReady():
                    self.ready()
                case Finished(reason):
                    finished = reason
                case Removed(child):
                    removed.append(self._entry(child))
                case Happened() | Crashed():
                    self._write(effect, ended)
                case _:
                    self._answer_asker(effect)
        self._report(self._changed_entries(self.core.children.values()), tuple(removed))
        if finished is not None:
            self._finish(finished)

    def _write(self, effect: Happened | Crashed, ended: _Ended | None) -> None:
        if isinstance(effect, Happened):
            process = self._processes.get(effect.id)
            write_event(self.log, self.core, effect, process.pid if process else None)
        elif ended is not None and ended.last is not None:
            write_crash(self.log, self.core, effect, ended.pid, ended.uptime_s, ended.last)

    def _spawn(self, child: Child, incarnation: int) -> None:
        self._incarnations[child.id] = incarnation
        try:
            page = page_for(child.spec.heartbeat_s)
            pid = self._mailbox.fork_child(page, child.spec.actor)
        except OSError as error:  # no memory or process is available now; try again in a moment
            self.after(_FORK_PAUSE_S, _NotForked(child.id, incarnation, str(error)))
            return
        self._pulses.add(pid, page, child.spec)
        self._processes[child.id] = ChildProcess(pid, time.time())
        self._by_pid[pid] = (child.id, incarnation)
        known = tuple(self._incarnations.items()) if isinstance(
            child.spec.args, SupervisorSpec
        ) else ()  # fmt: skip
        spec = child.spec
        self._to_child(
            child.id,
            Init(
                child.id, incarnation, spec.actor, spec.kind, spec.args, self.id,
                tuple(self.directory.values()), known,
            ),
        )  # fmt: skip

    def _to_child(self, child_id: str, message: object) -> None:
        process = self._processes.get(child_id)
        if process is not None:
            self._mailbox.send(process.pid, message)

    def _kill(self, child_id: str, incarnation: int, why: str) -> None:
        process = self._processes.get(child_id)
        if process is not None and self._by_pid.get(process.pid) == (child_id, incarnation):
            write_kill(self.log, child_id, incarnation, process.pid, why)
            kill(process.pid)

    def _answer_asker(self, effect: Answer) -> None:
        asker = effect.asker
        if not isinstance(asker, _Asker):
            return
        match effect:
            case AnswerStarted(_, child_id):
                entry = self._entry(self.core.children[child_id])
                self.tell(asker.address, ChildStarted(asker.ref, entry))
            case AnswerStartFailed(_, child_id, reason, detail, error):
                answer = ChildStartFailed(asker.ref, child_id, reason, detail, error)
                self.tell(asker.address, answer)
            case AnswerTerminated(_, child_id):
                self.tell(asker.address, ChildTerminated(asker.ref, child_id))
            case AnswerNotFound(_, child_id):
                self.tell(asker.address, ChildNotFound(asker.ref, child_id))
            case AnswerDeleted(_, child_id):
                self.tell(asker.address, ChildDeleted(asker.ref, child_id))
            case AnswerDeleteFailed(_, child_id, refusal, detail):
                refused = ChildDeleteFailed(asker.ref, child_id, refusal, detail)
                self.tell(asker.address, refused)

    def _finish(self, reason: ExitReason) -> NoReturn:
        write_stopped(self.log, self.id, self.incarnation, reason)
        if not self._is_ready:
            self.fail(reason.text or reason.kind.value)
        self._leave(reason, 0 if reason.kind is not ExitKind.ABNORMAL else 1)
