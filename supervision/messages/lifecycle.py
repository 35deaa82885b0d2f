"""Between a supervisor and a child that starts or ends."""

from __future__ import annotations

from supervision.exits import ExitReason
from supervision.frozen import frozen
from supervision.messages.directory import Entry
from supervision.spec import ChildKind


@frozen
class Init:
    """Supervisor → forked process: its id, class and args. Answered by InitDone or InitFailed."""

    id: str
    incarnation: int
    actor: str
    kind: ChildKind
    args: object
    parent_id: str
    directory: tuple[Entry, ...]
    incarnations: tuple[tuple[str, int], ...]
    """The last incarnation of every id known, so that a restarted supervisor continues to count."""


@frozen
class InitDone:
    """Child → supervisor: ready."""

    id: str
    incarnation: int
    pid: int


@frozen
class InitFailed:
    """Child → supervisor: cannot start; the process ends."""

    id: str
    incarnation: int
    detail: str
    error: object = None


@frozen
class InitProgress:
    """Child → supervisor: still starting; how far it is."""

    id: str
    incarnation: int
    detail: object


@frozen
class Exiting:
    """Child → supervisor: about to end, and why. An exit without it is a crash."""

    id: str
    incarnation: int
    reason: ExitReason
