"""Supervision: keeps a tree of processes alive, in order, on one host."""

from supervision.address import Address
from supervision.connection import Connection
from supervision.engine import EngineWorker
from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
from supervision.launcher import NodeConfig, run_node
from supervision.messages import Entry
from supervision.spec import (
    BRUTAL_KILL,
    INFINITY,
    Backoff,
    ChildKind,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)
from supervision.supervisor import Supervisor
from supervision.worker import Worker

__all__ = [
    "BRUTAL_KILL",
    "INFINITY",
    "NORMAL",
    "SHUTDOWN",
    "Address",
    "Backoff",
    "ChildKind",
    "ChildSpec",
    "Connection",
    "EngineWorker",
    "Entry",
    "ExitKind",
    "ExitReason",
    "NodeConfig",
    "Restart",
    "Strategy",
    "Supervisor",
    "SupervisorSpec",
    "Worker",
    "run_node",
]
