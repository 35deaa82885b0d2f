"""The row format, version 1: one layout for arena slabs and for files.

A row is a head (fixed header, metadata, tokens) and a payload: the KV bytes of one block, opaque
here. All integers are little-endian. Offsets of the parts are derived from their sizes and never
stored, so they cannot be wrong: metadata at 256, tokens at the next multiple of 4, payload at the
next multiple of 64 (cache line), the row ends with the payload. The arena pads to whole pages;
padding is no part of the row.

offset size type  name            kind
     0    8 bytes magic           identity       b"llamaKVB"
     8    2 u16   version         identity       readers refuse anything but 1
    10    2 u16   flags           identity       bit 0: sealed, the digest is valid
    12    1 u8    reason          observability  SaveReason; never renumber
    13    3 bytes reserved_a      identity       zero
    16    8 u64   start           identity       position of the first token in its sequence
    24    4 u32   n_tokens        identity       1 .. 65,536
    28    4 u32   meta_bytes      identity       at most 65,536
    32   32 bytes key             identity       must equal child_key(parent, tokens)
    64   32 bytes parent          identity       key of the row before, or the root key
    96   32 bytes root            identity       namespace key
   128    8 f64   created_unix_s  observability  wall clock of the writer
   136    8 u64   payload_bytes   identity
   144    8 u64   row_bytes       identity       cross-check of the derived size
   152   32 bytes digest          identity       BLAKE3 of 0..152 and 256..row_bytes, else 0
   184   32 bytes checksum        identity       BLAKE3 of 0..184 and 256..payload
   216   24 bytes reserved_b      identity       zero
   240    1 u8    state           mutable        RowState; only meaningful in the arena
   241    3 bytes reserved_c      mutable        ignored
   244    4 u32   hits            mutable        observability, may be stale
   248    8 f64   last_used       mutable        observability, unix seconds, may be stale

Version rule: any change of meaning raises ``version``; there is no migration, the cache is
disposable. Every byte but the sixteen mutable ones (240..256) is covered: the head by the checksum
(always checked), the payload by the digest (checked on sealed rows; files are always sealed). An
unsealed row is valid only inside the arena, where the publish order (payload, then state) leaves it
absent or whole when its writer is killed. The metadata is msgpack, free-form, for people; but two
keys are read by programs: ``replies``, see ``cache.text_marks``, and ``ends``, see
``cache.finish_keys``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final, NamedTuple, Self, TypeAlias

import msgpack  # it ships no stubs
from blake3 import blake3

from cache.errors import (
    BadField,
    BadMagic,
    ChecksumMismatch,
    KeyMismatch,
    Truncated,
    UnsupportedVersion,
)
from cache.keys import KEY_BYTES, child_key
from cache.tokens import TOKEN_BYTES

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC: Final = b"llamaKVB"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sHHB3sQII32s32s32sdQQ32s32s24sB3sId")
HEADER_BYTES: Final = HEADER.size
DIGEST_AT: Final = 152
CHECKSUM_AT: Final = 184
RESERVED_AT: Final = 216
STATE_AT: Final = 240
HITS_AT: Final = 244
PAYLOAD_ALIGN: Final = 64  # one cache line, so a restore's copies start aligned
MAX_ROW_TOKENS: Final = 1 << 16  # a head must stay small enough to read at rescan
MAX_META_BYTES: Final = 1 << 16
MAX_HEAD_BYTES: Final = HEADER_BYTES + MAX_META_BYTES + MAX_ROW_TOKENS * TOKEN_BYTES + 128
MAX_PAYLOAD_BYTES: Final = 1 << 46  # larger than any machine; keeps sums far from overflow
SEALED: Final = 1
_ZERO_DIGEST: Final = bytes(32)


class RowState(IntEnum):
    """The state of a slab. On disk and in shared memory: never renumber."""

    FREE = 0
    WRITING = 1
    PUBLISHED = 2


class SaveReason(IntEnum):
    """Why a row was written. On disk: never renumber."""

    COLD = 1
    CONTINUED = 2
    FINISH = 3
    EVICT = 4
    SHUTDOWN = 5


def _up(value: int, align: int) -> int:
    return -(-value // align) * align


def _tokens_offset(meta_bytes: int) -> int:
    return _up(HEADER_BYTES + meta_bytes, TOKEN_BYTES)


def _payload_offset(n_tokens: int, meta_bytes: int) -> int:
    return _up(_tokens_offset(meta_bytes) + n_tokens * TOKEN_BYTES, PAYLOAD_ALIGN)


@dataclass(frozen=True, slots=True)
class RowIdentity:
    """What a row is, wherever it lies: carried by all that is about one row.

    Two messages that hold many rows spell these fields out, since a nested value costs twice the
    time to pack; they return it whole (``actors.messages.cache``). Nothing is checked here.
    """

    key: bytes
    """32-byte BLAKE3 digest of ``parent`` and ``tokens``."""
    parent: bytes
    """Key of the row before, 32 bytes; the root where there is none."""
    root: bytes
    """Key of the namespace, 32 bytes."""
    start: int
    """Position of the first token in its sequence."""
    tokens: bytes
    """Token ids, packed as u32 little-endian."""

    @classmethod
    def after(cls, parent: bytes, root: bytes, start: int, tokens: bytes) -> Self:
        """The row that extends ``parent`` by these packed tokens: its key is computed."""
        return cls(child_key(parent, tokens), parent, root, start, tokens)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens) // TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class RowHeader:
    """The header of a row with its tokens; sizes in bytes, times in unix seconds."""

    id: RowIdentity
    payload_bytes: int
    meta_bytes: int = 0
    reason: SaveReason = SaveReason.COLD
    created_unix_s: float = 0.0
    state: RowState = RowState.WRITING
    digest: bytes = _ZERO_DIGEST
    sealed: bool = False
    hits: int = 0
    last_used_unix_s: float = 0.0

    @property
    def key(self) -> bytes:
        return self.id.key

    @property
    def tokens_offset(self) -> int:
        return _tokens_offset(self.meta_bytes)

    @property
    def payload_offset(self) -> int:
        return _payload_offset(self.id.n_tokens, self.meta_bytes)

    @property
    def row_bytes(self) -> int:
        return self.payload_offset + self.payload_bytes


class MappedRow(NamedTuple):
    """A row whose bytes lie in mapped memory; the view is valid until ``close``."""

    header: RowHeader
    payload: memoryview

    def close(self) -> None:
        self.payload.release()


def row_bytes(n_tokens: int, payload_bytes: int, meta: bytes = b"") -> int:
    """Total size of a row, head and payload, before any padding to pages."""
    return _payload_offset(n_tokens, len(meta)) + payload_bytes


def encode_meta(meta: Mapping[str, Any]) -> bytes:
    """Metadata for people (model name and the like) as msgpack; ValueError above 64 KiB."""
    packed: bytes = msgpack.packb(dict(meta), use_bin_type=True)
    if len(packed) > MAX_META_BYTES:
        raise ValueError(f"metadata of {len(packed)} bytes exceeds {MAX_META_BYTES}")
    return packed


def decode_meta(packed: bytes) -> dict[str, Any]:
    """Decode metadata; BadField for anything that is not one msgpack map."""
    if not packed:
        return {}
    try:
        meta = msgpack.unpackb(packed, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as cause:
        raise BadField(f"metadata is not msgpack: {cause}") from cause
    if not isinstance(meta, dict):
        raise BadField("metadata is not a map")
    return meta


def encode_header(header: RowHeader, meta: bytes = b"") -> bytes:
    """The head of a row: header, metadata, tokens and padding, up to the payload.

    The size of the metadata is taken from ``meta``, flags from ``header.sealed``; the checksum is
    computed here. ValueError if the caller's values cannot be stored.
    """
    header = replace(header, meta_bytes=len(meta))
    _check_storable(header)
    row = header.id
    fixed = HEADER.pack(
        MAGIC,
        VERSION,
        SEALED if header.sealed else 0,
        header.reason,
        b"",
        row.start,
        row.n_tokens,
        header.meta_bytes,
        row.key,
        row.parent,
        row.root,
        header.created_unix_s,
        header.payload_bytes,
        header.row_bytes,
        header.digest,
        _ZERO_DIGEST,
        b"",
        header.state,
        b"",
        header.hits,
        header.last_used_unix_s,
    )
    body = bytearray(header.payload_offset - HEADER_BYTES)
    body[: len(meta)] = meta
    at = header.tokens_offset - HEADER_BYTES
    body[at : at + len(row.tokens)] = row.tokens
    checksum = blake3(fixed[:CHECKSUM_AT] + body).digest()
    return fixed[:CHECKSUM_AT] + checksum + fixed[RESERVED_AT:] + body


def _check_storable(header: RowHeader) -> None:
    row = header.id
    n_bytes = len(row.tokens)
    if n_bytes % TOKEN_BYTES or not 1 <= row.n_tokens <= MAX_ROW_TOKENS:
        raise ValueError(f"a row holds 1 .. {MAX_ROW_TOKENS} whole tokens, not {n_bytes} bytes")
    if header.meta_bytes > MAX_META_BYTES:
        raise ValueError(f"metadata of {header.meta_bytes} bytes exceeds {MAX_META_BYTES}")
    if not 0 <= header.payload_bytes <= MAX_PAYLOAD_BYTES or not 0 <= row.start < 1 << 63:
        raise ValueError("payload size or start position is out of range")
    if not math.isfinite(header.created_unix_s) or not 0 <= header.hits < 1 << 32:
        raise ValueError("the creation time must be finite and hits must fit 32 bits")
    if row.key != child_key(row.parent, row.tokens) or len(row.root) != KEY_BYTES:
        raise ValueError("the key must be child_key(parent, tokens) and the root 32 bytes")


def parse_header(buffer: Buffer, total_bytes: int | None = None) -> RowHeader:
    """Parse and check a head: magic, version, fields, checksum, and that the key is its hash.

    ``buffer`` must hold the head; the payload may be missing when ``total_bytes`` gives the size of
    the whole row (default: all of it is in ``buffer``). For any bytes this returns a header or
    raises CorruptRow, nothing else. The payload is not checked: see ``verify``.
    """
    view = memoryview(buffer)
    if len(view) < HEADER_BYTES:
        raise Truncated(f"{len(view)} bytes are shorter than a header")
    fixed = bytes(view[:HEADER_BYTES])
    header = _decode(fixed, view, len(view) if total_bytes is None else total_bytes)
    body = view[HEADER_BYTES : header.payload_offset]
    if blake3(fixed[:CHECKSUM_AT] + body).digest() != fixed[CHECKSUM_AT:RESERVED_AT]:
        raise ChecksumMismatch("the head changed after it was written")
    if child_key(header.id.parent, header.id.tokens) != header.id.key:
        raise KeyMismatch("the key is not the hash of parent key and tokens")
    return header


def _decode(fixed: bytes, view: memoryview, total_bytes: int) -> RowHeader:
    """The fields of a head, and its tokens; the checksum and the key are not checked.

    ``fixed``: the beginning of ``view``.
    """
    if fixed[:8] != MAGIC:
        raise BadMagic("no row starts here")
    (
        _,
        version,
        flags,
        reason,
        reserved_a,
        start,
        n_tokens,
        meta_bytes,
        key,
        parent,
        root,
        created,
        payload_bytes,
        size,
        digest,
        _,
        reserved_b,
        state,
        _,
        hits,
        last_used,
    ) = HEADER.unpack(fixed)
    if version != VERSION:
        raise UnsupportedVersion(f"row format {version}, this build reads {VERSION}")
    if reserved_a.strip(b"\0") or reserved_b.strip(b"\0") or flags & ~SEALED:
        raise BadField("reserved bytes or flags are set")
    if not 1 <= n_tokens <= MAX_ROW_TOKENS or meta_bytes > MAX_META_BYTES:
        raise BadField(f"{n_tokens} tokens, {meta_bytes} metadata bytes")
    if payload_bytes > MAX_PAYLOAD_BYTES or start >= 1 << 63 or not math.isfinite(created):
        raise BadField("payload size, start position or creation time is out of range")
    try:
        why = SaveReason(reason)
    except ValueError as cause:
        raise BadField(f"save reason {reason}") from cause
    payload_offset = _payload_offset(n_tokens, meta_bytes)
    if payload_offset + payload_bytes != size:
        added = payload_offset + payload_bytes
        raise BadField(f"sizes add up to {added}, but the header has {size}")
    if size > total_bytes:
        raise Truncated(f"the row needs {size} bytes")
    if payload_offset > len(view):
        raise Truncated(f"the head needs {payload_offset} bytes, {len(view)} given")
    at = _tokens_offset(meta_bytes)
    tokens = bytes(view[at : at + n_tokens * TOKEN_BYTES])
    return RowHeader(
        id=RowIdentity(key, parent, root, start, tokens),
        payload_bytes=payload_bytes,
        meta_bytes=meta_bytes,
        reason=why,
        created_unix_s=created,
        state=RowState(state) if state <= RowState.PUBLISHED else RowState.FREE,
        digest=digest,
        sealed=bool(flags & SEALED),
        hits=hits,
        last_used_unix_s=last_used if math.isfinite(last_used) else 0.0,
    )


def row_meta(buffer: Buffer, header: RowHeader) -> bytes:
    """A copy of the row's packed metadata."""
    return bytes(memoryview(buffer)[HEADER_BYTES : HEADER_BYTES + header.meta_bytes])


def row_payload(buffer: Buffer, header: RowHeader) -> memoryview:
    """A view (no copy) of the row's KV bytes."""
    return memoryview(buffer)[header.payload_offset : header.row_bytes]


def compute_digest(buffer: Buffer, header: RowHeader) -> bytes:
    """BLAKE3 over bytes 0..152 and 256..row_bytes, whatever the digest field holds."""
    view = memoryview(buffer)
    hasher = blake3(view[:DIGEST_AT])
    hasher.update(view[HEADER_BYTES : header.row_bytes])
    return hasher.digest()


def verify(buffer: Buffer, header: RowHeader) -> None:
    """Check every immutable byte of a sealed row; ChecksumMismatch if one changed."""
    if not header.sealed:
        raise ChecksumMismatch("the row was never sealed, its payload cannot be verified")
    if compute_digest(buffer, header) != header.digest:
        raise ChecksumMismatch("the payload changed after it was sealed")


def seal(head: bytes, payload: Buffer) -> bytes:
    """The same head with flag, digest and checksum set for this payload."""
    header = parse_header(head, total_bytes=MAX_PAYLOAD_BYTES * 2)
    meta = row_meta(head, header)
    head = encode_header(replace(header, sealed=True, digest=_ZERO_DIGEST), meta)
    hasher = blake3(head[:DIGEST_AT] + head[HEADER_BYTES:])
    hasher.update(payload)
    return encode_header(replace(header, sealed=True, digest=hasher.digest()), meta)
