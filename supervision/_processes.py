"""Who runs below the launcher, and how they die: with their parent, and not unnoticed."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from supervision import logs, process
from supervision._thespian import (
    ActorSystemBase,
    ActorSystemMessage,
    PendingActorResponse,
    at,
    base,
    mp,
    rl,
    tcp,
    tr,
    utilis,
)
from supervision._wire import (
    CappedBuffer,
    LoopbackAddress,
    NodeTransport,
    PollOnce,
    Serializer,
    exclusive_processing,
)


class Node:
    """What the launcher sets and every process of the node inherits by fork."""

    launcher_pid = 0
    parent_pid = 0
    """The pid of the process that forks: its children compare it with their getppid()."""
    announce_fd = -1


def _settle_in() -> None:
    """First thing in a forked process, before any of its own code."""
    parent, Node.parent_pid = Node.parent_pid, os.getpid()
    process.die_with_parent(parent)
    process.forget_launcher()


class _EarlyDeath:
    """A child that dies before it connects is reported too; and no other child is forgotten.

    Upstream looks for dead children on every exit notice and drops those that it did not ask
    about, so their supervisor never hears of them.
    """

    def childDied(self: Any) -> bool:  # noqa: N802
        before = list(getattr(self, "_child_procs", ()))
        result: bool = super().childDied()  # type: ignore[misc]
        kept = {id(one) for one in getattr(self, "_child_procs", ())}
        for child in before:
            if id(child) not in kept:
                self._child_gone(child, early=not hasattr(child, "childRealAddr"))
        return result


class NodeAdmin(_EarlyDeath, mp.MultiProcAdmin):  # type: ignore[misc]
    """The Admin: dies with the launcher, outlives its logger, reports children that die early."""

    logDefs = property(lambda self: self.logdefs)  # upstream reads the wrong name and dies  # noqa: N815
    _announced = False

    def run(self) -> None:
        deadline = time.monotonic() + 5.0
        while os.getppid() != Node.launcher_pid and time.monotonic() < deadline:
            time.sleep(0.001)  # noqa: TID251 - the orphan is handed to the launcher right now
        process.die_with_parent(Node.launcher_pid)
        process.forget_launcher()
        Node.parent_pid = os.getpid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        process.let_faults_kill(logs.log_fd())
        os.write(Node.announce_fd, f"{os.getpid()} {os.getpgid(0)}\n".encode())
        os.close(Node.announce_fd)
        super().run()

    def h_LoggerConnected(self, envelope: Any) -> bool:  # noqa: N802
        if self._announced:  # a new logger: nobody waits for the Admin to start any more
            self.asLogger = envelope.sender
            self._activate()
        else:
            self._announced = True
            super().h_LoggerConnected(envelope)
        logs.restore()
        return True

    def _child_gone(self, child: Any, early: bool) -> None:
        if early:
            for asker in self._pendingChildren.pop(child.childNum, []):
                self._sendPendingActorResponse(
                    asker, None, errorCode=PendingActorResponse.ERROR_Invalid_ActorClass,
                    errorStr=f"died while starting, exit code {child.childProc.exitcode}",
                )  # fmt: skip


class ChildGone(ActorSystemMessage):  # type: ignore[misc]
    """To the process itself: a child process is gone. By pid, so that nothing is ambiguous."""

    def __init__(self, pid: int, code: int | None) -> None:
        self.pid = pid
        self.code = code


class NodeManager(_EarlyDeath, mp.MultiProcManager):  # type: ignore[misc]
    """Every actor process: dies with its parent and by its faults, and hears of each child."""

    def __init__(self, *args: Any) -> None:
        _settle_in()
        logs.restore()
        super().__init__(*args)

    def _createInstance(self) -> None:  # noqa: N802
        process.let_faults_kill(logs.log_fd())
        super()._createInstance()

    def _actorExit(self, _request: object) -> bool:  # noqa: N802
        return True  # the shell ends the process itself, in its own order

    def _child_gone(self, child: Any, early: bool) -> None:
        if early:
            self._awaitingAddressUpdate.remove_intents_for_address(child.childAddr)
        gone = ChildGone(child.childProc.pid, child.childProc.exitcode)
        self._receiveQueue.append(tr.ReceiveEnvelope(self.myAddress, gone))


_run_logger = mp.startupASLogger


def _node_logger(*args: Any) -> None:
    _settle_in_logger()
    _run_logger(*args)


def _settle_in_logger() -> None:
    process.die_with_parent(os.getppid())
    process.forget_launcher()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class NodeSystem(ActorSystemBase):  # type: ignore[misc]
    """The system base with our transport."""

    transportType = NodeTransport  # noqa: N815


def _install() -> None:
    mp.MultiProcAdmin, mp.MultiProcManager = NodeAdmin, NodeManager
    mp.startupASLogger = _node_logger
    mp.MultiProcReplicator._childExited = lambda _self, _address: None
    tcp.serializer = Serializer()
    tcp.ReceiveBuffer = CappedBuffer
    tcp.TCPv4ActorAddress = LoopbackAddress
    tcp.exclusive_processing = at.exclusive_processing = exclusive_processing
    tcp.selectors = SimpleNamespace(
        DefaultSelector=PollOnce,
        EVENT_READ=selectors.EVENT_READ,
        EVENT_WRITE=selectors.EVENT_WRITE,
    )
    # Not formatting every message on every hop makes large ones ten times faster.
    tr.TransmitIntent.identify = lambda self: f"TransmitIntent({self.targetAddr})"
    tr.ReceiveEnvelope.identify = lambda self: f"ReceiveEnvelope({type(self.message).__name__})"
    defaults = list(tr.TransmitIntent.__init__.__defaults__)
    defaults[-1] = timedelta(seconds=1)  # 35 s until a second try is a lost peer's worth
    tr.TransmitIntent.__init__.__defaults__ = tuple(defaults)
    # Upstream sleeps 0.1 s per send above some rate; we bound what is under way per target.
    rl.RateThrottle.eventRatePause = lambda _self, _now: None
    at.MAX_PENDING_TRANSMITS = 256  # one per target (see Shell): stuck targets must not use it up
    tr.MIN_BACKOFF_DELAY = timedelta(milliseconds=1)  # 20 ms before it sees that a peer is gone
    base.MAX_CHILD_ACTOR_CREATE_DELAY = timedelta(seconds=10)
    base.MAX_SYSTEM_SHUTDOWN_DELAY = timedelta(seconds=2)
    utilis.thesplog_control(logging.WARNING, False, 0)  # hosts write no log of Thespian's


_install()
