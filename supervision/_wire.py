"""Thespian's transport interface, implemented with ``endpoint``.

Thespian's TCP transport makes an epoll set per turn of its loop, formats every message on every
hop, starves on a timer of 0 s, unpickles from every peer and binds to every interface. None of it
runs here: this class has the methods that Thespian's system, Admin and actor managers call, and
``endpoint.py`` does the work.
"""

from __future__ import annotations

import errno
import functools
import heapq
import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final

from supervision import logs
from supervision._thespian import (
    ActorAddress,
    ActorExitRequest,
    ActorSystemMessage,
    CannotPickleAddress,
    WakeupMessage,
    WatchMessage,
    admin_messages,
    ip,
    multiproc_messages,
    status_messages,
    tcp,
    tr,
)
from supervision.address import Address
from supervision.codec import ValueCodec
from supervision.endpoint import LOOPBACK, Endpoint
from supervision.errors import TransportRefused
from supervision.link import Outcome
from supervision.session import Secret

_BATCH: Final = 64
"""Messages handled before timers and sockets are looked at again."""

SYSTEM_MESSAGES: Final[tuple[tuple[type, tuple[str, ...]], ...]] = (
    (admin_messages.QueryExists, ()),
    (admin_messages.QueryAck, ("systemName", "systemVersion", "inShutdown")),
    (admin_messages.SystemShutdown, ()),
    (admin_messages.SystemShutdownCompleted, ()),
    (
        admin_messages.PendingActor,
        (
            "actorClassName", "forActor", "instanceNum", "targetActorReq", "globalName",
            "sourceHash", "alreadyTried",
        ),
    ),
    (
        admin_messages.PendingActorResponse,
        ("forActor", "instanceNum", "errorCode", "actualAddress", "globalName", "errorStr"),
    ),
    (multiproc_messages.EndpointConnected, ("childInstance",)),
    (ActorExitRequest, ("_recursive",)),
    (status_messages.Thespian_StatusReq, ()),
    (
        status_messages.Thespian_ActorStatus,
        (
            "actorAddress", "actorClass", "adminAddress", "parentAddress", "sourceHash", "exiting",
            "pendingMessages", "pendingWakeups", "receivedMessages", "childActors", "governer",
            "miscKeyVals", "_numSent", "_numSendFailures", "_numReceived", "_pendingAddrCnts",
        ),
    ),
)  # fmt: skip
"""Everything of Thespian's own that may travel, with the attributes that go along."""


class LoopbackAddress(ip.IPActorAddress):  # type: ignore[misc]
    """Thespian's form of an address; a plain value, compared by host and port."""

    def __init__(self, host: str | None = None, port: int = 0, external: object = False) -> None:
        del external
        self.af, self.socktype = socket.AF_INET, socket.SOCK_STREAM
        self.proto = socket.IPPROTO_TCP
        self.sockname = (host or LOOPBACK, port)
        self.bindname = self.sockname

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoopbackAddress) and self.sockname == other.sockname

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.sockname)

    def __str__(self) -> str:
        return f"{self.sockname[0]}:{self.sockname[1]}"


@dataclass(frozen=True, slots=True)
class ChildName:
    """Thespian's form of a child's id as an address, which stays right when the child restarts."""

    id: str

    def __str__(self) -> str:
        return self.id


def to_thespian(target: Address | str) -> Any:
    """Thespian's form of an address, or of a child's id."""
    return ActorAddress(ChildName(target) if isinstance(target, str) else _details(target))


def target_of(address: Any) -> Address | str:
    """The inverse of ``to_thespian``."""
    details = address.addressDetails
    return details.id if isinstance(details, ChildName) else from_thespian(address)


@functools.lru_cache(maxsize=1024)
def _details(address: Address) -> LoopbackAddress:
    return LoopbackAddress(address.host, address.port)


def from_thespian(address: Any) -> Address:
    """Our form of an address; CannotPickleAddress for a child that has not connected yet."""
    details = address.addressDetails
    if not isinstance(details, LoopbackAddress):
        raise CannotPickleAddress(address)
    return Address(*details.sockname)


def register_types(codec: ValueCodec) -> None:
    """Let Thespian's own messages travel: these classes, these attributes, nothing else."""
    codec.register(
        ActorAddress,
        lambda one: [str(target_of(one)), isinstance(target_of(one), str)],
        lambda items: to_thespian(str(items[0]) if items[1] else Address.parse(str(items[0]))),
    )
    for cls, names in SYSTEM_MESSAGES:
        codec.register(cls, _reader(names), _maker(cls, names))


def _reader(names: tuple[str, ...]) -> Callable[[Any], list[Any]]:
    return lambda message: [getattr(message, name) for name in names]


def _maker(cls: type, names: tuple[str, ...]) -> Callable[[list[Any]], Any]:
    def make(items: list[Any]) -> Any:
        message: Any = object.__new__(cls)
        message.__dict__.update(zip(names, items, strict=True))
        return message

    return make


class ChildEnded(ActorSystemMessage):  # type: ignore[misc]
    """From the transport to its own process: a child process has ended and waits to be reaped."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


class NodeTransport:
    """What Thespian calls a transport, for processes of a node."""

    node_secret: ClassVar[Secret | None] = None
    """The secret of this process's node; inherited by fork, as the codec with its caches is."""
    node_codec: ClassVar[ValueCodec | None] = None

    @classmethod
    def use(cls, secret: Secret) -> None:
        """In the launcher, before it forks: the node that this process starts."""
        cls.node_secret = secret
        cls.node_codec = ValueCodec(secret.packages)
        register_types(cls.node_codec)

    def __init__(self, how: object, *args: Any) -> None:
        secret = self.node_secret
        if secret is None:
            raise TransportRefused("this process belongs to no node")
        port = 0
        if isinstance(how, tcp.TCPEndpoint):
            _, assigned, _, self._admin, _, _ = how.args
            port = assigned.addressDetails.sockname[1] if assigned is not None else 0
        elif isinstance(how, tr.ExternalInterfaceTransportInit):
            self._admin = self.getAdminAddr(args[0])
        else:
            self._admin = args[0]
        self.endpoint = Endpoint(secret, port=port, codec=self.node_codec)
        self.myAddress = to_thespian(self.endpoint.address)
        self._incomingEnvelopes: deque[Any] = deque()
        """Received and not handled."""
        self._wakeups: list[tuple[float, int, Any]] = []
        self._wakeup_numbers = itertools.count()
        self._aborting: bool | None = None
        self._shutdown_asked = False

    # ── addresses ────────────────────────────────────────────────────────────

    @staticmethod
    def getAdminAddr(capabilities: dict[str, Any]) -> Any:  # noqa: N802
        return to_thespian(Address(LOOPBACK, int(capabilities["Admin Port"])))

    @staticmethod
    def getAddressFromString(text: str, adminRouting: bool = False) -> Any:  # noqa: N802, N803
        del adminRouting
        return to_thespian(Address.parse(text))

    @staticmethod
    def probeAdmin(address: Any) -> bool:  # noqa: N802
        """Whether a process listens there."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address.addressDetails.sockname)
            except OSError as error:
                return error.errno == errno.EADDRINUSE
        return False

    def prepEndpoint(self, assigned: Any, capabilities: object) -> Any:  # noqa: N802
        del capabilities
        details = assigned.addressDetails
        number = None if isinstance(details, LoopbackAddress) else details.addressInstanceNum
        place = assigned if number is None else None
        return tcp.TCPEndpoint(number, place, self.myAddress, self._admin, False, False)

    def connectEndpoint(self, endpoint: object) -> None:  # noqa: N802
        """Nothing is left to do in the parent."""

    def external_transport_clone(self) -> NodeTransport:
        return NodeTransport(tcp.ExternalTransportCopy(), self._admin)

    def setAddressManager(self, manager: object) -> None:  # noqa: N802
        """Local addresses are resolved by the sender."""

    def deadAddress(self, manager: object, address: object) -> None:  # noqa: N802
        """The end of a connection marks the death of a process, and ports are used again."""

    def enableRXPauseFlowControl(self, enable: bool = True) -> None:  # noqa: N802
        """The flow is bounded per target."""

    def protectedFileNumList(self) -> list[int]:  # noqa: N802
        return self.endpoint.filenos()

    def childResetFileNumList(self) -> list[int]:  # noqa: N802
        return self.endpoint.filenos()

    def _updateStatusResponse(self, response: object) -> None:  # noqa: N802
        """The transport adds nothing to the status of its actor."""

    # ── out ──────────────────────────────────────────────────────────────────

    def scheduleTransmit(self, manager: Any, intent: Any, **_: object) -> None:  # noqa: N802
        """Send one of Thespian's own intents."""
        if isinstance(intent.message, tr.Thespian__UpdateWork):
            intent.tx_done(tr.SendStatus.Sent)
            return
        target = intent.targetAddr
        if manager is not None:
            target, message = manager.prepMessageSend(target, intent.message)
            if target is None:
                raise CannotPickleAddress(intent.targetAddr)
            intent.changeTargetAddr(target)
            intent.changeMessage(message)
        where = from_thespian(target)
        if where == self.endpoint.address:
            self._incomingEnvelopes.append(tr.ReceiveEnvelope(self.myAddress, intent.message))
            intent.tx_done(tr.SendStatus.Sent)
            return
        self.endpoint.send(
            where, intent.message, lambda outcome: intent.tx_done(_STATUS[outcome]), prompt=True
        )

    # ── in ───────────────────────────────────────────────────────────────────

    def run(self, handler: Any, maximum: Any = None) -> Any:
        """Thespian's loop: see its ``wakeupTransportBase.run`` for what it returns when."""
        until = None if maximum is None else time.monotonic() + _seconds(maximum)
        sends_only = handler is tr.TransmitOnly or isinstance(handler, tr.TransmitOnly)
        unwritten = self.endpoint.unwritten()
        self._aborting = None
        while True:
            if self._aborting is not None and not (self._aborting and self.endpoint.unwritten()):
                return tr.Thespian__Run_Terminated()
            if sends_only:
                left = self.endpoint.unwritten()
                if left == 0 or left < unwritten:
                    return left
            elif self._incomingEnvelopes:
                outcome = self._deliver(handler)
                if outcome is not None:
                    return outcome
            wait_s = self._wait_s(until)
            self._poll(wait_s)
            if until is not None and time.monotonic() >= until and not self._incomingEnvelopes:
                return tr.Thespian__Run_Expired()

    def _deliver(self, handler: Any) -> Any:
        """Hand over what has come; not None: the loop is over."""
        for _ in range(min(_BATCH, len(self._incomingEnvelopes))):
            envelope = self._incomingEnvelopes.popleft()
            if handler is None:
                return envelope
            result = handler(envelope)
            if not result:
                return tr.Thespian__Run_HandlerResult(result)
        return None

    def _wait_s(self, until: float | None) -> float | None:
        if self._incomingEnvelopes or self._shutdown_asked:
            return 0.0
        due = [one for one in (until, self._wakeups[0][0] if self._wakeups else None) if one]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _poll(self, wait_s: float | None) -> None:
        ready = self.endpoint.poll(wait_s)
        inbox = self.endpoint.inbox
        while inbox:
            sender, message = inbox.popleft()
            self._incomingEnvelopes.append(tr.ReceiveEnvelope(to_thespian(sender), message))
        if ready:
            self._tell_self(WatchMessage(ready))
        ended = self.endpoint.ended
        while ended:
            self._tell_self(ChildEnded(ended.popleft()))
        if self._shutdown_asked:
            self._shutdown_asked = False
            self._tell_self(ActorExitRequest())
        now = time.monotonic()
        while self._wakeups and self._wakeups[0][0] <= now:
            due, _, payload = heapq.heappop(self._wakeups)
            self._tell_self(WakeupMessage(timedelta(seconds=now - due), payload))

    def _tell_self(self, message: object) -> None:
        self._incomingEnvelopes.append(tr.ReceiveEnvelope(self.myAddress, message))

    def addWakeup(self, after: timedelta, payload: object) -> None:  # noqa: N802
        """Equal times keep their order."""
        due = time.monotonic() + max(0.0, after.total_seconds())
        heapq.heappush(self._wakeups, (due, next(self._wakeup_numbers), payload))

    def set_watch(self, fds: list[int]) -> None:
        try:
            self.endpoint.watch(fds)
        except OSError as error:
            logging.getLogger(logs.LOGGER).error("cannot watch one of %s: %s", fds, error)

    def interrupt_wait(self, signal_shutdown: bool = False, check_children: bool = False) -> None:
        """Called by Thespian's signal handlers. A child's end is read from its pidfd instead."""
        del check_children
        self._shutdown_asked |= signal_shutdown
        self.endpoint.wake()

    def abort_run(self, drain: bool = False) -> None:
        """End the loop; with ``drain`` when everything has left."""
        self._aborting = drain

    def close(self) -> None:
        """Close every socket."""
        self.endpoint.close()


_STATUS: Final = {
    Outcome.ARRIVED: tr.SendStatus.Sent,
    Outcome.REFUSED: tr.SendStatus.DeadTarget,
    Outcome.UNKNOWN: tr.SendStatus.Failed,
}


def _seconds(period: Any) -> float:
    return float(period.total_seconds() if isinstance(period, timedelta) else period)
