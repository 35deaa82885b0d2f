"""The cache: between models, cache_meta, tiers and the writer. Keys are 32 bytes, sizes bytes."""

from __future__ import annotations

from enum import Enum
from typing import Self

from actors.messages.payload import Payload
from cache.answers import Miss, RefusalReason
from cache.facts import NamespaceFacts, RowFacts
from cache.rows import RowIdentity
from supervision.frozen import frozen

# ── cache_meta: from models ────────────────────────────────────────────────────────────────────


@frozen
class LookupPrefix:
    """Model → cache_meta: lease the longest stored prefix. Answered by ``PrefixResolved``."""

    ref: str
    holder: str
    root: bytes
    tokens: Payload


@frozen
class PrefetchPrefix:
    """Model → cache_meta: a request waits that will look up these tokens; have its rows in RAM.

    Not answered. Valid until ``PrefetchEnded``, or the end of either process. A second one with
    the same ``ref`` takes the place of the first.
    """

    ref: str
    holder: str
    root: bytes
    tokens: Payload
    n_live: int = 0
    """Leading tokens that are in the model's context, of which no row is needed."""
    slower: tuple[str, ...] = ()
    """Tiers from which restoring takes longer than computing."""
    links_upto: int = 0
    """Of a memory that cannot be cut: rows of at most so many bytes hold no state; else 0."""


@frozen
class PrefetchEnded:
    """Model → cache_meta: that request has looked up its rows, or will not."""

    ref: str
    holder: str


@frozen
class ResolveParent:
    """Model → cache_meta: lease the whole chain of this tip. Answered by ``PrefixResolved``."""

    ref: str
    holder: str
    root: bytes
    key: bytes


@frozen
class PrefixResolved:
    """Cache_meta → model: what is stored, leased until ``ReleaseLease``."""

    ref: str
    n_tokens: int
    blocks: bytes
    """Packed block references, see ``cache.refs``."""
    lease: int
    miss: Miss | None
    """Why no more of it; ``None`` when everything that was asked for is stored."""


@frozen
class ReleaseLease:
    """Model → cache_meta: the rows of this lease are not read any more."""

    lease: int


@frozen
class RowWanted:
    """One row that a model asks to store.

    The fields of its ``RowIdentity`` are spelled out: 128 rows travel in a message, and a nested
    value costs twice the time to pack and unpack. ``ReserveRows`` has the root, once for all.
    """

    key: bytes
    parent: bytes
    start: int
    tokens: bytes
    row_bytes: int
    marks: bytes = b""
    """Of replies that end in it, see ``cache.text_marks``; its metadata holds them."""

    @classmethod
    def of(cls, row: RowIdentity, row_bytes: int, marks: bytes = b"") -> Self:
        """The message about this row."""
        return cls(row.key, row.parent, row.start, row.tokens, row_bytes, marks)

    def identity(self, root: bytes) -> RowIdentity:
        """The row, in the namespace with this root key."""
        return RowIdentity(self.key, self.parent, root, self.start, self.tokens)


@frozen
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


@frozen
class RowsReserved:
    """Cache_meta → model: where to write, by key; a key that is missing was refused, and why.

    The grant is void as soon as cache_meta is another incarnation, which has no record of it.
    """

    ref: str
    incarnation: int
    offsets: tuple[tuple[bytes, int], ...]
    refused: tuple[tuple[bytes, RefusalReason], ...]
    ends: tuple[tuple[bytes, bytes], ...] = ()
    """By key: where tails end that the row contains (``cache.finish_keys``), for its metadata."""


@frozen
class RowsWritten:
    """Model → cache_meta: these reservations ended, published or abandoned."""

    holder: str
    published: tuple[bytes, ...]
    abandoned: tuple[bytes, ...]
    continued: tuple[bytes, ...] = ()
    """Abandoned, too: their sequence was continued, and a longer row has these tokens or will."""
    reason: int = 0
    """``cache.rows.SaveReason`` value, if it is another than when they were reserved."""


@frozen
class RowRejected:
    """Model → cache_meta: this row failed the restore checklist; drop it."""

    key: bytes
    tier: str
    reason: str


@frozen
class WriteTails:
    """Cache_meta → model: store now what is only in your context; a request waits for it."""


@frozen
class ForgetLive:
    """Anyone → model: drop what is only in your context, unstored; running requests continue."""


@frozen
class PersistNow:
    """Anyone → cache_meta: put nothing off any longer. Answered by ``PersistState``; ask again."""

    ref: str


@frozen
class PersistState:
    """Cache_meta → asker: whether every file tier holds all that is worth keeping there."""

    ref: str
    is_all: bool


# ── cache_meta: from tiers and the writer ──────────────────────────────────────────────────────


@frozen
class StoredRow:
    """A row that a tier found when it started.

    The fields of its ``RowIdentity`` are spelled out, as in ``RowWanted``.
    """

    key: bytes
    parent: bytes
    root: bytes
    start: int
    tokens: bytes
    row_bytes: int
    location: int | None
    age_s: float = 0.0
    """Since it was computed, by the clock of the machine; 0 where that is not known."""
    marks: bytes = b""
    """As in ``RowWanted``."""
    ends: bytes = b""
    """Where tails end that it contains, see ``cache.finish_keys``."""

    @classmethod
    def of(
        cls,
        row: RowIdentity,
        row_bytes: int,
        location: int | None,
        age_s: float = 0.0,
        *,
        marks: bytes = b"",
        ends: bytes = b"",
    ) -> Self:
        """The message about this row."""
        known = (row.key, row.parent, row.root, row.start, row.tokens)
        return cls(*known, row_bytes, location, age_s, marks, ends)

    @property
    def identity(self) -> RowIdentity:
        return RowIdentity(self.key, self.parent, self.root, self.start, self.tokens)


@frozen
class RowsFound:
    """Tier → cache_meta: rows found by the scan at start, in batches; ``last`` ends the scan."""

    tier: str
    rows: tuple[StoredRow, ...]
    last: bool
    quarantined: int = 0
    incarnation: int = 0
    """Of the tier; before its end nothing is written there, for it would look like an orphan."""

    def __str__(self) -> str:
        return f"RowsFound({self.tier}, {len(self.rows)} rows)"


@frozen
class RowCopied:
    """Writer → cache_meta: the row now also lies in this tier."""

    key: bytes
    tier: str


@frozen
class CopyFailed:
    """Writer → cache_meta: the row was not copied; the node runs without the copy."""

    key: bytes
    tier: str
    source: str
    detail: str
    is_bad: bool
    """The copy in ``source`` is corrupt or gone."""
    refused_by: str | None
    """The tier whose storage refused."""


@frozen
class FilesDropped:
    """File tier → cache_meta: the files of this ``DropFiles`` take no room any more."""

    tier: str
    ref: int


@frozen
class TierChanged:
    """File tier → cache_meta: whether its directory takes rows, and whether it is there at all."""

    tier: str
    is_open: bool
    is_there: bool
    detail: str


# ── writer, tiers ──────────────────────────────────────────────────────────────────────────────


@frozen
class CopyRow:
    """Cache_meta → writer: copy this row into a file tier.

    One reply per row, ``RowCopied`` or ``CopyFailed``. Offsets are those of the arena.
    """

    key: bytes
    row_bytes: int
    source: str
    source_offset: int | None
    tier: str
    offset: int | None


@frozen
class PromoteRows:
    """Cache_meta → ram_tier: copy these rows into the arena. Answered by ``RowsPromoted``.

    Rows of small models are copied in less time than a message takes, so they come together.
    """

    rows: tuple[CopyRow, ...]

    def __str__(self) -> str:
        return f"PromoteRows({len(self.rows)} rows)"


@frozen
class RowsPromoted:
    """Ram_tier → cache_meta: these rows lie in the arena now, and those were not copied."""

    keys: tuple[bytes, ...]
    failed: tuple[CopyFailed, ...]

    def __str__(self) -> str:
        return f"RowsPromoted({len(self.keys)} rows, {len(self.failed)} failed)"


@frozen
class ReadAhead:
    """Cache_meta → ram_tier: have these files read into the page cache. Not answered."""

    tier: str
    keys: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"ReadAhead({self.tier}, {len(self.keys)} rows)"


@frozen
class WriterStops:
    """Writer → cache_meta: it was asked to stop and is this incarnation.

    Answered by ``NoMoreCopies`` behind the last ``CopyRow``.
    """

    incarnation: int


@frozen
class NoMoreCopies:
    """Cache_meta → writer: no ``CopyRow`` follows this."""


@frozen
class DropFiles:
    """Cache_meta → file tier: rows were evicted; remove their files, then send ``FilesDropped``."""

    ref: int
    keys: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"DropFiles({self.ref}, {len(self.keys)} files)"


@frozen
class WatchTier:
    """Cache_meta → file tier: rows could not be written; send ``TierChanged`` when they can."""

    detail: str


@frozen
class QuarantineFile:
    """Cache_meta → file tier: this row failed its checks; keep it aside for inspection."""

    key: bytes


# ── cache_meta: from commands and the pressure scheduler ───────────────────────────────────────


@frozen
class ListRows:
    """Anyone → cache_meta: a page of rows. Answered by ``RowsListed``.

    A bounded number of rows is looked at; a page may be empty although more follow.
    """

    ref: str
    cursor: int = 0
    prefix: bytes = b""
    """Of the key."""
    root: bytes | None = None
    tier: str | None = None
    limit: int = 1 << 16
    """Rows of the answer; bounded by what fits into a message anyway."""


@frozen
class RowsListed:
    """Cache_meta → asker: rows, and where the next page begins; cursor 0 is the end."""

    ref: str
    rows: tuple[RowFacts, ...]
    cursor: int

    def __str__(self) -> str:
        return f"RowsListed({self.ref}, {len(self.rows)} rows)"


@frozen
class ShowRow:
    """Anyone → cache_meta: the facts about one row. Answered by ``RowShown``."""

    ref: str
    key: bytes


@frozen
class RowShown:
    """Cache_meta → asker: the row, ``None`` if it is not stored, and how many rows continue it."""

    ref: str
    row: RowFacts | None
    children: int


@frozen
class ListNamespaces:
    """Anyone → cache_meta: which models have rows. Answered by ``NamespacesListed``."""

    ref: str
    cursor: int = 0


@frozen
class NamespacesListed:
    """Cache_meta → asker: the namespaces, each with a row whose head names the model."""

    ref: str
    namespaces: tuple[NamespaceFacts, ...]
    cursor: int = 0
    """Where the next page begins; 0 is the end."""

    def __str__(self) -> str:
        return f"NamespacesListed({self.ref}, {len(self.namespaces)})"


class Removal(Enum):
    """Which rows to remove."""

    TREE = "tree"
    """The row ``key`` and everything that continues it, from the far end."""
    ALL = "all"
    """Every row, or those of the namespace ``key``."""
    SUPERSEDED = "superseded"
    """Tails that a longer row contains."""


@frozen
class RemoveRows:
    """Anyone → cache_meta: remove rows, except leased ones. Answered by ``RowsRemoved``.

    A bounded number per message, so that lookups are answered in between; ask again with the
    cursor of the answer.
    """

    ref: str
    what: Removal
    key: bytes | None = None
    cursor: int = 0


@frozen
class RowsRemoved:
    """Cache_meta → asker: what went, how many stayed because they are read; cursor 0 is the end."""

    ref: str
    rows: int
    nbytes: int
    leased: int
    cursor: int


@frozen
class EvictBytes:
    """Scheduler → cache_meta: evict this many bytes, from these tiers in order.

    Answered by ``BytesEvicted``. A bounded number of rows per message.
    """

    ref: str
    nbytes: int
    tiers: tuple[str, ...]


@frozen
class BytesEvicted:
    """Cache_meta → scheduler: rows evicted, and bytes returned to the system.

    ``returned`` counts arena memory that the kernel got back, also where no row was, and the sizes
    of dropped files. ``more``: asking again would free something.
    """

    ref: str
    rows: int
    returned: int
    more: bool


@frozen
class DescribeTier:
    """Anyone → ram_tier or file tier: where are your rows? Answered by ``TierDescribed``."""

    ref: str


@frozen
class TierDescribed:
    """A tier → asker: its name in the index, and where its rows lie."""

    ref: str
    tier: str
    directory: str | None
    """Of a file tier."""
    arena: str | None
    """Of the RAM tier: the shared memory that every process of the node can open."""
