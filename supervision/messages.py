"""The protocol between supervisors, workers and hosts. Read it aloud, section by section.

Requests carry a unique ``ref``; their replies carry the same. Everything is frozen and small.
"""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass

from supervision.address import Address
from supervision.exits import SHUTDOWN, ExitReason
from supervision.spec import ChildKind, ChildSpec


def new_ref() -> str:
    """A request reference that no other process makes too."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the directory knows about one child of the tree."""

    id: str
    kind: ChildKind
    parent: str
    actor: str
    address: Address | None
    """None until the child is up."""
    pid: int | None
    incarnation: int
    """How many times this id has been started."""
    state: str
    """``starting | up | stopping | restarting | down``."""
    restarts: int
    started_at: float
    """Unix time of the last start; 0.0 if it never started."""
    last_exit: ExitReason | None = None

    @property
    def is_up(self) -> bool:
        """Ready to take messages."""
        return self.state == "up" and self.address is not None


# ── any worker ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ReportStatus:
    """Anyone → worker: how are you? Answered by StatusReported."""

    ref: str


@dataclass(frozen=True, slots=True)
class StatusReported:
    """Worker → asker: what ``status()`` returned."""

    ref: str
    id: str
    pid: int
    incarnation: int
    status: dict[str, object]


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Supervisor → child: stop, in order, and exit. Answered by the end of the process."""

    reason: ExitReason = SHUTDOWN


@dataclass(frozen=True, slots=True)
class Addressed:
    """Sender → worker: a message for one incarnation of one id.

    Any other process, and one that is ending, answers the sender with WrongIncarnation if the
    message has a ``ref``, and writes a line into the log if it has none.
    """

    id: str
    incarnation: int
    message: object


@dataclass(frozen=True, slots=True)
class WrongIncarnation:
    """Process → sender: your message was for another process than me; it was not handled."""

    ref: str
    """That of the message."""
    id: str
    wanted: int
    actual: int | None
    """Which incarnation of the id the refusing process is; None if it is none, or is ending."""


# ── directory ────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class WhereIs:
    """Anyone → supervisor: where is this id? Answered by Located or NotLocated."""

    ref: str
    id: str


@dataclass(frozen=True, slots=True)
class Located:
    """Supervisor → asker: the entry, which may be down."""

    ref: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class NotLocated:
    """Supervisor → asker: no child of the tree has this id."""

    ref: str
    id: str


@dataclass(frozen=True, slots=True)
class ListDirectory:
    """Anyone → supervisor: every entry you know. Answered by DirectoryListing."""

    ref: str


@dataclass(frozen=True, slots=True)
class DirectoryListing:
    """Supervisor → asker: the whole directory."""

    ref: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class SubtreeChanged:
    """Supervisor → its supervisor: these entries below me changed; these left the tree.

    ``lost`` names supervisors that died: all that the root knows below them is gone with them.
    """

    id: str
    incarnation: int
    changed: tuple[Entry, ...]
    removed: tuple[Entry, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DirectoryChanged:
    """Supervisor → child: these entries changed anywhere in the tree; these left it."""

    changed: tuple[Entry, ...]
    removed: tuple[Entry, ...] = ()


# ── monitors ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Monitor:
    """Host → root supervisor: tell me when this incarnation ends. Answered by Down, then or now.

    With None it is the present incarnation, with 0 the last that ended. Sending the same ``ref``
    again renews the monitor; a Down that was lost on the way comes again.
    """

    ref: str
    id: str
    incarnation: int | None = None


@dataclass(frozen=True, slots=True)
class Demonitor:
    """Host → root supervisor: forget this monitor; with an empty ``ref``, all of this sender's."""

    ref: str


@dataclass(frozen=True, slots=True)
class Down:
    """Whoever keeps the monitor → its owner: this incarnation has ended, or was not there."""

    ref: str
    """That of the monitor, which is spent."""
    id: str
    incarnation: int
    """0 if no process of the id was known."""
    reason: ExitReason


# ── supervisors: children ────────────────────────────────────────────────────


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
    """This supervisor knows no child of this id, and got no spec for it."""
    STOPPED = "stopped"
    """Somebody terminated it before it was ready."""
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


@dataclass(frozen=True, slots=True)
class StartChild:
    """Anyone → supervisor: a new child, please. Answered by ChildStarted or ChildStartFailed.

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


@dataclass(frozen=True, slots=True)
class RestartChild:
    """Anyone → supervisor: start a child of your spec that is down.

    Answered by ChildStarted or ChildStartFailed. A child that fails to start stays down. Not for
    simple_one_for_one, which keeps no spec of a child that is gone.
    """

    ref: str
    child_id: str
    progress: bool = False


@dataclass(frozen=True, slots=True)
class ChildStartProgress:
    """Supervisor → asker: the child is not ready yet and says how far it is."""

    ref: str
    child_id: str
    detail: object


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """Supervisor → asker: the child is up."""

    ref: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class ChildStartFailed:
    """Supervisor → asker: the child is not up, and why; ``error`` is what it gave to fail()."""

    ref: str
    child_id: str
    reason: StartFailure
    detail: str
    error: object = None


@dataclass(frozen=True, slots=True)
class TerminateChild:
    """Anyone → supervisor: stop this child and keep it down; its spec stays for RestartChild.

    A child of a simple_one_for_one supervisor and a temporary child are forgotten. Answered by
    ChildTerminated when its process is gone, or by ChildNotFound.
    """

    ref: str
    child_id: str


@dataclass(frozen=True, slots=True)
class ChildTerminated:
    """Supervisor → asker: the child's process is gone."""

    ref: str
    child_id: str


@dataclass(frozen=True, slots=True)
class ChildNotFound:
    """Supervisor → asker: I have no such child."""

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


@dataclass(frozen=True, slots=True)
class DeleteChild:
    """Anyone → supervisor: forget the spec of a child that is down.

    Answered by ChildDeleted or ChildDeleteFailed.
    """

    ref: str
    child_id: str


@dataclass(frozen=True, slots=True)
class ChildDeleted:
    """Supervisor → asker: the child is known no more."""

    ref: str
    child_id: str


@dataclass(frozen=True, slots=True)
class ChildDeleteFailed:
    """Supervisor → asker: nothing was changed, and why."""

    ref: str
    child_id: str
    reason: DeleteFailure
    detail: str


@dataclass(frozen=True, slots=True)
class WhichChildren:
    """Anyone → supervisor: your own children? Answered by ChildrenListed."""

    ref: str


@dataclass(frozen=True, slots=True)
class ChildrenListed:
    """Supervisor → asker: its own children, in start order."""

    ref: str
    children: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class ReportVitals:
    """Anyone → supervisor: how are your children? Answered at once by VitalsReported."""

    ref: str


@dataclass(frozen=True, slots=True)
class Vitals:
    """One process, as its pulse shows it; also when it hangs. The root includes itself."""

    id: str
    incarnation: int
    pid: int
    turns: int
    """Messages handled, timers and engine events included."""
    mailbox: int
    """Messages received and not yet handled, at its last sign of life."""
    silent_s: float
    """Since its last sign of life."""
    busy_s: float | None
    """How long the hook that runs now has run; None: none runs."""
    busy_with: str = ""
    """The type of the message that it handles now."""


@dataclass(frozen=True, slots=True)
class VitalsReported:
    """Supervisor → asker: its own children, those that have a process."""

    ref: str
    vitals: tuple[Vitals, ...]


@dataclass(frozen=True, slots=True)
class CountChildren:
    """Anyone → supervisor: how many? Answered by ChildrenCounted."""

    ref: str


@dataclass(frozen=True, slots=True)
class ChildrenCounted:
    """Supervisor → asker: children it knows, those with a process, and those by kind."""

    ref: str
    specs: int
    active: int
    supervisors: int
    workers: int


# ── between a supervisor and a child that starts or ends ─────────────────────


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
