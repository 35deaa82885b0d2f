"""The one door to Thespian: the only module that imports it, and it imports one version.

Thespian 4.0.1 carries messages between processes and tells a parent of a child's death. As it
is, it loses some of those deaths, survives its own segmentation faults as a busy zombie, leaves
orphans, listens on every interface and unpickles whatever arrives. Four modules mend that, by
subclassing where it can be and by patching where it cannot; they depend on internals, so the
version and every name they touch are checked here, at import.

``_wire``       what is sent: loopback, authentication, frame cap
``_processes``  who runs: Admin, actors, logger, and how they die
``_shell``      the actor that hosts a Worker
``_hosts``      the launcher's system and the endpoints of host processes

Outside of these five there are only ``Address`` values and plain messages.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Final

import thespian.system.multiprocCommon as mp  # noqa: N813
import thespian.system.ratelimit as rl
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

from supervision.errors import WrongThespian

__all__ = [
    "Actor", "ActorAddress", "ActorExitRequest", "ActorSystemBase", "ActorSystemMessage",
    "CannotPickleAddress", "PendingActorResponse", "ThespianWatch", "WakeupMessage",
    "WatchMessage", "at", "base", "ip", "mp", "rl", "sb", "tcp", "tr", "utilis",
]  # fmt: skip

VERSION: Final = "4.0.1"


def _check_pins() -> None:
    found = importlib.metadata.version("thespian")
    wanted: tuple[tuple[Any, str], ...] = (
        (mp, "MultiProcAdmin"), (mp, "MultiProcManager"), (mp, "startupASLogger"),
        (mp.MultiProcReplicator, "_childExited"), (mp.MultiProcReplicator, "childDied"),
        (mp.MultiProcReplicator, "h_LoggerConnected"), (mp.MultiProcManager, "_actorExit"),
        (mp.MultiProcManager, "_createInstance"), (mp.MultiProcReplicator, "_startChildActor"),
        (base, "MAX_CHILD_ACTOR_CREATE_DELAY"), (at, "MAX_PENDING_TRANSMITS"),
        (at, "exclusive_processing"), (tcp, "exclusive_processing"), (tcp, "serializer"),
        (tcp, "selectors"), (tr, "MIN_BACKOFF_DELAY"),
        (tcp, "ReceiveBuffer"), (tcp, "TCPv4ActorAddress"), (tcp, "ExternalTransportCopy"),
        (tcp.TCPTransport, "_scheduleTransmitActual"), (tcp.TCPTransport, "_runWithExpiry"),
        (tr.TransmitIntent, "identify"), (tr.ReceiveEnvelope, "identify"),
        (ip.IPActorAddress, "bindArgs"), (sb, "ackMsg"), (utilis, "thesplog_control"),
        (rl.RateThrottle, "eventRatePause"), (base, "MAX_SYSTEM_SHUTDOWN_DELAY"),
        (mp.MultiProcReplicator, "_checkChildLiveness"), (tcp.TCPTransport, "close"),
    )  # fmt: skip
    missing = [f"{where.__name__}.{name}" for where, name in wanted if not hasattr(where, name)]
    if found != VERSION or missing:
        raise WrongThespian(
            f"thespian {found} is installed and lacks {missing or 'nothing'}; this floor hardens "
            f"the internals of exactly {VERSION}: install thespian=={VERSION}"
        )


_check_pins()
