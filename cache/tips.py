"""Ends of sequences by key: keys that callers hold although no row has them, or none any more.

The end of a reply is a tail, and its key is the caller's from the start. The tail itself is not
written when the sequence goes on at once, not granted when a longer row has its tokens already or
there is no room, removed when such a row is published, and evicted like any other. The key still
stands for the same tokens: they lie at the beginning of that longer row. Remembered are the
``MAX_TIPS`` that were used last, about 700 bytes each.

A restart of the process loses them. So a row stores where the tails that it contains end
(``pack_ends``; in its metadata under ``ENDS_KEY``): ``ENDS_BYTES`` of u16 little-endian numbers of
tokens, unused ones 0. The room is taken in every row, since which tails there are is known only
when the row's size has been agreed.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Final

from cache.answers import RowRequest
from cache.errors import CorruptRow
from cache.keys import child_key
from cache.rows import decode_meta, encode_meta
from cache.tokens import TIP, count, cut, pack

MAX_TIPS: Final = 8192
ENDS_KEY: Final = "ends"
MAX_ENDS: Final = 8
_ENDS: Final = struct.Struct(f"<{MAX_ENDS}H")
ENDS_BYTES: Final = _ENDS.size
NO_ENDS: Final = bytes(ENDS_BYTES)
_WHOLE: Final = pack([TIP])
_NONE: Final = encode_meta({ENDS_KEY: NO_ENDS})[1:]  # as it stands in a map


class Tips:
    """Tails by key, those used last. Private to the index."""

    def __init__(self, limit: int = MAX_TIPS) -> None:
        self._limit = limit
        self._known: dict[bytes, tuple[float, RowRequest]] = {}
        self._oldest: list[tuple[float, int, bytes]] = []  # a heap; entries may be outdated
        self._number = itertools.count()
        self._of_parent: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, used: float, tail: RowRequest) -> None:
        """Remember a tail that was used at this time; the one used longest ago is forgotten.

        Not the state of a whole sequence, whose key no caller has.
        """
        if tail.tokens.startswith(_WHOLE):
            return
        known = self._known.get(tail.key)
        if known is None:
            self._of_parent[tail.parent] += 1
        elif known[0] >= used:
            return
        self._known[tail.key] = used, tail
        heapq.heappush(self._oldest, (used, next(self._number), tail.key))
        while len(self._known) > self._limit or len(self._oldest) > 2 * self._limit:
            at, _, key = heapq.heappop(self._oldest)
            if key in self._known and self._known[key][0] == at:
                if len(self._known) > self._limit:
                    self._forget(key)
                else:  # only outdated entries were too many
                    heapq.heappush(self._oldest, (at, next(self._number), key))
                    self._oldest = [
                        one for one in self._oldest if self._known.get(one[2], (None,))[0] == one[0]
                    ]
                    heapq.heapify(self._oldest)

    def _forget(self, key: bytes) -> None:
        _, tail = self._known.pop(key)
        self._of_parent[tail.parent] -= 1
        if not self._of_parent[tail.parent]:
            del self._of_parent[tail.parent]

    def get(self, key: bytes) -> RowRequest | None:
        """The tail with this key, if it is known."""
        known = self._known.get(key)
        return None if known is None else known[1]

    def inside(self, row: RowRequest) -> list[int]:
        """How many tokens those known tails have with which this row begins, ascending."""
        if row.parent not in self._of_parent:
            return []
        lengths = range(1, count(row.tokens))
        return [n for n in lengths if child_key(row.parent, cut(row.tokens, 0, n)) in self._known]


def tails_in(row: RowRequest, ends: Iterable[int]) -> Iterable[RowRequest]:
    """The tails that ended after so many tokens of a row; numbers that cannot be are left out."""
    for n_tokens in ends:
        if 0 < n_tokens < count(row.tokens):
            tokens = cut(row.tokens, 0, n_tokens)
            key = child_key(row.parent, tokens)
            yield RowRequest(key, row.parent, row.root, row.start, tokens, row.row_bytes)


def pack_ends(ends: Iterable[int]) -> bytes:
    """For the metadata of a row: the last ``MAX_ENDS`` of these, which ascend."""
    last = list(ends)[-MAX_ENDS:]
    return _ENDS.pack(*last, *[0] * (MAX_ENDS - len(last)))


def unpack_ends(packed: bytes) -> tuple[int, ...]:
    """What ``pack_ends`` packed; nothing if it is something else."""
    return () if len(packed) != ENDS_BYTES else tuple(n for n in _ENDS.unpack(packed) if n)


def ends_in(meta: bytes) -> bytes:
    """The packed ends in a row's metadata; empty if there are none, or it makes no sense."""
    if _NONE in meta or ENDS_KEY.encode() not in meta:  # of most rows: nothing to decode
        return b""
    try:
        packed = decode_meta(meta).get(ENDS_KEY)
    except CorruptRow:
        return b""
    return packed if isinstance(packed, bytes) and unpack_ends(packed) else b""
