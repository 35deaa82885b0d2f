"""Supervision: keeps a tree of processes alive, in order, on one host.

Only ``run_node`` and ``NodeActorSystem`` need Thespian, so each name is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from supervision._actor_system import NodeActorSystem
    from supervision.address import Address
    from supervision.connection import Connection
    from supervision.engine import EngineWorker
    from supervision.errors import TargetDown
    from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
    from supervision.launcher import run_node
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
    "NodeActorSystem",
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

_HOMES: Final = {
    name: module
    for module, names in {
        "supervision._actor_system": ("NodeActorSystem",),
        "supervision.address": ("Address",),
        "supervision.connection": ("Connection",),
        "supervision.engine": ("EngineWorker",),
        "supervision.errors": ("TargetDown",),
        "supervision.exits": ("NORMAL", "SHUTDOWN", "ExitKind", "ExitReason"),
        "supervision.messages": ("Down", "Entry", "new_ref"),
        "supervision.monitors": ("NOPROC",),
        "supervision.node": ("Node",),
        "supervision.node_config": ("NodeConfig",),
        "supervision.spec": (
            "BRUTAL_KILL",
            "INFINITY",
            "AutoShutdown",
            "Backoff",
            "ChildKind",
            "ChildSpec",
            "Restart",
            "Strategy",
            "SupervisorSpec",
        ),
        "supervision.supervisor": ("Supervisor",),
        "supervision.worker": ("Worker",),
        "supervision.launcher": ("run_node",),
    }.items()
    for name in names
}
"""Where each public name is defined."""


if not TYPE_CHECKING:  # a checker knows the names from the imports above, and refuses others

    def __getattr__(name: str) -> Any:
        """A public name, when it is first used: a command imports only what it needs."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
