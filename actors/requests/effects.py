"""What the request table asks its actor to do, and what its timers carry. Values only."""

from __future__ import annotations

from actors import messages as m
from supervision import Address
from supervision.frozen import frozen

# ── timers ──────────────────────────────────────────────────────────────────────────────────────


@frozen
class LookStopping:
    """Timer: does the model still stop?"""

    model: str
    incarnation: int
    requests: frozenset[str]
    """What it had, or what waited for it: another model of this name may be loaded meanwhile."""
    looks: int = 1


@frozen
class LookWaiting:
    """Timer: what has become of the model that requests wait for?"""

    model: str


@frozen
class LaneDue:
    """Timer: a suspect's time alone, or its wait for it, may be over."""

    model: str


@frozen
class Deadline:
    """Timer: a held request's time limit is over."""

    request_id: str


@frozen
class PingCallers:
    """Timer: send each caller a message, so that an ended process shows."""


Timer = LookStopping | LookWaiting | LaneDue | Deadline | PingCallers

# ── effects ─────────────────────────────────────────────────────────────────────────────────────


@frozen
class Start:
    """Send the request to its model, with a journal if it is a completion."""

    request_id: str
    model: str
    request: m.Complete | m.Ask
    """A completion's ``timeout_s`` is what is left of it."""
    reply_to: Address


@frozen
class Stop:
    """Ask the model to cancel the request; ``None``: every model."""

    request_id: str
    model: str | None
    awaits_end: bool
    """Whether its caller still waits for its end."""


@frozen
class Reply:
    """Send this to a caller."""

    to: Address
    message: object


@frozen
class ReplyCancelled:
    """Send the caller what its journal holds, as a completion that was cancelled."""

    to: Address
    request_id: str
    ref: str


@frozen
class Ping:
    """Send ``StillRunning``, unless the caller has not read what it was sent before."""

    to: Address
    ref: str


@frozen
class Forget:
    """The request has ended: close its journal."""

    request_id: str


@frozen
class After:
    """Call ``timer`` with this value in so many seconds."""

    seconds: float
    timer: Timer


@frozen
class Log:
    """A line for operators."""

    text: str
    is_warning: bool = False


@frozen
class Need:
    """Ask ``residency`` for a model that requests wait for, the oldest one ``since`` then."""

    model: str
    since: float


@frozen
class Held:
    """Tell ``residency`` that nothing runs in the model, or that it is not held."""

    ref: str
    model: str
    is_held: bool


Effect = Start | Stop | Reply | ReplyCancelled | Ping | Forget | After | Log | Need | Held
