"""The processes below the launcher: they end with their parent, and each end is noticed."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

from supervision import logs, process
from supervision._thespian import (
    ActorSystemBase,
    PendingActorResponse,
    base,
    mp,
    multiproc_messages,
    rl,
    tr,
    utilis,
)
from supervision._wire import ChildEnded, NodeTransport, from_thespian


class Node:
    """Set by the launcher; every process of the node inherits it by fork."""

    launcher_pid = 0
    parent_pid = 0
    """The pid of the process that forks: its children compare it with their getppid()."""
    announce_fd = -1


def _settle_in() -> None:
    """First thing in a forked process, before any of its own code."""
    parent, Node.parent_pid = Node.parent_pid, os.getpid()
    process.die_with_parent(parent)
    process.forget_launcher()


class _ChildrenByPid:
    """Watches each child by a pidfd and reaps it by its pid.

    Upstream looks for dead children at every SIGCHLD, drops those that it did not look for, and
    reports none that ended before it connected: some ends never reach the parent.
    """

    def _startChildActor(self: Any, *args: Any, **named: Any) -> None:  # noqa: N802
        super()._startChildActor(*args, **named)  # type: ignore[misc]
        pid = self._child_procs[-1].childProc.pid
        try:
            self.transport.endpoint.watch_process(pid)
        except OSError:  # no descriptor left: a child that cannot be watched must not run
            process.kill(pid)
            self.reap(pid)
            raise

    def reap(self: Any, pid: int) -> Any:
        """Wait for a child that has ended; what Thespian knew of it, with the exit code."""
        for child in self._child_procs:
            if child.childProc.pid == pid:
                child.childProc.join()  # returns at once
                self._child_procs.remove(child)
                if hasattr(child, "childRealAddr"):
                    self._handleChildExited(child.childRealAddr)
                return child
        return None

    def _childExited(self, _address: object) -> None:  # noqa: N802
        """Children are reaped by pid; upstream drops every dead child here."""


class NodeAdmin(_ChildrenByPid, mp.MultiProcAdmin):  # type: ignore[misc]
    """The Admin: ends with the launcher, and reports children that end before they connect."""

    def run(self) -> None:
        deadline = time.monotonic() + 5.0
        while os.getppid() != Node.launcher_pid and time.monotonic() < deadline:
            time.sleep(0.001)  # noqa: TID251 - the orphan is handed to the launcher right now
        process.die_with_parent(Node.launcher_pid)
        process.forget_launcher()
        Node.parent_pid = os.getpid()
        for one in (signal.SIGINT, signal.SIGHUP):  # the launcher stops the node in order
            signal.signal(one, signal.SIG_IGN)
        for one in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(one, signal.SIG_DFL)
        process.let_faults_kill(logs.log_fd())
        os.write(Node.announce_fd, f"{os.getpid()} {os.getpgid(0)}\n".encode())
        os.close(Node.announce_fd)
        super().run()

    def _cleanupAdmin(self, finish: Callable[[], None]) -> None:  # noqa: N802
        finish()  # upstream ends its logger process first

    def _handleReplicatorMessages(self, envelope: Any) -> tuple[bool, bool]:  # noqa: N802
        if not isinstance(envelope.message, ChildEnded):
            handled: tuple[bool, bool] = super()._handleReplicatorMessages(envelope)
            return handled
        child = self.reap(envelope.message.pid)
        if child is not None and child.childNum in self._pendingChildren:
            for asker in self._pendingChildren.pop(child.childNum):
                self._sendPendingActorResponse(
                    asker, None, errorCode=PendingActorResponse.ERROR_Invalid_ActorClass,
                    errorStr=f"died while starting, exit code {child.childProc.exitcode}",
                )  # fmt: skip
        return True, True


class NodeManager(_ChildrenByPid, mp.MultiProcManager):  # type: ignore[misc]
    """Every actor process: ends with its parent and by its faults, and reaps its children."""

    next_class: ClassVar[type | None] = None
    """The actor class of the process that is forked next, which inherits it. Thespian hands over a
    name to import; the classes that the door makes for workers are in no module."""

    def __init__(self, *args: Any) -> None:
        _settle_in()
        logs.restore()
        super().__init__(*args)

    def _createInstance(self) -> None:  # noqa: N802
        process.let_faults_kill(logs.log_fd())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        name: Any = self._actorClass
        self._actorClass: Any = self.next_class or name
        super()._createInstance()
        self._actorClass = name

    def getActorStatus(self) -> Any:  # noqa: N802
        status = super().getActorStatus()
        status.receivedMessages.clear()  # texts of messages, whose content stays in the process
        return status

    def _actorExit(self, _request: object) -> bool:  # noqa: N802
        return True  # the shell ends the process itself, in its own order

    def h_EndpointConnected(self, envelope: Any) -> bool:  # noqa: N802
        result: bool = super().h_EndpointConnected(envelope)
        for child in getattr(self, "_child_procs", ()):
            if child.childNum == envelope.message.childInstance:
                address = from_thespian(envelope.sender)
                self.actorInst.child_connected(child.childProc.pid, address)
        return result


def _no_logger(_transport_class: object, transport: Any, admin: Any, *_: object) -> None:
    """In place of Thespian's logger process: every process writes its own lines (``logs``)."""
    logs.restore()
    admin.asLogProc = None
    admin.asLogger = transport.myAddress  # upstream needs an address here; nothing is sent to it
    started = tr.TransmitIntent(
        admin.addrOfStarter, multiproc_messages.EndpointConnected(0)
    )  # fmt: skip
    transport.scheduleTransmit(None, started)
    admin._activate()


class NodeSystem(ActorSystemBase):  # type: ignore[misc]
    """The system base with our transport."""

    transportType = NodeTransport  # noqa: N815

    def _startAdmin(self, *args: Any) -> None:  # noqa: N802
        ours = set(self.transport.endpoint.filenos())
        process.close_in_children.update(ours)
        try:
            super()._startAdmin(*args)
        finally:
            process.close_in_children.difference_update(ours)


def _install() -> None:
    mp.MultiProcAdmin, mp.MultiProcManager = NodeAdmin, NodeManager
    mp._startLogger = _no_logger
    # Upstream looks for a package that sets longer titles, for 1 ms at every start.
    mp.setProcName = lambda name, _address: process.set_name(name)
    # Not formatting every message on every hop makes large ones ten times faster.
    tr.TransmitIntent.identify = lambda self: f"TransmitIntent({self.targetAddr})"
    tr.ReceiveEnvelope.identify = lambda self: f"ReceiveEnvelope({type(self.message).__name__})"
    # Upstream sleeps 0.1 s per send above some rate; the flow is bounded per target.
    rl.RateThrottle.eventRatePause = lambda _self, _now: None
    base.MAX_CHILD_ACTOR_CREATE_DELAY = timedelta(seconds=10)
    base.MAX_SYSTEM_SHUTDOWN_DELAY = timedelta(seconds=2)
    utilis.thesplog_control(logging.WARNING, False, 0)  # hosts write no log of Thespian's


_install()
