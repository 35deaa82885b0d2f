"""Supervision: keeps a tree of processes alive, in order, on one host.

Specs, messages and workers import no actor library; only a host's ``Connection`` and the
launcher's ``run_node`` do, so those two come when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervision.address import Address
from supervision.engine import EngineWorker
from supervision.errors import TargetDown
from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
from supervision.messages import Down, Entry, new_ref
from supervision.monitors import NOPROC
from supervision.spec import (
    BRUTAL_KILL,
    INFINITY,
    AutoShutdown,
    Backoff,
    ChildKind,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)
from supervision.supervisor import Supervisor
from supervision.worker import Worker

if TYPE_CHECKING:
    from supervision.connection import Connection
    from supervision.launcher import NodeConfig, run_node
    from supervision.node import Node

__all__ = [
    "BRUTAL_KILL",
    "INFINITY",
    "NOPROC",
    "NORMAL",
    "SHUTDOWN",
    "Address",
    "AutoShutdown",
    "Backoff",
    "ChildKind",
    "ChildSpec",
    "Connection",
    "Down",
    "EngineWorker",
    "Entry",
    "ExitKind",
    "ExitReason",
    "Node",
    "NodeConfig",
    "Restart",
    "Strategy",
    "Supervisor",
    "SupervisorSpec",
    "TargetDown",
    "Worker",
    "new_ref",
    "run_node",
]


def __getattr__(name: str) -> object:
    if name == "Connection":
        from supervision import connection

        return connection.Connection
    if name == "Node":
        from supervision import node

        return node.Node
    if name in ("NodeConfig", "run_node"):
        from supervision import launcher

        return getattr(launcher, name)
    raise AttributeError(f"module 'supervision' has no attribute {name!r}")
