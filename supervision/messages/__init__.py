"""The protocol between supervisors, workers and hosts, a file for each pair and subject.

Requests carry a unique ``ref``; their replies carry the same. Everything is frozen and small.
"""

from __future__ import annotations

import secrets

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


def new_ref() -> str:
    """A request reference that no other process makes too."""
    return secrets.token_hex(8)
