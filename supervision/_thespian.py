"""The one door to Thespian: the only module that imports it.

Thespian 4.0.1 carries messages between processes and tells a parent of a child's death. As it
is, it loses some of those deaths, survives its own segmentation faults as a busy zombie, leaves
orphans, listens on every interface and unpickles whatever arrives. The classes below are its
own, subclassed where it allows that and patched where not; each says what it mends. They depend
on internals, so the version and every patched name are checked at import.

Everything of Thespian stays in here. Outside there are ``Address`` values, plain messages, the
``Shell`` that hosts a Worker, ``System`` for the launcher and ``HostContext`` for hosts.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib.metadata
import itertools
import logging
import os
import pickle
import re
import select
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NoReturn

import thespian.system.multiprocCommon as mp  # noqa: N813
import thespian.system.systemBase as base  # noqa: N813
import thespian.system.transport as tr
import thespian.system.transport.asyncTransportBase as at  # noqa: N813
import thespian.system.transport.IPBase as ip  # noqa: N813
import thespian.system.transport.streamBuffer as sb  # noqa: N813
import thespian.system.transport.TCPTransport as tcp  # noqa: N813
from thespian.actors import (
    Actor,
    ActorAddress,
    ActorExitRequest,
    ActorSystemMessage,
    ThespianWatch,
    WakeupMessage,
    WatchMessage,
)
from thespian.system import utilis
from thespian.system.addressManager import CannotPickleAddress
from thespian.system.messages.admin import PendingActorResponse
from thespian.system.multiprocTCPBase import ActorSystemBase

from supervision import logs, process
from supervision.address import Address
from supervision.errors import NodeStartFailed, TransportRefused, WrongThespian
from supervision.frames import MAX_FRAME_BYTES, FrameCodec, FrameRefused
from supervision.messages import Init, Shutdown
from supervision.worker import Worker, load_actor, shutdown_reason

VERSION: Final = "4.0.1"
LOOPBACK: Final = "127.0.0.1"
_DRAIN_S: Final = 1.0
_OUTBOX_MESSAGES: Final = 10_000
"""More than this for one target that takes none: it is stuck, and new messages are dropped."""


def _check_pins() -> None:
    found = importlib.metadata.version("thespian")
    wanted: tuple[tuple[Any, str], ...] = (
        (mp, "MultiProcAdmin"), (mp, "MultiProcManager"), (mp, "startupASLogger"),
        (mp.MultiProcReplicator, "_childExited"), (mp.MultiProcReplicator, "childDied"),
        (mp.MultiProcReplicator, "h_LoggerConnected"), (mp.MultiProcManager, "_actorExit"),
        (mp.MultiProcManager, "_createInstance"), (mp.MultiProcReplicator, "_startChildActor"),
        (base, "MAX_CHILD_ACTOR_CREATE_DELAY"), (at, "MAX_PENDING_TRANSMITS"),
        (at, "exclusive_processing"), (tcp, "exclusive_processing"), (tcp, "serializer"),
        (tcp, "ReceiveBuffer"), (tcp, "TCPv4ActorAddress"), (tcp, "ExternalTransportCopy"),
        (tcp.TCPTransport, "_scheduleTransmitActual"), (tcp.TCPTransport, "_runWithExpiry"),
        (tr.TransmitIntent, "identify"), (tr.ReceiveEnvelope, "identify"),
        (ip.IPActorAddress, "bindArgs"), (sb, "ackMsg"), (utilis, "thesplog_control"),
    )  # fmt: skip
    missing = [f"{where.__name__}.{name}" for where, name in wanted if not hasattr(where, name)]
    if found != VERSION or missing:
        raise WrongThespian(
            f"thespian {found} is installed and lacks {missing or 'nothing'}; this floor hardens "
            f"the internals of exactly {VERSION}: install thespian=={VERSION}"
        )


# ── wire ─────────────────────────────────────────────────────────────────────


class LoopbackAddress(tcp.TCPv4ActorAddress):  # type: ignore[misc]
    """Binds to loopback only; Thespian's own binds to every interface."""

    def __init__(self, host: str | None = None, port: int = 0, external: object = False) -> None:
        super().__init__(host or LOOPBACK, port, external)

    @property
    def bindArgs(self) -> tuple[tuple[str, int]]:  # noqa: N802
        return ((LOOPBACK, self.sockname[1]),)

    def __getstate__(self) -> tuple[str, int]:
        return (self.sockname[0], self.sockname[1])

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.af, self.socktype = socket.AF_INET, socket.SOCK_STREAM
        self.proto = socket.IPPROTO_TCP
        self.sockname, self.bindname = state, ("", state[1])


class CappedBuffer(sb.ReceiveBuffer):  # type: ignore[misc]
    """A frame has a short decimal length within the cap; anything else closes the socket."""

    _header = re.compile(rb"[0-9]{1,10}>")

    def addMore(self, buf: bytes) -> None:  # noqa: N802
        if not buf:  # upstream hands over "" where nothing followed a frame
            return
        if self._size is None:
            head = (self._buf + buf)[:11]
            complete = self._header.match(head)
            if not complete and (len(head) > 10 or not head.isdigit()):
                raise FrameRefused("no frame length")
        super().addMore(buf)
        if self._size is not None and not 0 < self._size <= MAX_FRAME_BYTES:
            raise FrameRefused(f"frame of {self._size} bytes")


class _Serializer:
    """Stands where Thespian expects ``pickle``.

    Every buffer gets the codec of the transport that is at work on this thread, so that one host
    can hold several nodes.
    """

    at_work = threading.local()

    @property
    def loads(self) -> Callable[[bytes], Any]:
        codec: FrameCodec | None = getattr(self.at_work, "codec", None)
        return _no_codec if codec is None else codec.open


def _no_codec(_payload: bytes) -> Any:
    raise FrameRefused("no node's cookie is in use here")


def make_codec(cookie: bytes, packages: tuple[str, ...]) -> FrameCodec:
    """The codec of a node, which knows Thespian's two acknowledgements."""
    codec = FrameCodec(cookie, packages)
    for word in (sb.ackPacket, sb.ackDataErrPacket):
        codec.accept_constant(pickle.dumps(word), word)
    return codec


class NodeTransport(tcp.TCPTransport):  # type: ignore[misc]
    """Thespian's TCP transport, with the node's codec and a ``close`` that closes."""

    node_codec: FrameCodec | None = None
    """The codec of this process's node; inherited by fork. Host contexts carry their own."""

    def __init__(self, how: object, *args: object, codec: FrameCodec | None = None) -> None:
        self.codec = codec or self.node_codec
        super().__init__(how, *args)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        before = getattr(_Serializer.at_work, "codec", None)
        _Serializer.at_work.codec = self.codec
        try:
            yield
        finally:
            _Serializer.at_work.codec = before

    def serializer(self, intent: Any) -> bytes:
        if self.codec is None:
            raise TransportRefused("this transport has no cookie")
        sealed: bytes = sb.toSendBuffer((self.myAddress, intent.message), self.codec.seal)
        if len(sealed) > MAX_FRAME_BYTES:
            raise TransportRefused(
                f"a {type(intent.message).__name__} of {len(sealed)} bytes is too large for a "
                "message; hand over a key or a path instead"
            )
        return sealed

    def _runWithExpiry(self, handler: object) -> Any:  # noqa: N802
        with self._at_work():
            return super()._runWithExpiry(handler)

    def _scheduleTransmitActual(self, intent: Any, **kwargs: Any) -> Any:  # noqa: N802
        with self._at_work():
            return super()._scheduleTransmitActual(intent, **kwargs)

    def external_transport_clone(self) -> NodeTransport:
        return NodeTransport(
            tcp.ExternalTransportCopy(), self._adminAddr, False, False, codec=self.codec
        )

    def close(self) -> None:
        if not hasattr(self, "_transmitIntents"):
            return
        users = [*self._incomingSockets.values(), *getattr(self, "_openSockets", {}).values(),
                 *self._transmitIntents.values(), *self._waitingTransmits]  # fmt: skip
        sockets = [self.socket, *(getattr(one, "socket", None) for one in users)]
        self._openSockets: dict[Any, Any] = {}
        self._incomingSockets: dict[int, Any] = {}
        super().close()
        for one in sockets:
            if one is not None:
                one.close()


@contextlib.contextmanager
def _exclusive(transport: Any) -> Iterator[None]:
    """Thespian's own leaves the flag set when the section raises, and the process then spins."""
    while not transport._exclusively_processing():
        time.sleep(0.000001)
    try:
        yield
    finally:
        transport._not_processing()


# ── processes ────────────────────────────────────────────────────────────────


class _Node:
    """What the launcher sets and every process of the node inherits by fork."""

    launcher_pid = 0
    parent_pid = 0
    """The pid of the process that forks: its children compare it with their getppid()."""
    announce_fd = -1


def _settle_in() -> None:
    """First thing in a forked process, before any of its own code."""
    parent, _Node.parent_pid = _Node.parent_pid, os.getpid()
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
        while os.getppid() != _Node.launcher_pid and time.monotonic() < deadline:
            time.sleep(0.001)
        process.die_with_parent(_Node.launcher_pid)
        process.forget_launcher()
        _Node.parent_pid = os.getpid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        process.let_faults_kill(logs.log_fd())
        os.write(_Node.announce_fd, f"{os.getpid()} {os.getpgid(0)}\n".encode())
        os.close(_Node.announce_fd)
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
    _check_pins()
    mp.MultiProcAdmin, mp.MultiProcManager = NodeAdmin, NodeManager
    mp.startupASLogger = _node_logger
    mp.MultiProcReplicator._childExited = lambda _self, _address: None
    tcp.serializer = _Serializer()
    tcp.ReceiveBuffer = CappedBuffer
    tcp.TCPv4ActorAddress = LoopbackAddress
    tcp.exclusive_processing = at.exclusive_processing = _exclusive
    # Not formatting every message on every hop makes large ones ten times faster.
    tr.TransmitIntent.identify = lambda self: f"TransmitIntent({self.targetAddr})"
    tr.ReceiveEnvelope.identify = lambda self: f"ReceiveEnvelope({type(self.message).__name__})"
    defaults = list(tr.TransmitIntent.__init__.__defaults__)
    defaults[-1] = timedelta(seconds=1)  # 35 s until a second try is a lost peer's worth
    tr.TransmitIntent.__init__.__defaults__ = tuple(defaults)
    base.MAX_CHILD_ACTOR_CREATE_DELAY = timedelta(seconds=10)
    base.MAX_SYSTEM_SHUTDOWN_DELAY = timedelta(seconds=2)
    utilis.thesplog_control(logging.WARNING, False, 0)  # hosts write no log of Thespian's


_install()


def to_thespian(address: Address) -> Any:
    """Thespian's form of an address."""
    return ActorAddress(LoopbackAddress(address.host, address.port, external=True))


def from_thespian(address: Any) -> Address:
    """Our form of an address."""
    host, port = address.addressDetails.sockname[:2]
    return Address(host, port)


_Done = Callable[[bool], None] | None


# ── actor side ───────────────────────────────────────────────────────────────


class Shell(Actor):  # type: ignore[misc]
    """The Thespian actor that hosts one Worker, and the Mailbox it is offered.

    ``receiveMessage`` is the outermost frame: it never raises, because Thespian would run the
    handler a second time, and it always returns the watch, because Thespian forgets it otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self._worker: Worker | None = None
        self._watched: list[int] = []
        self._timers: list[tuple[float, int, object]] = []
        self._timer_numbers = itertools.count()
        self._armed = float("inf")
        self._children: dict[int, Any] = {}
        self._outboxes: dict[
            Address | int, deque[tuple[object, Callable[[bool], None] | None]]
        ] = {}
        self._thread = threading.get_ident()

    @property
    def address(self) -> Address:
        return from_thespian(self.myAddress)

    def receiveMessage(self, message: object, sender: Any) -> Any:
        try:
            self._dispatch(message, sender)
            if self._worker is not None:
                self._worker._end_if_asked()
        except BaseException:  # noqa: BLE001 - nothing may escape to Thespian
            self._crash(traceback.format_exc())
        return ThespianWatch(list(self._watched)) if self._watched else None

    def _dispatch(self, message: object, sender: Any) -> None:
        worker = self._worker
        if worker is None:
            if isinstance(message, Init):
                self._host(message, from_thespian(sender))
            elif isinstance(message, ActorExitRequest | Shutdown):
                self.exit(0)
        elif not isinstance(message, ActorSystemMessage):
            worker._receive(message, from_thespian(sender))
        elif isinstance(message, WatchMessage):
            worker._readable()
        elif isinstance(message, WakeupMessage):
            self._fire_timers(worker)
        elif isinstance(message, ChildGone):
            self._children.pop(message.pid, None)
            self._outboxes.pop(message.pid, None)
            worker._child_exited(message.pid, message.code)
        elif isinstance(message, ActorExitRequest):
            worker._shutdown(shutdown_reason("SIGTERM, or the end of the system"))

    def _host(self, init: Init, parent: Address) -> None:
        failure = None
        try:
            self._worker = load_actor(init.actor)()
        except Exception:  # noqa: BLE001 - whatever a module raises, the supervisor must hear it
            failure = traceback.format_exc()
            self._worker = Worker()
        self._worker._begin(self, init, parent, failure)

    def _crash(self, text: str) -> NoReturn:
        try:
            if self._worker is not None:
                self._worker._crash(text)
        finally:
            os._exit(1)

    # ── mailbox ──────────────────────────────────────────────────────────────

    def send(
        self,
        target: Address | int,
        message: object,
        done: Callable[[bool], None] | None = None,
    ) -> None:
        if not isinstance(target, Address | int):
            raise TransportRefused(f"{target!r} is no address")
        if threading.get_ident() != self._thread:
            raise TransportRefused("only the mailbox thread may send; post() to it instead")
        outbox = self._outboxes.get(target)
        if outbox is None:
            self._outboxes[target] = deque()
            self._transmit(target, message, done)
        elif len(outbox) < _OUTBOX_MESSAGES:
            outbox.append((message, done))
        else:
            logging.getLogger(logs.LOGGER).warning("%s takes no messages; dropped one", target)
            if done is not None:
                done(False)

    def backlog(self, target: Address | int) -> int:
        outbox = self._outboxes.get(target)
        return 0 if outbox is None else 1 + len(outbox)

    def _transmit(
        self, target: Address | int, message: object, done: Callable[[bool], None] | None
    ) -> None:
        """Hand one message to Thespian.

        One per target is there at a time; the rest wait here, where a target that does not answer
        holds up nobody else and where waiting costs nothing.
        """
        address = self._children.get(target) if isinstance(target, int) else to_thespian(target)
        if address is None:
            self._outboxes.pop(target, None)
            if done is not None:
                done(False)
            return

        def finished(arrived: bool) -> None:
            if done is not None:
                done(arrived)
            outbox = self._outboxes.get(target)
            if outbox:
                self._transmit(target, *outbox.popleft())
            else:
                self._outboxes.pop(target, None)

        intent = tr.TransmitIntent(
            address, message,
            onSuccess=lambda *_: finished(True), onError=lambda *_: finished(False),
        )  # fmt: skip
        try:
            self._myRef.transport.scheduleTransmit(self._myRef._addrManager, intent)
        except CannotPickleAddress as error:  # a child that has not connected yet
            self._myRef._awaitingAddressUpdate.add(error.address, intent)

    def after(self, seconds: float, payload: object) -> None:
        due = time.monotonic() + max(seconds, 0.0)
        heapq.heappush(self._timers, (due, next(self._timer_numbers), payload))
        self._arm()

    def _arm(self) -> None:
        if self._timers and self._timers[0][0] < self._armed:
            self._armed = self._timers[0][0]
            # Thespian's loop never reads the mailbox again while a wakeup of 0 s is due.
            wait_s = max(self._armed - time.monotonic(), 0.001)
            self.wakeupAfter(timedelta(seconds=wait_s))

    def _fire_timers(self, worker: Worker) -> None:
        now = time.monotonic()
        due: list[object] = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        self._armed = float("inf")
        self._arm()
        for payload in due:
            worker._timer(payload)

    def watch(self, fd: int) -> None:
        self._watched.append(fd)

    def fork_child(self) -> int:
        ref = self._myRef
        address = ref._addrManager.createLocalAddress()
        ref._startChildActor(address, Shell, None, ref.myAddress, notifyAddr=ref.myAddress)
        pid: int = ref._child_procs[-1].childProc.pid
        self._children[pid] = address
        return pid

    def check_children(self) -> None:
        self._myRef.childDied()

    def exit(self, code: int) -> NoReturn:
        with contextlib.suppress(Exception):
            deadline = time.monotonic() + _DRAIN_S
            self._myRef.transport._pendingWakeups.clear()  # run() would wait for the first of them
            while self._outboxes and (left := deadline - time.monotonic()) > 0:
                self._myRef.transport.run(tr.TransmitOnly, timedelta(seconds=left))
        logging.shutdown()
        os._exit(code)


# ── launcher side ────────────────────────────────────────────────────────────


class System:
    """The Admin and its root actor, for the launcher."""

    def __init__(self, port: int, codec: FrameCodec, thesplog: Path) -> None:
        """Start the Admin on ``port``, a child of this process. The port must be free."""
        os.environ["THESPIAN_BASE_IPADDR"] = LOOPBACK
        NodeTransport.node_codec = codec
        utilis._thesplog_file = str(thesplog)
        utilis._thesplog_old_file = f"{thesplog}.old"
        utilis.thesplog_control(logging.WARNING, False, 50 * 1024)
        _Node.launcher_pid = _Node.parent_pid = os.getpid()
        reader, _Node.announce_fd = os.pipe2(os.O_CLOEXEC)
        capabilities = {"Admin Port": port, "AllowRemoteActorSources": "No"}
        try:
            self._base = NodeSystem(SimpleNamespace(capabilities=capabilities))
        finally:
            os.close(_Node.announce_fd)
            ready, _, _ = select.select([reader], [], [], 1.0)
            announced = os.read(reader, 64).decode() if ready else ""
            os.close(reader)
        if not announced:
            raise NodeStartFailed("the Admin did not start, or another one answered for it")
        self.admin_pid, self.group = map(int, announced.split())

    def create_root(self) -> Address:
        """Start the root's process; its address."""
        return from_thespian(self._base.newPrimaryActor(Shell, None, None))

    def context(self) -> HostContext:
        """A private endpoint to talk to actors with."""
        return HostContext(self._base.transport.external_transport_clone())

    def shutdown(self) -> None:
        """Ask the Admin to end; returns within about two seconds whether it did or not."""
        self._base.shutdown()

    def close(self) -> None:
        """Close this process's sockets."""
        self._base.transport.close()


# ── host side ────────────────────────────────────────────────────────────────


class HostContext:
    """A private endpoint of a thread that is no actor. One thread at a time."""

    def __init__(self, transport: NodeTransport) -> None:
        self._transport = transport

    @classmethod
    def open(cls, admin: Address, codec: FrameCodec) -> HostContext:
        """An endpoint for the node of this Admin. Starts nothing, connects to nothing yet."""
        how = tcp.ExternalTransportCopy()
        return cls(NodeTransport(how, to_thespian(admin), False, False, codec=codec))

    def send(self, target: Address, message: object, timeout_s: float) -> bool:
        """Send; whether the target's process has it. False: nobody listens, or it took too long."""
        outcome: list[bool] = []

        def finished(arrived: bool) -> None:
            outcome.append(arrived)
            self._transport.abort_run()

        intent = tr.TransmitIntent(
            to_thespian(target), message,
            onSuccess=lambda *_: finished(True), onError=lambda *_: finished(False),
            maxPeriod=timedelta(seconds=timeout_s),
        )  # fmt: skip
        self._transport.scheduleTransmit(None, intent)
        deadline = time.monotonic() + timeout_s
        while not outcome and (left := deadline - time.monotonic()) > 0:
            self._transport.run(tr.TransmitOnly, timedelta(seconds=left))
        return bool(outcome) and outcome[0]

    def receive(self, timeout_s: float) -> object | None:
        """The next message for this endpoint, or None when the time is over."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            got = self._transport.run(None, timedelta(seconds=left))
            if isinstance(got, tr.ReceiveEnvelope) and not isinstance(
                got.message, ActorSystemMessage
            ):
                message: object = got.message
                return message
        return None

    def close(self) -> None:
        """Close every socket of this endpoint."""
        self._transport.close()
