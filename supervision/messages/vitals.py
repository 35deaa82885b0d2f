"""Between any process and a supervisor: vital signs of its children."""

from __future__ import annotations

from supervision.frozen import frozen


@frozen
class ReportVitals:
    """Any process → supervisor: report your children's vitals. Answered by VitalsReported."""

    ref: str


@frozen
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


@frozen
class VitalsReported:
    """Supervisor → asker: its own children, those that have a process."""

    ref: str
    vitals: tuple[Vitals, ...]
