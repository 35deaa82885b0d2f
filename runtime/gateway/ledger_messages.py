"""Between HTTP workers and the ledger, and from one worker to another."""

from __future__ import annotations

from typing import Final

from actors.messages.payload import Payload
from runtime.gateway.accounts import Incarnation, Now
from runtime.gateway.keys import Key
from runtime.gateway.wire.diagnose import Parts
from runtime.gateway.wire.failure import Failure
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.rates import Rates
from supervision.frozen import frozen

LEDGER: Final = "gateway_ledger"
"""Its id in the tree."""

EndedUses = tuple[tuple[str, int], ...]


@frozen
class BeginUse:
    """Worker → ledger: a request of a limited key begins. Answered by UseBegun or UseRefused.

    May be sent again: a request that is known is not counted twice.
    """

    ref: str
    who: Incarnation
    turn: int
    """Counts the messages of this worker."""
    use: str
    """Id of the request; its successor in another worker has the same."""
    key: Key
    """As far as it limits."""
    ended: EndedUses = ()
    """Uses that ended before, and the tokens that were computed for each."""
    is_checked: bool = True
    """False: it was allowed before, and goes on."""


@frozen
class UseBegun:
    """Ledger → worker: it may run."""

    ref: str
    rates: Rates


@frozen
class UseRefused:
    """Ledger → worker: it may not yet. ``is_busy``: because others of its key run."""

    ref: str
    failure: Failure
    is_busy: bool


@frozen
class ReportWorker:
    """Worker → ledger: all that it has counted, and what runs. Answered by WorkerReported."""

    ref: str
    who: Incarnation
    turn: int
    now: Now
    counts: Counts
    uses: tuple[str, ...]
    """Every request of a limited key that runs there."""
    ended: EndedUses = ()
    continued: tuple[str, ...] | None = None
    """In the first report of a process: responses of its predecessors that it goes on with."""
    series: bytes = b""
    """All of them, see ``wire.series``; empty: as in its last report."""


@frozen
class WorkerReported:
    """Ledger → worker: it has the report."""

    ref: str
    others: int
    """Requests that run in other workers."""
    is_watched: bool = False
    """A page that shows requests is open at some worker."""


@frozen
class ReadTotals:
    """Worker → ledger: what has all that was answered cost? Answered by TotalsRead."""

    ref: str


@frozen
class TotalsRead:
    """Ledger → worker: over all workers, since the launcher started."""

    ref: str
    counts: Counts
    running: int
    connections: int = 0
    series: bytes = b""
    restarts: tuple[tuple[str, str, int], ...] = ()
    """Of the node's actors: id, why, how often."""


@frozen
class KeepResponse:
    """Worker → ledger: store a response. Answered by ResponseKept when it is."""

    ref: str
    content: Payload
    """A ``Stored`` in msgpack; it is read before the answer."""


@frozen
class ResponseKept:
    """Ledger → worker: it is stored, or too big for that."""

    ref: str


@frozen
class FindResponse:
    """Worker → ledger: return a stored response. Answered by ResponseFound."""

    ref: str
    name: str
    owner: str
    """Name of the key that asks."""
    room: str
    """Path of a memory file of the asker, for an answer that is too big for a message."""
    has_history: bool = False
    """Also all that it continues."""


@frozen
class ResponseFound:
    """Ledger → worker: a response, after those that it continues; nothing where one is missing."""

    ref: str
    content: bytes
    """A list of ``Stored`` in msgpack; empty: it lies in the room that the question named."""
    n_bytes: int
    missing: str | None = None
    """The id that is not stored."""


@frozen
class ForgetResponse:
    """Worker → ledger: drop a stored response. Answered by ResponseForgotten."""

    ref: str
    name: str
    owner: str


@frozen
class ResponseForgotten:
    """Ledger → worker: it is not stored any more."""

    ref: str
    was_there: bool
    running_at: int | None = None
    """Number of the worker that generates it still."""


@frozen
class NoteParts:
    """Worker → ledger: a request was answered; its digests. Without an answer."""

    owner: str
    answer_id: str
    parts: Parts


@frozen
class FindParts:
    """Worker → ledger: the digests of a request that was answered. Answered by PartsFound."""

    ref: str
    owner: str
    answer_id: str


@frozen
class PartsFound:
    """Ledger → worker: None: it is not known, or not of this key."""

    ref: str
    parts: Parts | None


@frozen
class EndResponse:
    """Worker → another worker: end a response that runs there. Answered by ResponseEnding."""

    ref: str
    name: str
    owner: str
    is_dropped: bool = False
    """Nothing of it is kept."""


@frozen
class ResponseEnding:
    """Worker → another worker: it ends soon, if it runs here."""

    ref: str
