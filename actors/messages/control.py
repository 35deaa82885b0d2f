"""Questions to a model about its context: its sessions, its live tier, what it holds.

Sent to ``model:<id>``. Each carries ``ref``, which its answer repeats.
"""

from __future__ import annotations

from actors.messages.payload import Payload
from supervision.frozen import frozen


@frozen
class EndSession:
    """Caller → model: forget this session. Answered by ``SessionEnded``.

    A request of it that is running continues and is the last one.
    """

    ref: str
    session: str
    salt: bytes = b""
    """That of its requests."""


@frozen
class SessionEnded:
    """Model → caller: the session is forgotten; ``was_known``: there was one."""

    ref: str
    was_known: bool


@frozen
class ListSessions:
    """Caller → model: which sessions are known? Answered by ``SessionsListed``."""

    ref: str


@frozen
class SessionStatus:
    """One session."""

    name: str
    salt: bytes
    """That of its requests."""
    n_tokens: int
    """Prompt and reply of its last turn that has ended."""
    is_running: bool
    """Whether a request of it runs, or waits for its turn."""


@frozen
class SessionsListed:
    """Model → caller: the sessions that were used last, latest first."""

    ref: str
    sessions: tuple[SessionStatus, ...]
    n_known: int
    """How many there are."""


@frozen
class EvictLive:
    """Caller → model: evict every idle sequence of the context. Answered by ``LiveEvicted``.

    What is stored nowhere yet is stored first. Running requests are not touched.
    """

    ref: str


@frozen
class LiveEvicted:
    """Model → caller: sequences and cells that are free again."""

    ref: str
    sequences: int
    cells: int


@frozen
class MatchPrefix:
    """Caller → model: how much of this prompt is warm? ``PrefixMatched``, or ``TextRefused``.

    Nothing is restored and no row is touched.
    """

    ref: str
    tokens: Payload
    """u32-le token ids."""
    salt: bytes = b""
    """For requests with this salt."""


@frozen
class PrefixMatched:
    """Model → caller: leading tokens that are live in the context, and that are stored."""

    ref: str
    live: int
    stored: int
