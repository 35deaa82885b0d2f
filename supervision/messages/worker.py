"""Between any process and a worker."""

from __future__ import annotations

from supervision.exits import SHUTDOWN, ExitReason
from supervision.frozen import frozen


@frozen
class ReportStatus:
    """Any process → worker: report your status. Answered by StatusReported."""

    ref: str


@frozen
class StatusReported:
    """Worker → asker: what ``status()`` returned."""

    ref: str
    id: str
    pid: int
    incarnation: int
    status: dict[str, object]


@frozen
class Shutdown:
    """Supervisor → child: stop, in order, and exit. Answered by the end of the process."""

    reason: ExitReason = SHUTDOWN


@frozen
class Addressed:
    """Sender → worker: a message for one incarnation of one id.

    Any other process, and one that is ending, answers the sender with WrongIncarnation if the
    message has a ``ref``, and writes a line into the log if it has none.
    """

    id: str
    incarnation: int
    message: object


@frozen
class WrongIncarnation:
    """Process → sender: the message was for another process; it was not handled."""

    ref: str
    """That of the message."""
    id: str
    wanted: int
    actual: int | None
    """Which incarnation of the id the refusing process is; None if it is none, or is ending."""
