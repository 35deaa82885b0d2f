"""Between a supervisor and a child that starts or ends."""

from __future__ import annotations

from dataclasses import dataclass

from supervision.exits import ExitReason
from supervision.messages.directory import Entry
from supervision.spec import ChildKind


@dataclass(frozen=True, slots=True)
class Init:
    """Supervisor → fresh process: who you are. Answered by InitDone or InitFailed."""

    id: str
    incarnation: int
    actor: str
    kind: ChildKind
    args: object
    parent_id: str
    directory: tuple[Entry, ...]
    incarnations: tuple[tuple[str, int], ...]
    """The last incarnation of every id known, so that counting goes on in a new supervisor."""


@dataclass(frozen=True, slots=True)
class InitDone:
    """Child → supervisor: I am ready."""

    id: str
    incarnation: int
    pid: int


@dataclass(frozen=True, slots=True)
class InitFailed:
    """Child → supervisor: I cannot start, and I am going."""

    id: str
    incarnation: int
    detail: str
    error: object = None


@dataclass(frozen=True, slots=True)
class InitProgress:
    """Child → supervisor: still starting, this far."""

    id: str
    incarnation: int
    detail: object


@dataclass(frozen=True, slots=True)
class Exiting:
    """Child → supervisor: I am about to end, and why. Its absence before an exit means a crash."""

    id: str
    incarnation: int
    reason: ExitReason
