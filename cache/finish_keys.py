"""Finish keys: keys of the ends of sequences that callers hold although no row has them.

The end of a reply is a tail, and its key is returned to the caller at once. The tail itself is not
written when the next turn extends its sequence first; not granted when a longer row has its tokens
already or there is no room; removed when such a row is published; and evicted like any other. The
key still stands for the same tokens, which lie at the beginning of that longer row. So the index
keeps the ``MAX_KEYS`` tails that were used last, about 700 bytes each.

They are lost when the process restarts. So a row stores where the tails that it contains end
(``pack_ends``; in its metadata under ``ENDS_KEY``): ``ENDS_BYTES`` of u16 little-endian numbers of
tokens, unused ones 0. Every row reserves that room, because which tails it contains is decided
only after its size has been agreed.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from typing import Final

from cache.errors import CorruptRow
from cache.keys import child_key
from cache.rows import RowIdentity, decode_meta, encode_meta
from cache.tokens import TIP, cut, pack

MAX_KEYS: Final = 8192
ENDS_KEY: Final = "ends"
MAX_ENDS: Final = 8
_ENDS: Final = struct.Struct(f"<{MAX_ENDS}H")
ENDS_BYTES: Final = _ENDS.size
NO_ENDS: Final = bytes(ENDS_BYTES)
_WHOLE: Final = pack([TIP])
_NONE: Final = encode_meta({ENDS_KEY: NO_ENDS})[1:]  # as it stands in a map


class FinishKeys:
    """Tails by key, those used last. Private to the index.

    Not a ``cache.lru.LruMap``: a scan of files adds tails with the times of their last use, which
    come in any order.
    """

    def __init__(self, limit: int = MAX_KEYS) -> None:
        self._limit = limit
        self._excess = limit // 16  # so many more are kept before all are sorted by their use
        self._known: dict[bytes, tuple[float, RowIdentity]] = {}
        self._of_parent: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, used: float, tail: RowIdentity) -> None:
        """Keep a tail that was used at this time, unless it is known to have been used later.

        The state of a whole sequence is left out: no caller has its key.
        """
        if tail.tokens.startswith(_WHOLE):
            return
        known = self._known.get(tail.key)
        if known is None:
            self._of_parent[tail.parent] += 1
        elif known[0] >= used:
            return
        self._known[tail.key] = used, tail
        if len(self._known) > self._limit + self._excess:
            self._drop_oldest(len(self._known) - self._limit)

    def _drop_oldest(self, n_keys: int) -> None:
        by_use = sorted(self._known, key=lambda key: self._known[key][0])
        for key in by_use[:n_keys]:
            _, tail = self._known.pop(key)
            self._of_parent[tail.parent] -= 1
            if not self._of_parent[tail.parent]:
                del self._of_parent[tail.parent]

    def get(self, key: bytes) -> RowIdentity | None:
        """The tail with this key, if it is known."""
        known = self._known.get(key)
        return None if known is None else known[1]

    def inside(self, row: RowIdentity) -> list[int]:
        """Lengths in tokens of the known tails with which this row begins, ascending."""
        if row.parent not in self._of_parent:
            return []
        lengths = range(1, row.n_tokens)
        return [n for n in lengths if child_key(row.parent, cut(row.tokens, 0, n)) in self._known]


def tails_in(row: RowIdentity, ends: Iterable[int]) -> Iterable[RowIdentity]:
    """The tails that end after so many tokens of a row; impossible numbers are left out."""
    for n_tokens in ends:
        if 0 < n_tokens < row.n_tokens:
            tokens = cut(row.tokens, 0, n_tokens)
            yield RowIdentity.after(row.parent, row.root, row.start, tokens)


def pack_ends(ends: Iterable[int]) -> bytes:
    """For the metadata of a row: the last ``MAX_ENDS`` of these, which ascend."""
    last = list(ends)[-MAX_ENDS:]
    return _ENDS.pack(*last, *[0] * (MAX_ENDS - len(last)))


def unpack_ends(packed: bytes) -> tuple[int, ...]:
    """The numbers that ``pack_ends`` packed; none if these bytes are anything else."""
    return () if len(packed) != ENDS_BYTES else tuple(n for n in _ENDS.unpack(packed) if n)


def ends_in(meta: bytes) -> bytes:
    """The packed ends in a row's metadata; empty if there are none, or they are malformed."""
    if _NONE in meta or ENDS_KEY.encode() not in meta:  # of most rows: nothing to decode
        return b""
    try:
        packed = decode_meta(meta).get(ENDS_KEY)
    except CorruptRow:
        return b""
    return packed if isinstance(packed, bytes) and unpack_ends(packed) else b""
