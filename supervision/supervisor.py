"""The supervisor: carries out what its core decides, and keeps the directory true.

A worker is killed: the kernel tells this process, the core answers with effects, the next
incarnation is forked, and when it is ready every worker of the tree hears where it is now.

The directory flows along the tree and nowhere else. Each supervisor reports its own children
upwards; the root knows the whole tree and is the only one to publish; what it publishes flows
down to every worker. So everybody sees the same changes in the same order. When a supervisor
dies, its supervisor takes its whole subtree out of the directory.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import NoReturn

from supervision.address import Address
from supervision.core import SupervisorCore
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
from supervision.exits import ExitKind, ExitReason, reason_of_exit_code
from supervision.messages import (
    ChildNotFound,
    ChildrenCounted,
    ChildrenListed,
    ChildStarted,
    ChildStartFailed,
    ChildStartProgress,
    ChildTerminated,
    CountChildren,
    DirectoryChanged,
    DirectoryListing,
    Entry,
    Exiting,
    Init,
    InitDone,
    InitFailed,
    InitProgress,
    ListDirectory,
    Located,
    NotLocated,
    Shutdown,
    StartChild,
    SubtreeChanged,
    TerminateChild,
    WhereIs,
    WhichChildren,
)
from supervision.process import kill
from supervision.spec import ChildKind, SupervisorSpec
from supervision.worker import Worker

ACTOR = "supervision.supervisor.Supervisor"
"""The ``actor`` of a ChildSpec that is a supervisor."""
ROOT = "root"

_BAD = (ExitKind.ABNORMAL, ExitKind.KILLED)
_LIVENESS_S = 1.0
"""A lost SIGCHLD would leave a dead child unnoticed; looking costs microseconds."""


_PUSH_PAUSE_S = 0.005
"""News that nobody can act on yet wait this long: mostly the child is up again by then."""


_PUSH_AGAIN_S = 1.0
"""A child took no push, so it is dying or stopped; nothing is urgent for it."""


@dataclass(frozen=True, slots=True)
class _PushDue:
    """Timer: the pause before a directory push is over."""


@dataclass(frozen=True, slots=True)
class _Asker:
    """Who waits for a child to start or stop."""

    address: Address
    ref: str
    progress: bool = False


@dataclass(slots=True)
class _Process:
    """The process of one incarnation of one child."""

    pid: int
    started_at: float
    address: Address | None = None
    pushing: bool = False
    """A directory push is on its way and was not accepted yet."""


class Supervisor(Worker):
    """A worker whose work is its children. ``args`` is a SupervisorSpec."""

    core: SupervisorCore
    _push_due = False

    def init(self, args: object) -> None:
        if not isinstance(args, SupervisorSpec):
            raise TypeError(f"a supervisor needs a SupervisorSpec, not {type(args).__name__}")
        self._processes: dict[str, _Process] = {}
        self._by_pid: dict[int, tuple[str, int]] = {}
        self._reported: dict[str, Entry] = {}
        self._unpushed: dict[str, tuple[dict[str, Entry], dict[str, Entry]]] = {}
        self.core = SupervisorCore(args, self._incarnations)
        self.defer_ready()
        self.progress(os.getpid())
        if self._is_root:
            self._apply_directory((self._own_entry(),), ())
        self._carry_out(self.core.start())
        self.after(_LIVENESS_S, Timer.INIT)

    def _prepare(self, init: Init) -> None:
        self._incarnations = dict(init.incarnations)
        for entry in init.directory:
            self._note_incarnation(entry)

    @property
    def _is_root(self) -> bool:
        return self.parent_id == ""

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
            case StartChild(ref, child_id, args, progress):
                asker = _Asker(sender, ref, progress)
                self._carry_out(self.core.start_child(child_id, args, asker))
            case TerminateChild(ref, child_id):
                effects = self.core.terminate_child(child_id, _Asker(sender, ref))
                if effects is None:
                    self.tell(sender, ChildNotFound(ref, child_id))
                else:
                    self._carry_out(effects)
            case _:
                self._answer(message, sender)

    def _answer(self, message: object, sender: Address) -> None:
        match message:
            case WhereIs(ref, wanted):
                entry = self.directory.get(wanted)
                self.tell(sender, Located(ref, entry) if entry else NotLocated(ref, wanted))
            case ListDirectory(ref):
                self.tell(sender, DirectoryListing(ref, tuple(self.directory.values())))
            case WhichChildren(ref):
                entries = tuple(self._entry(child) for child in self.core.children.values())
                self.tell(sender, ChildrenListed(ref, entries))
            case CountChildren(ref):
                self.tell(sender, self._counted(ref))
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
        }

    # ── exits and timers ─────────────────────────────────────────────────────

    def _child_exited(self, pid: int, code: int | None) -> None:
        child_id, incarnation = self._by_pid.pop(pid, ("", 0))
        child = self.core.children.get(child_id)
        reason = reason_of_exit_code(code)
        effects = self.core.child_exited(child_id, incarnation, reason, time.monotonic())
        process = self._processes.get(child_id)
        if child is not None and child.spec.kind is ChildKind.SUPERVISOR:
            self._report((), (), (child_id,))
        self._carry_out(effects)
        if process is not None and self._processes.get(child_id) is process:
            del self._processes[child_id]
            self._unpushed.pop(child_id, None)

    def handle_timer(self, payload: object) -> None:
        match payload:
            case Arm(timer, child_id, incarnation, _):
                self._carry_out(self.core.timer_fired(timer, child_id, incarnation))
            case _PushDue():
                self._push_due = False
                self._push_all()
            case _:
                self._mailbox.check_children()
                self.after(_LIVENESS_S, Timer.INIT)

    def _shutdown(self, reason: ExitReason) -> None:
        self._carry_out(self.core.stop(reason))

    # ── effects ──────────────────────────────────────────────────────────────

    def _carry_out(self, effects: list[Effect]) -> None:
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
                case Arm(_, _, _, seconds):
                    self.after(seconds, effect)
                case AllReady():
                    self.ready()
                case Finished(reason):
                    finished = reason
                case Removed(child):
                    removed.append(self._entry(child))
                case Happened():
                    self._write_log(effect)
                case AnswerStarted() | AnswerStartFailed() | AnswerTerminated():
                    self._answer_asker(effect)
        self._report(self._changed_children(), tuple(removed))
        if finished is not None:
            self._finish(finished)

    def _spawn(self, child: Child, incarnation: int) -> None:
        self._incarnations[child.id] = incarnation
        pid = self._mailbox.fork_child()
        self._processes[child.id] = _Process(pid, time.time())
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
            self.log.warning("killing %s (pid %s): %s", child_id, process.pid, why)
            kill(process.pid)

    def _answer_asker(self, effect: AnswerStarted | AnswerStartFailed | AnswerTerminated) -> None:
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

    def _write_log(self, event: Happened) -> None:
        process = self._processes.get(event.id)
        pid = process.pid if process else "-"
        is_bad = event.what in ("restart", "give_up") or (
            event.reason is not None and event.reason.kind in _BAD
        )
        level = self.log.warning if is_bad else self.log.info
        level("%s %s incarnation %s pid %s %s", event.what, event.id, event.incarnation, pid,
              event.text)  # fmt: skip

    def _finish(self, reason: ExitReason) -> NoReturn:
        self.log.info("stopped: %s", reason)
        if not self._is_ready:
            self.fail(reason.text or reason.kind.value)
        self._leave(reason, 0 if reason.kind is not ExitKind.ABNORMAL else 1)

    # ── directory ────────────────────────────────────────────────────────────

    def _entry(self, child: Child) -> Entry:
        process = self._processes.get(child.id)
        alive = process if child.has_process else None
        old = self._reported.get(child.id)
        return Entry(
            id=child.id,
            kind=child.spec.kind,
            parent=self.id,
            actor=child.spec.actor,
            address=alive.address if alive and child.state is State.UP else None,
            pid=alive.pid if alive else None,
            incarnation=child.incarnation,
            state=child.state.value,
            restarts=child.restarts,
            started_at=process.started_at if process else (old.started_at if old else 0.0),
            last_exit=child.last_exit,
        )

    def _own_entry(self) -> Entry:
        return Entry(
            self.id, ChildKind.SUPERVISOR, "", ACTOR, self.address, os.getpid(), self.incarnation,
            "up", 0, time.time(),
        )  # fmt: skip

    def _changed_children(self) -> tuple[Entry, ...]:
        changed: list[Entry] = []
        for child in self.core.children.values():
            entry = self._entry(child)
            if self._reported.get(child.id) != entry:
                self._reported[child.id] = entry
                changed.append(entry)
        return tuple(changed)

    def _below(self, supervisor_id: str) -> tuple[Entry, ...]:
        """What the directory knows below a supervisor that died, as it is now: gone."""
        above = {supervisor_id}
        gone: list[Entry] = []
        while below := [
            e for e in self.directory.values() if e.parent in above and e.id not in above
        ]:
            above.update(entry.id for entry in below)
            gone.extend(below)
        lost = ExitReason(ExitKind.KILLED, f"its supervisor {supervisor_id} died")
        return tuple(replace(e, state="down", address=None, pid=None, last_exit=lost) for e in gone)

    def _report(
        self, changed: tuple[Entry, ...], removed: tuple[Entry, ...], lost: tuple[str, ...] = ()
    ) -> None:
        for entry in removed:
            self._reported.pop(entry.id, None)
        if not (changed or removed or lost):
            return
        if self._is_root:
            for supervisor_id in lost:
                removed = (*removed, *self._below(supervisor_id))
            self._apply_directory(changed, removed)
        else:
            report = SubtreeChanged(self.id, self.incarnation, changed, removed, lost)
            self._mailbox.send(self._parent, report)

    def _apply_directory(self, changed: tuple[Entry, ...], removed: tuple[Entry, ...]) -> None:
        super()._apply_directory(changed, removed)
        for entry in (*changed, *removed):
            self._note_incarnation(entry)
        for child_id in self._processes:
            waiting = self._unpushed.setdefault(child_id, ({}, {}))
            for entry in changed:
                waiting[0][entry.id] = entry
                waiting[1].pop(entry.id, None)
            for entry in removed:
                waiting[1][entry.id] = entry
                waiting[0].pop(entry.id, None)
        # Only the root pauses; what it has let go travels down at once. An arrival is worth a
        # message, while a restart's way down would only slow down its way up.
        if not self._is_root or (self._is_ready and any(entry.is_up for entry in changed)):
            self._push_all()
        elif not self._push_due:
            self._push_due = True
            self.after(_PUSH_PAUSE_S, _PushDue())

    def _push_all(self) -> None:
        for child_id in self._processes:
            self._push(child_id)

    def _push(self, child_id: str) -> None:
        """Send a child what it has not heard.

        One push at a time: a child that is busy gets one message with the latest state later
        instead of a queue of stale ones.
        """
        process = self._processes.get(child_id)
        if process is None or process.pushing:
            return
        changed, removed = self._unpushed.pop(child_id, ({}, {}))
        if not (changed or removed):
            return
        process.pushing = True

        def accepted(arrived: bool) -> None:
            process.pushing = False
            if self._processes.get(child_id) is not process:
                return
            if arrived:
                self._push(child_id)
                return
            newer, gone = self._unpushed.get(child_id, ({}, {}))
            self._unpushed[child_id] = ({**changed, **newer}, {**removed, **gone})
            self.after(_PUSH_AGAIN_S, _PushDue())

        push = DirectoryChanged(tuple(changed.values()), tuple(removed.values()))
        self._mailbox.send(process.pid, push, accepted)

    def _note_incarnation(self, entry: Entry) -> None:
        last = self._incarnations.get(entry.id, 0)
        self._incarnations[entry.id] = max(last, entry.incarnation)
