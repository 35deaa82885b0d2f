"""Between a supervisor and a child that starts or ends."""

from __future__ import annotations

from supervision.exits import ExitReason
from supervision.frozen import frozen
from supervision.messages.directory import Entry
from supervision.spec import ChildKind


@frozen
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


@frozen
class InitDone:
    """Child → supervisor: I am ready."""

    id: str
    incarnation: int
    pid: int


@frozen
class InitFailed:
    """Child → supervisor: I cannot start, and I am going."""

    id: str
    incarnation: int
    detail: str
    error: object = None


@frozen
class InitProgress:
    """Child → supervisor: still starting, this far."""

    id: str
    incarnation: int
    detail: object


@frozen
class Exiting:
    """Child → supervisor: I am about to end, and why. Its absence before an exit means a crash."""

    id: str
    incarnation: int
    reason: ExitReason
