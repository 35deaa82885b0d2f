"""Supervision: keeps a tree of processes alive, in order, on one host.

Only the launcher's ``run_node`` needs the actor library, so it comes when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervision.address import Address
from supervision.connection import Connection
from supervision.engine import EngineWorker
from supervision.errors import TargetDown
from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
from supervision.messages import Down, Entry, new_ref
from supervision.monitors import NOPROC
from supervision.node import Node
from supervision.node_config import NodeConfig
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
    from supervision.launcher import run_node

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
    if name == "run_node":
        from supervision import launcher

        return launcher.run_node
    raise AttributeError(f"module 'supervision' has no attribute {name!r}")
