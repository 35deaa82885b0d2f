"""Marks of replies: which stored tokens a text stands for that a later prompt repeats.

A mark maps the digest of a text to the tokens of a chain of full blocks and some more. It is stored
in the metadata of the row that holds the reply's end (key ``replies``), where a scan finds it, and
in a table here, of one process, which keeps the latest ``MAX_MARKS``. A mark may outlive its rows;
then it resolves to nothing, which is a miss like any other.

In metadata, little-endian, one after another:
16 bytes digest, u32 text bytes, u32 of them that tokens stand for, u32 position of the end in its
sequence, u16 count and as many u32: tokens after that position, which are in no row.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from cache.errors import CorruptRow
from cache.lru import LruMap
from cache.rows import RowIdentity, decode_meta
from cache.tokens import TOKEN_BYTES, cut

META_KEY: Final = "replies"
DIGEST_BYTES: Final = 16
MAX_MARKS: Final = 8192
"""About 500 bytes each."""
MAX_PER_ROW: Final = 3
MAX_EXTRA: Final = 2
"""Tokens of a reply that are in no row: the last one is sampled and not decoded."""
_HEAD: Final = struct.Struct("<16sIIIH")
MAX_PACKED: Final = MAX_PER_ROW * (_HEAD.size + MAX_EXTRA * TOKEN_BYTES)
CANDIDATE: Final = struct.Struct("<I16s")


class RowMark(NamedTuple):
    """A reply that ends inside a row."""

    digest: bytes
    n_bytes: int
    n_known: int
    end: int
    """Position in the sequence."""
    extra: bytes = b""
    """Packed tokens."""


class TextMark(NamedTuple):
    """The same as the answer to a lookup: full blocks up to ``start``, then ``tail``."""

    digest: bytes
    n_bytes: int
    n_known: int
    parent: bytes
    """Key of the last full block, or the root."""
    start: int
    tail: bytes
    """Packed tokens."""


def pack_marks(marks: list[RowMark]) -> bytes:
    """For the metadata of one row; the last ``MAX_PER_ROW`` of them."""
    return b"".join(
        _HEAD.pack(*mark[:4], len(mark.extra) // TOKEN_BYTES) + mark.extra
        for mark in marks[-MAX_PER_ROW:]
        if len(mark.extra) <= MAX_EXTRA * TOKEN_BYTES
    )


def unpack_marks(packed: bytes) -> Iterator[RowMark]:
    """The marks that ``pack_marks`` packed, up to the first malformed one."""
    at = 0
    while at + _HEAD.size <= len(packed):
        digest, n_bytes, n_known, end, n_extra = _HEAD.unpack_from(packed, at)
        at += _HEAD.size
        extra = packed[at : at + n_extra * TOKEN_BYTES]
        at += len(extra)
        if n_known > n_bytes or n_extra > MAX_EXTRA or len(extra) != n_extra * TOKEN_BYTES:
            return
        yield RowMark(digest, n_bytes, n_known, end, extra)


def marks_in(meta: bytes) -> bytes:
    """The packed marks in a row's metadata; empty if the metadata is malformed."""
    if META_KEY.encode() not in meta:
        return b""
    try:
        packed = decode_meta(meta).get(META_KEY)
    except CorruptRow:
        return b""
    return packed if isinstance(packed, bytes) and len(packed) <= MAX_PACKED else b""


class TextMarks:
    """Marks by digest, the latest ones."""

    def __init__(self, limit: int = MAX_MARKS) -> None:
        self._known: LruMap[bytes, TextMark] = LruMap(limit)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, mark: TextMark) -> None:
        """Keep a mark; the one used longest ago is dropped."""
        self._known.put(mark.digest, mark)

    def adopt(self, row: RowIdentity, packed: bytes) -> None:
        """Add the marks of a row that was found by a scan; known ones are newer and stay."""
        for mark in unpack_marks(packed):
            inside = mark.end - row.start
            if mark.digest not in self._known and 0 < inside <= row.n_tokens:
                tail = cut(row.tokens, 0, inside) + mark.extra
                self.add(TextMark(*mark[:3], row.parent, row.start, tail))

    def find(self, candidates: bytes) -> Iterator[TextMark]:
        """The marks of the texts among these candidates, the longest first.

        ``candidates``: u32 length and digest each, ascending by length.
        """
        whole = candidates[: len(candidates) // CANDIDATE.size * CANDIDATE.size]
        for n_bytes, digest in reversed(list(CANDIDATE.iter_unpack(whole))):
            mark = self._known.get(digest)
            if mark is not None and mark.n_bytes == n_bytes:
                yield mark
