"""The protocol, one section per receiver: requests are imperatives, replies are facts.

Every message is small (64 KiB at most): KV bytes stay in shared memory or files, and a payload
that may be big travels as a :class:`~actors.payload.Payload`. A request carries ``ref``, a string
that its sender chose; whatever answers it carries the same ``ref``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from actors.payload import Payload
from native import BackendKind
from native.params import ModelParams, SamplingParams

if TYPE_CHECKING:
    from supervision import Address, Entry

# ── what a completion can come to ───────────────────────────────────────────────────────────────


class FinishReason(Enum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class FailReason(Enum):
    """Why a request has no result."""

    INVALID_REQUEST = "invalid_request"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_DOWN = "model_down"
    MODEL_UNLOADED = "model_unloaded"
    PROMPT_TOO_LONG = "prompt_too_long"
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    ENGINE_ERROR = "engine_error"


class HitKind(Enum):
    """How much of the prompt the cache held."""

    EXACT = "exact"
    PARTIAL = "partial"
    COLD = "cold"
    STICKY = "sticky"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; ``prompt_tokens`` includes ``cached_tokens``, as OpenAI counts them."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What the cache did for one request, and if it did nothing, why."""

    hit: HitKind
    source: str
    """``live | ram | ram_file | disk | none``: the slowest tier that something was read from."""
    restore_ms: float
    miss_reason: str | None
    """A short code and, after a colon, its detail; ``None`` when the whole prompt was held."""
    lookup_ms: float = 0.0
    note: str | None = None
    """Something the caller should know, such as a ``parent_key`` that was not found."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds as the model process saw them; ``ttft_ms`` runs from the request's arrival."""

    queue_ms: float
    ttft_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_per_second: float


# ── inflight, and every model ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Complete:
    """Caller → inflight, or a model's own address: generate.

    Answered by one ``Accepted``, then ``PrefillProgress`` and ``TokensDelivered`` as they come, and
    exactly one ``Completed`` or ``CompletionFailed`` at the end.
    """

    ref: str
    model: str
    prompt: Payload | str
    """Text (``str``, or UTF-8 bytes), or u32-le token ids with ``tokens=True``."""
    tokens: bool = False
    max_tokens: int = 256
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    parent_key: bytes | None = None
    parse_special: bool = False
    """Read control tokens such as ``<|user|>`` in the text as tokens; for rendered templates."""
    timeout_s: float | None = None

    def __str__(self) -> str:
        return f"Complete({self.ref}, {self.model})"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Caller → inflight: stop this request. Its ``Completed`` says ``cancelled``."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """Inflight → caller: the request has an id and is queued or running."""

    ref: str
    request_id: str


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Model → caller: ``done`` of ``total`` prompt tokens are read, ``reused`` of them warm."""

    ref: str
    done: int
    total: int
    reused: int


@dataclass(frozen=True, slots=True)
class TokensDelivered:
    """Model → caller: new tokens. ``index`` numbers the first of them, from 0, without gaps."""

    ref: str
    index: int
    tokens: bytes
    """u32-le token ids."""
    text: str
    """Text that became final with these tokens; may be empty, never a cut character."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Model → caller: the end of a request that has a result."""

    ref: str
    request_id: str
    finish_reason: FinishReason
    finish_key: bytes | None
    """Key of the KV rows that hold prompt and visible reply: a later ``parent_key``."""
    stop_sequence: str | None
    usage: Usage
    cache: CacheReport
    timings: Timings


@dataclass(frozen=True, slots=True)
class CompletionFailed:
    """Model or inflight → caller: the end of a request that has no result, and what to do."""

    ref: str
    reason: FailReason
    detail: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Model → inflight: somebody sent me this ``Complete`` directly; register it like any other."""

    request: Complete
    reply_to: Address


@dataclass(frozen=True, slots=True)
class Run:
    """Inflight → model: run this request and answer ``reply_to``."""

    request_id: str
    reply_to: Address
    request: Complete


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Inflight → model: stop this request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """Model → inflight: forget this request, its caller has the answer."""

    request_id: str


# ── registry ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Anyone → registry: load this model and keep it loaded.

    Answered by ``ModelLoading`` now and then, and one ``ModelLoaded`` or ``ModelNotLoaded``.
    """

    ref: str
    model: str
    path: str
    backend: BackendKind = "llama"
    params: ModelParams = field(default_factory=ModelParams)


@dataclass(frozen=True, slots=True)
class ModelLoading:
    """Registry → asker: this share of the file is read, 0 to 1."""

    ref: str
    share: float


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """Registry → asker: the model is ready; its directory entry has address and pid."""

    ref: str
    entry: Entry


class LoadFailure(Enum):
    """Why a model is not loaded."""

    ALREADY_LOADED = "already_loaded"
    REFUSED = "refused"
    """``kind`` names the error in ``native.errors``."""
    CRASHED = "crashed"
    """The loading process ended; the file is malformed, or memory ran out."""
    UNAVAILABLE = "unavailable"
    """Models cannot be loaded just now: their supervisor is restarting or stopping."""


@dataclass(frozen=True, slots=True)
class ModelNotLoaded:
    """Registry → asker: the model is not loaded, and why."""

    ref: str
    reason: LoadFailure
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Anyone → registry: unload this model. Answered by ``ModelUnloaded``."""

    ref: str
    model: str


@dataclass(frozen=True, slots=True)
class ModelUnloaded:
    """Registry → asker: its process is gone; ``was_loaded`` is False when there was none."""

    ref: str
    was_loaded: bool


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
