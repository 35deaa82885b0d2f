"""Between a host and the root supervisor: notification of the end of a process."""

from __future__ import annotations

from supervision.exits import ExitReason
from supervision.frozen import frozen


@frozen
class Monitor:
    """Host → root supervisor: notify when this incarnation ends. Answered by Down, then or at once.

    With None it is the present incarnation, with 0 the last that ended. Sending the same ``ref``
    again renews the monitor; a Down that was lost on the way comes again.
    """

    ref: str
    id: str
    incarnation: int | None = None


@frozen
class Demonitor:
    """Host → root supervisor: forget this monitor; with an empty ``ref``, all of this sender's."""

    ref: str


@frozen
class Down:
    """Root, or the worker itself → owner: this incarnation has ended, or was not there."""

    ref: str
    """That of the monitor, which is spent."""
    id: str
    incarnation: int
    """0 if no process of the id was known."""
    reason: ExitReason
