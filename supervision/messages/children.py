"""Between any process and a supervisor: its children."""

from __future__ import annotations

import enum

from supervision.frozen import frozen
from supervision.messages.directory import Entry
from supervision.spec import ChildSpec


class StartFailure(enum.Enum):
    """Why a child did not start."""

    ALREADY_STARTED = "already_started"
    INIT_FAILED = "init_failed"
    """Its init raised, or it called fail()."""
    DIED_IN_INIT = "died_in_init"
    """Its process ended before it was ready."""
    INIT_TIMEOUT = "init_timeout"
    SUPERVISOR_STOPPING = "supervisor_stopping"
    UNKNOWN_CHILD = "unknown_child"
    """This supervisor has no child of this id, and got no spec for it."""
    STOPPED = "stopped"
    """It was terminated before it was ready."""
    ALREADY_PRESENT = "already_present"
    """It is known and down: RestartChild starts it, DeleteChild forgets it."""
    ID_TAKEN = "id_taken"
    """Another part of the tree has a child of this id, or of one below it."""
    BAD_SPEC = "bad_spec"
    """No child can be made of what was asked for; the detail names the value."""
    RUNNING = "running"
    """RestartChild: it has a process."""
    RESTARTING = "restarting"
    """RestartChild: it is about to start anyway."""
    SIMPLE_ONE_FOR_ONE = "simple_one_for_one"
    """RestartChild: the supervisor makes its children from a template; use StartChild."""


@frozen
class StartChild:
    """Any process → supervisor: start a new child. Answered by ChildStarted or ChildStartFailed.

    A simple_one_for_one supervisor makes it from its template, with ``child_id`` and ``args``.
    The others take the whole ``spec``, whose id is ``child_id``; the child comes last in the start
    order, lives through restarts of its siblings, and is unknown again when the supervisor itself
    restarts. A child that fails to start is forgotten. With ``progress``, ChildStartProgress may
    come before the answer.
    """

    ref: str
    child_id: str
    args: object = None
    progress: bool = False
    spec: ChildSpec | None = None


@frozen
class RestartChild:
    """Any process → supervisor: start a child of the spec that is down.

    Answered by ChildStarted or ChildStartFailed. A child that fails to start stays down. Not for
    simple_one_for_one, which keeps no spec of a child that is gone.
    """

    ref: str
    child_id: str
    progress: bool = False


@frozen
class ChildStartProgress:
    """Supervisor → asker: the child is not ready yet; how far it is."""

    ref: str
    child_id: str
    detail: object


@frozen
class ChildStarted:
    """Supervisor → asker: the child is up."""

    ref: str
    entry: Entry


@frozen
class ChildStartFailed:
    """Supervisor → asker: the child is not up, and why; ``error`` is what it gave to fail()."""

    ref: str
    child_id: str
    reason: StartFailure
    detail: str
    error: object = None


@frozen
class TerminateChild:
    """Any process → supervisor: stop this child and keep it down; its spec stays for RestartChild.

    A child of a simple_one_for_one supervisor and a temporary child are forgotten. Answered by
    ChildTerminated when its process is gone, or by ChildNotFound.
    """

    ref: str
    child_id: str


@frozen
class ChildTerminated:
    """Supervisor → asker: the child's process is gone."""

    ref: str
    child_id: str


@frozen
class ChildNotFound:
    """Supervisor → asker: there is no such child."""

    ref: str
    child_id: str


class DeleteFailure(enum.Enum):
    """Why a child was not deleted."""

    RUNNING = "running"
    """It has a process: TerminateChild first."""
    RESTARTING = "restarting"
    """It is about to start: TerminateChild first."""
    UNKNOWN_CHILD = "unknown_child"
    SIMPLE_ONE_FOR_ONE = "simple_one_for_one"
    """Its children have no spec of their own; TerminateChild forgets them."""
    SUPERVISOR_STOPPING = "supervisor_stopping"


@frozen
class DeleteChild:
    """Any process → supervisor: forget the spec of a child that is down.

    Answered by ChildDeleted or ChildDeleteFailed.
    """

    ref: str
    child_id: str


@frozen
class ChildDeleted:
    """Supervisor → asker: the child is forgotten."""

    ref: str
    child_id: str


@frozen
class ChildDeleteFailed:
    """Supervisor → asker: nothing was changed, and why."""

    ref: str
    child_id: str
    reason: DeleteFailure
    detail: str


@frozen
class WhichChildren:
    """Any process → supervisor: list your children. Answered by ChildrenListed."""

    ref: str


@frozen
class ChildrenListed:
    """Supervisor → asker: its own children, in start order."""

    ref: str
    children: tuple[Entry, ...]


@frozen
class CountChildren:
    """Any process → supervisor: count your children. Answered by ChildrenCounted."""

    ref: str


@frozen
class ChildrenCounted:
    """Supervisor → asker: its children, those with a process, and those by kind."""

    ref: str
    specs: int
    active: int
    supervisors: int
    workers: int
