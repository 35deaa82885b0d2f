"""The one door to Thespian: the only module that imports it, and it imports one version.

Thespian 4.0.1 carries messages between processes and notifies a parent of a child's death. As it
is, it loses some of those deaths, keeps running at full CPU after a segmentation fault, leaves
orphans, listens on every interface and unpickles whatever arrives. Other modules mend that, by
subclassing where it can be and by patching where it cannot; they depend on internals, so the
version and every name they touch are checked here, at import.

``_wire``       what Thespian calls a transport, carried out by ``endpoint``
``_processes``  the processes: Admin and actors, and how they end
``_shell``      the actor that hosts a Worker
``_plain_actor``  the Worker that hosts a plain Thespian actor
``_system``     the launcher's half
``_actor_system``  Thespian's ActorSystem, for hosts of a running node

Outside of these there are only ``Address`` values and plain messages.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Final

import thespian.system.messages.admin as admin_messages
import thespian.system.messages.multiproc as multiproc_messages
import thespian.system.messages.status as status_messages
import thespian.system.multiprocCommon as mp  # noqa: N813
import thespian.system.ratelimit as rl
import thespian.system.systemBase as base  # noqa: N813
import thespian.system.transport as tr
import thespian.system.transport.IPBase as ip  # noqa: N813
import thespian.system.transport.TCPTransport as tcp  # noqa: N813
from thespian.actors import (
    Actor,
    ActorAddress,
    ActorExitRequest,
    ActorSystem,
    ActorSystemFailure,
    ActorSystemMessage,
    InvalidActorAddress,
    ThespianWatch,
    WakeupMessage,
    WatchMessage,
)
from thespian.system import utilis
from thespian.system.addressManager import CannotPickleAddress
from thespian.system.messages.admin import PendingActorResponse
from thespian.system.multiprocTCPBase import ActorSystemBase

from supervision.errors import WrongThespian

__all__ = [
    "Actor", "ActorAddress", "ActorExitRequest", "ActorSystem", "ActorSystemBase",
    "ActorSystemFailure", "ActorSystemMessage", "CannotPickleAddress", "InvalidActorAddress",
    "PendingActorResponse", "ThespianWatch", "WakeupMessage",
    "WatchMessage", "admin_messages", "base", "ip", "mp", "multiproc_messages", "rl",
    "status_messages", "tcp", "tr", "utilis",
]  # fmt: skip

VERSION: Final = "4.0.1"
PINS: Final[tuple[tuple[Any, str], ...]] = (
    (mp, "MultiProcAdmin"), (mp, "MultiProcManager"), (mp, "_startLogger"), (mp, "setProcName"),
    (mp.multiprocessCommon, "_startAdmin"), (mp.MultiProcReplicator, "_childExited"),
    (mp.MultiProcReplicator, "h_EndpointConnected"),
    (mp.MultiProcReplicator, "_handleReplicatorMessages"),
    (mp.MultiProcReplicator, "_startChildActor"), (mp.MultiProcReplicator, "_cleanupAdmin"),
    (mp.MultiProcManager, "_actorExit"), (mp.MultiProcManager, "getActorStatus"),
    (mp.MultiProcManager, "_handleChildExited"),
    (mp.MultiProcManager, "_createInstance"), (mp.MultiProcAdmin, "_activate"),
    (mp.MultiProcAdmin, "_handleChildExited"), (mp.MultiProcAdmin, "_sendPendingActorResponse"),
    (base, "MAX_CHILD_ACTOR_CREATE_DELAY"), (base, "MAX_SYSTEM_SHUTDOWN_DELAY"),
    (ActorSystemBase, "transportType"), (tcp, "TCPEndpoint"), (tcp, "ExternalTransportCopy"),
    (tr, "ExternalInterfaceTransportInit"), (tr, "TransmitOnly"), (tr, "SendStatus"),
    (tr, "Thespian__Run_Expired"), (tr, "Thespian__Run_Terminated"),
    (tr, "Thespian__Run_HandlerResult"), (tr, "Thespian__UpdateWork"),
    (tr.TransmitIntent, "identify"), (tr.ReceiveEnvelope, "identify"),
    (ip, "IPActorAddress"), (utilis, "thesplog_control"), (utilis, "_thesplog_file"),
    (utilis, "_thesplog_old_file"), (utilis, "withPossibleInitArgs"),
    (rl, "RateThrottle"), (rl.RateThrottle, "eventRatePause"),
    (mp, "MultiProcReplicator"), (mp, "multiprocessCommon"), (tr, "ReceiveEnvelope"),
    (tr, "TransmitIntent"), (admin_messages, "PendingActor"),
    (admin_messages, "PendingActorResponse"), (admin_messages, "QueryAck"),
    (admin_messages, "QueryExists"), (admin_messages, "SystemShutdown"),
    (admin_messages, "SystemShutdownCompleted"), (multiproc_messages, "EndpointConnected"),
    (status_messages, "Thespian_StatusReq"), (status_messages, "Thespian_ActorStatus"),
)  # fmt: skip
"""Every internal of Thespian that is relied on: where it is, and its name."""


def _check_pins() -> None:
    found = importlib.metadata.version("thespian")
    missing = [f"{where.__name__}.{name}" for where, name in PINS if not hasattr(where, name)]
    if found != VERSION or missing:
        raise WrongThespian(
            f"thespian {found} is installed and lacks {missing or 'nothing'}; this package "
            f"relies on the internals of exactly {VERSION}: install thespian=={VERSION}"
        )


_check_pins()
