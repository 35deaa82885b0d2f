"""The state of a supervisor's children, and the effects that its core returns. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from supervision.exits import ExitReason
from supervision.frozen import frozen
from supervision.messages import DeleteFailure, StartFailure
from supervision.restart import RestartWindow
from supervision.spec import ChildSpec


class State(enum.Enum):
    """Where a child is in its life. The values are those of ``Entry.state``."""

    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    """No process now; a start is queued or its pause runs."""
    DOWN = "down"


class Timer(enum.Enum):
    """What a timer is for."""

    INIT = "init"
    STOP = "stop"
    BACKOFF = "backoff"


@dataclass(slots=True)
class Child:
    """One child as the supervisor sees it."""

    spec: ChildSpec
    state: State = State.DOWN
    incarnation: int = 0
    restarts: int = 0
    ever_ready: bool = False
    last_exit: ExitReason | None = None
    notice: ExitReason | None = None
    """The reason that it sent before its exit."""
    failure: tuple[StartFailure, str, object] | None = None
    """Why this start fails, known before the process has ended."""
    window: RestartWindow | None = None
    is_new: bool = False
    """A start_child made it and it was never ready: if it fails, it is forgotten."""
    killed: bool = False
    """This incarnation was sent SIGKILL already."""
    waits_for: str | None = None
    """It goes down, or is down, to come back with this child (or by itself), whose restart took
    it along."""
    start_askers: list[object] = field(default_factory=list)
    stop_askers: list[object] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The child's id."""
        return self.spec.id

    @property
    def has_process(self) -> bool:
        """Whether a process of it exists or must be assumed to."""
        return self.state in (State.STARTING, State.UP, State.STOPPING)


# ── effects ──────────────────────────────────────────────────────────────────


@frozen
class Spawn:
    """Fork a process for this incarnation and send it Init."""

    id: str
    incarnation: int


@frozen
class AskToStop:
    """Send the child Shutdown."""

    id: str
    incarnation: int


@frozen
class Kill:
    """SIGKILL the child's process."""

    id: str
    incarnation: int
    why: str


@frozen
class Arm:
    """Call ``timer_fired`` with these values after ``seconds`` and a random part of ``spread_s``.

    The core is deterministic: it returns how far the pause may spread, and the caller draws.
    """

    timer: Timer
    id: str
    incarnation: int
    seconds: float
    spread_s: float = 0.0


@frozen
class AllReady:
    """Every child of the spec has been started: this supervisor is ready."""


@frozen
class Finished:
    """Every child is gone: exit with this reason."""

    reason: ExitReason


@frozen
class AnswerStarted:
    """The child that ``asker`` requested is up."""

    asker: object
    id: str


@frozen
class AnswerStartFailed:
    """The child that ``asker`` requested is not up."""

    asker: object
    id: str
    reason: StartFailure
    detail: str
    error: object = None


@frozen
class AnswerTerminated:
    """The child whose end ``asker`` requested is gone."""

    asker: object
    id: str


@frozen
class AnswerNotFound:
    """There is no such child to terminate."""

    asker: object
    id: str


@frozen
class AnswerDeleted:
    """The spec of the child is forgotten."""

    asker: object
    id: str


@frozen
class AnswerDeleteFailed:
    """The spec of the child is still there, or never was."""

    asker: object
    id: str
    reason: DeleteFailure
    detail: str


@frozen
class Removed:
    """A child left the supervisor for good; ``child`` is its last state."""

    child: Child


@frozen
class Crashed:
    """Write a crash report on this incarnation of ``child``, which may be another one by then.

    Comes after what restarts the child, so that the report does not delay it, and before Finished.
    """

    child: Child
    incarnation: int
    reason: ExitReason


@frozen
class Happened:
    """A line for the log: ``up | down | restart | give_up | auto_shutdown``."""

    what: str
    id: str
    incarnation: int
    text: str = ""
    reason: ExitReason | None = None


Answer = (
    AnswerStarted | AnswerStartFailed | AnswerTerminated | AnswerNotFound | AnswerDeleted
    | AnswerDeleteFailed
)  # fmt: skip
Effect = (
    Spawn | AskToStop | Kill | Arm | AllReady | Finished | Answer | Removed | Crashed | Happened
)  # fmt: skip
