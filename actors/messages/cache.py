"""The cache: between models, cache_meta, tiers and the writer. Keys are 32 bytes, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass

from actors.payload import Payload

# ── cache_meta: from models ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class LookupPrefix:
    """Model → cache_meta: lease the longest stored prefix. Answered by ``PrefixResolved``."""

    ref: str
    holder: str
    root: bytes
    tokens: Payload


@dataclass(frozen=True, slots=True)
class ResolveParent:
    """Model → cache_meta: lease the whole chain of this tip. Answered by ``PrefixResolved``."""

    ref: str
    holder: str
    root: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class PrefixResolved:
    """Cache_meta → model: what is stored, leased until ``ReleaseLease``."""

    ref: str
    n_tokens: int
    blocks: bytes
    """Packed block references, see ``cache.refs``."""
    lease: int
    miss_reason: str | None


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Model → cache_meta: the rows of this lease are not read any more."""

    lease: int


@dataclass(frozen=True, slots=True)
class RowWanted:
    """One row that a model would like to store."""

    key: bytes
    parent: bytes
    start: int
    tokens: bytes
    row_bytes: int


@dataclass(frozen=True, slots=True)
class ReserveRows:
    """Model → cache_meta: may I write these rows? Answered by ``RowsReserved``."""

    ref: str
    holder: str
    root: bytes
    reason: int
    """``cache.rows.SaveReason`` value."""
    rows: tuple[RowWanted, ...]

    def __str__(self) -> str:
        return f"ReserveRows({self.ref}, {len(self.rows)} rows)"


@dataclass(frozen=True, slots=True)
class RowsReserved:
    """Cache_meta → model: where to write, by key; a key that is missing was refused, and why.

    The grant is void as soon as cache_meta is another incarnation: that one knows nothing of it.
    """

    ref: str
    incarnation: int
    offsets: tuple[tuple[bytes, int], ...]
    refused: tuple[tuple[bytes, str], ...]


@dataclass(frozen=True, slots=True)
class RowsWritten:
    """Model → cache_meta: these reservations ended, published or given up."""

    holder: str
    published: tuple[bytes, ...]
    abandoned: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RowRejected:
    """Model → cache_meta: this row failed the restore checklist; drop it."""

    key: bytes
    tier: str
    reason: str


# ── cache_meta: from tiers and the writer ──────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row that a tier found when it started."""

    key: bytes
    parent: bytes
    root: bytes
    start: int
    tokens: bytes
    row_bytes: int
    location: int | None


@dataclass(frozen=True, slots=True)
class RowsFound:
    """Tier → cache_meta: rows found by the scan at start, in batches; ``last`` ends the scan."""

    tier: str
    rows: tuple[StoredRow, ...]
    last: bool
    quarantined: int = 0

    def __str__(self) -> str:
        return f"RowsFound({self.tier}, {len(self.rows)} rows)"


@dataclass(frozen=True, slots=True)
class RowPersisted:
    """Writer → cache_meta: the row now also lies in this file tier."""

    key: bytes
    tier: str


@dataclass(frozen=True, slots=True)
class PersistFailed:
    """Writer → cache_meta: the row could not be written; the node goes on with its other tiers."""

    key: bytes
    tier: str
    detail: str


# ── writer, tiers ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PersistRow:
    """Cache_meta → writer: copy this row of the arena into a file tier. One reply per row."""

    key: bytes
    tier: str
    offset: int


@dataclass(frozen=True, slots=True)
class DropFiles:
    """Cache_meta → file tier: these rows were evicted; remove their files."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class QuarantineFile:
    """Cache_meta → file tier: this row failed its checks; keep it aside for inspection."""

    key: bytes
