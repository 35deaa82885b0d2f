"""Requests to the index and its answers: plain values, safe to send to other processes.

Sizes are bytes, positions and lengths are tokens, locations are arena offsets in the ram tier and
None in file tiers (a file's path follows from its key).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from cache.rows import RowIdentity, SaveReason

RAM: str = "ram"


class RefusalReason(Enum):
    """Why a reservation was refused, and with it whether the save is dropped or retried."""

    ALREADY_PRESENT = "already_present"  # drop it: the row is there, or one that contains it
    WRITE_IN_PROGRESS = "write_in_progress"  # drop it: another writer will publish it
    OVER_BUDGET = "over_budget"  # drop it: nothing evictable would make enough room
    NO_PARENT = "no_parent"  # save the rows before it first
    MALFORMED = "malformed"  # caller's bug: key, start or token count do not fit together
    NO_SUCH_TIER = "no_such_tier"  # caller's bug
    STARTING = "starting"  # retry it: the index does not have all rows yet that were stored before


class MissReason(Enum):
    """Why a prompt was served from the cache no further than it was.

    The index returns the first six; the others are found where its answers are used.
    """

    EMPTY_CACHE = "empty_cache"  # nothing is stored at all
    NO_SUCH_NAMESPACE = "no_such_namespace"  # nothing is stored for this model and these settings
    DIVERGES = "diverges"  # stored rows continue from here with other tokens
    NOT_STORED = "not_stored"  # nothing is stored beyond this point
    BEING_WRITTEN = "being_written"  # the next block is reserved but not yet published
    NOT_CUTTABLE = "not_cuttable"  # a longer match exists, but this model cannot cut a row
    NOT_STARTED = "not_started"  # the request ended before it was looked for
    CACHE_OFF = "cache_off"  # this node keeps no rows
    CACHE_DOWN = "cache_down"  # the index ended before it answered
    CACHE_TIMEOUT = "cache_timeout"  # the index did not answer in time
    PAYLOAD_GONE = "payload_gone"  # the prompt could not be read by the index
    PARENT_UNKNOWN = "parent_unknown"  # no stored row ends with the key that was given
    MODEL_CANNOT_BE_CUT = "model_cannot_be_cut"  # nor does it keep checkpoints
    NO_CHECKPOINT_BEYOND = "no_checkpoint_beyond"  # rows are stored, but no state after this token
    ROW_REJECTED = "row_rejected"  # a stored row failed its checks
    NOT_RESTORED = "not_restored"  # the backend refused the rows
    RESTORE_WOULD_BE_SLOWER = "restore_would_be_slower"  # than computing it from this token on


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One row to be written, or found by a scan."""

    id: RowIdentity
    row_bytes: int
    reason: SaveReason = SaveReason.COLD

    @property
    def key(self) -> bytes:
        return self.id.key


@dataclass(frozen=True, slots=True)
class Reservation:
    """The right to write one row: in the arena at ``offset``, or as a file copied from ``source``.

    Of a copy, ``source_tier`` is where to read it and ``source`` the arena offset there (None in
    a file tier); it is pinned until the reservation is published or abandoned.
    """

    key: bytes
    offset: int | None
    row_bytes: int
    tier: str = RAM
    source: int | None = None
    source_tier: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """This row may not be written, and why."""

    key: bytes
    reason: RefusalReason


@dataclass(frozen=True, slots=True)
class Evicted:
    """A copy that is no longer in the index: invalidate the slab, or delete the file."""

    key: bytes
    tier: str
    location: int | None
    nbytes: int


class Reserved(NamedTuple):
    """Answers in request order, and what was evicted for them.

    Every evicted slab must be invalidated (``arena.mark_free``) before any of the reservations is
    returned: a stale published header inside a slab that is being overwritten would otherwise
    look like a valid row after a crash.
    """

    answers: list[Reservation | Refusal]
    evicted: list[Evicted]


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did: whether the row is now visible, and which tiers still lack it."""

    accepted: bool
    to_persist: tuple[str, ...] = ()
    evicted: tuple[Evicted, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockRef:
    """One row to restore: ``n_used`` of its ``n_tokens`` tokens, the first at ``start``.

    ``is_tip``: its first token is the mark ``TIP``, the others are the prompt's, and its state is
    that of a whole sequence. ``n_used`` counts the mark only if it was asked for.
    """

    key: bytes
    tier: str
    location: int | None
    row_bytes: int
    start: int
    n_used: int
    n_tokens: int
    is_tip: bool = False


@dataclass(frozen=True, slots=True)
class Miss:
    """Why the match ends at token ``at``, which is also the nearest stored prefix length."""

    reason: MissReason
    at: int | None = None
    """``None`` where the reason is no position of the prompt."""
    detail: str = ""

    def __str__(self) -> str:
        """For people: the reason, and after a colon its position or its detail."""
        detail = self.detail if self.at is None else str(self.at)
        return f"{self.reason.value}:{detail}" if detail else self.reason.value


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix: ``n_tokens`` tokens in ``blocks``, all pinned by ``lease``.

    ``lease`` is 0 when there are no blocks. ``miss`` is None only if everything asked for matched.
    """

    n_tokens: int
    blocks: tuple[BlockRef, ...]
    lease: int
    miss: Miss | None
    tip: bytes  # key of the last block, or the root


@dataclass(frozen=True, slots=True)
class TierUse:
    """One tier's budget and use in bytes, and its number of rows."""

    budget_bytes: int
    used_bytes: int
    pinned_bytes: int
    rows: int
    waiting: int = 0  # rows that are to be copied to it from a faster tier
    evicted_for_room: int = 0  # copies, since the start
    evicted_on_request: int = 0  # the same, to free memory


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters since start, and the present sizes."""

    rows: int
    leases: int
    reservations: int
    hits_exact: int
    hits_partial: int
    misses: int
    saves: Mapping[str, int]  # rows saved to ram, by save reason
    evictions: int
    adopted: int
    persisted: int  # copies written to file tiers
    duplicate_dropped: int
    refused: Mapping[str, int]  # by refusal reason
    tiers: Mapping[str, TierUse]
    lost: int = 0  # evicted before the slower tier that should have them did
    tails_removed: int = 0  # copies dropped because a longer row contains them
    hits_resume: int = 0  # of the exact ones: found by their parent_key, without a search


Answer: TypeAlias = Reservation | Refusal
