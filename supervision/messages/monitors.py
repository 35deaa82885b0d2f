"""Between a host and the root supervisor: tell me when this one ends."""

from __future__ import annotations

from supervision.exits import ExitReason
from supervision.frozen import frozen


@frozen
class Monitor:
    """Host → root supervisor: tell me when this incarnation ends. Answered by Down, then or now.

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
    """Whoever keeps the monitor → its owner: this incarnation has ended, or was not there."""

    ref: str
    """That of the monitor, which is spent."""
    id: str
    incarnation: int
    """0 if no process of the id was known."""
    reason: ExitReason
