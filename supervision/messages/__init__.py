"""The protocol between supervisors, workers and hosts, a file for each pair and subject.

Requests carry a unique ``ref``; their replies carry the same. Everything is frozen and small.
Each is imported when it is used: a program beside the tree knows few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from supervision.secret_bytes import random_bytes

if TYPE_CHECKING:
    from supervision.messages.children import (
        ChildDeleted,
        ChildDeleteFailed,
        ChildNotFound,
        ChildrenCounted,
        ChildrenListed,
        ChildStarted,
        ChildStartFailed,
        ChildStartProgress,
        ChildTerminated,
        CountChildren,
        DeleteChild,
        DeleteFailure,
        RestartChild,
        StartChild,
        StartFailure,
        TerminateChild,
        WhichChildren,
    )
    from supervision.messages.directory import (
        DirectoryChanged,
        DirectoryListing,
        Entry,
        ListDirectory,
        Located,
        NotLocated,
        SubtreeChanged,
        WhereIs,
    )
    from supervision.messages.lifecycle import (
        Exiting,
        Init,
        InitDone,
        InitFailed,
        InitProgress,
    )
    from supervision.messages.monitors import (
        Demonitor,
        Down,
        Monitor,
    )
    from supervision.messages.vitals import (
        ReportVitals,
        Vitals,
        VitalsReported,
    )
    from supervision.messages.worker import (
        Addressed,
        ReportStatus,
        Shutdown,
        StatusReported,
        WrongIncarnation,
    )

__all__ = [
    "Addressed",
    "ChildDeleteFailed",
    "ChildDeleted",
    "ChildNotFound",
    "ChildStartFailed",
    "ChildStartProgress",
    "ChildStarted",
    "ChildTerminated",
    "ChildrenCounted",
    "ChildrenListed",
    "CountChildren",
    "DeleteChild",
    "DeleteFailure",
    "Demonitor",
    "DirectoryChanged",
    "DirectoryListing",
    "Down",
    "Entry",
    "Exiting",
    "Init",
    "InitDone",
    "InitFailed",
    "InitProgress",
    "ListDirectory",
    "Located",
    "Monitor",
    "NotLocated",
    "ReportStatus",
    "ReportVitals",
    "RestartChild",
    "Shutdown",
    "StartChild",
    "StartFailure",
    "StatusReported",
    "SubtreeChanged",
    "TerminateChild",
    "Vitals",
    "VitalsReported",
    "WhereIs",
    "WhichChildren",
    "WrongIncarnation",
    "new_ref",
]

_HOMES: Final = {
    name: f"supervision.messages.{module}"
    for module, names in {
        "children": (
            "ChildDeleted ChildDeleteFailed ChildNotFound ChildrenCounted ChildrenListed "
            "ChildStarted ChildStartFailed ChildStartProgress ChildTerminated CountChildren "
            "DeleteChild DeleteFailure RestartChild StartChild StartFailure TerminateChild "
            "WhichChildren"
        ),
        "directory": (
            "DirectoryChanged DirectoryListing Entry ListDirectory Located NotLocated "
            "SubtreeChanged WhereIs"
        ),
        "lifecycle": "Exiting Init InitDone InitFailed InitProgress",
        "monitors": "Demonitor Down Monitor",
        "vitals": "ReportVitals Vitals VitalsReported",
        "worker": "Addressed ReportStatus Shutdown StatusReported WrongIncarnation",
    }.items()
    for name in names.split()
}
"""Where each message is defined."""


if not TYPE_CHECKING:  # a type checker has the names from the imports above, and refuses others

    def __getattr__(name: str) -> Any:
        """A message, when it is first used."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def new_ref() -> str:
    """A request reference that no other process makes too."""
    return random_bytes(8).hex()
