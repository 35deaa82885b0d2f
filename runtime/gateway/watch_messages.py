"""Between HTTP workers and the ledger, for the page; and a prompt, from one worker to another."""

from __future__ import annotations

from runtime.gateway.accounts import Incarnation
from runtime.gateway.board import Changes, Noted
from supervision.frozen import frozen


@frozen
class Seen:
    """What a worker that shows requests has of them."""

    epoch: int
    """Of the ledger; 0: none yet."""
    last: int
    """Number of the last change."""
    snapshot: int
    """Number of the last snapshot."""


@frozen
class NoteRequests:
    """Worker → ledger: requests as they are. Answered by RequestsNoted."""

    ref: str
    who: Incarnation
    requests: tuple[Noted, ...]
    running: tuple[str, ...] | None = None
    """Ids of all that run there; None: it is not reported, because no page is open."""
    seen: Seen | None = None
    """A page is open here: what has changed since."""


@frozen
class RequestsNoted:
    """Ledger → worker: it has them."""

    ref: str
    epoch: int
    """Of the ledger: when its process was started. Another one has none of what was sent before."""
    is_watched: bool
    """A page is open at some worker."""
    must_look: bool = False
    """It is this worker's turn to send a snapshot."""
    changes: Changes | None = None
    snapshot_number: int = 0
    snapshot: bytes | None = None
    """The node as it was last: JSON, compressed; None: as the worker has it."""


@frozen
class NoteSnapshot:
    """Worker → ledger: the node as it is; see ``RequestsNoted``. Without an answer."""

    snapshot: bytes


@frozen
class ReadWhy:
    """Worker → another worker: the prompt of a request, explained. Answered by WhyRead."""

    ref: str
    name: str
    """Id of the request."""
    room: str
    """Path of a memory file of the asker, for an answer that is too big for a message."""


@frozen
class WhyRead:
    """Worker → another worker: JSON; ``n_bytes`` 0: it has no such prompt."""

    ref: str
    body: bytes
    """Empty: it lies in the room that the question named."""
    n_bytes: int
