"""Ends of recent replies by key: what ``parent_key`` stands for before it is stored anywhere.

Writing a reply's tail is put off, and it is not written at all when the conversation extends it at
once; its key is the caller's from the start. Of the tokens behind it the latest ``LIMIT_BYTES`` are
kept here, in a model's own memory; cache_meta is asked for older ones.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cache.tokens import TokenIds

LIMIT_BYTES: Final = 8 << 20


class FinishKeys:
    """Tokens by the key of their last row, within a limit."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._used = 0

    def put(self, key: bytes, packed: bytes) -> None:
        """Remember packed tokens; the oldest are forgotten."""
        self._used -= len(self._known.pop(key, b""))
        self._known[key] = packed
        self._used += len(packed)
        while self._used > self._limit:
            _, oldest = self._known.popitem(last=False)
            self._used -= len(oldest)

    def get(self, key: bytes | None) -> TokenIds | None:
        """The tokens, if they are still known."""
        packed = self._known.get(key or b"")
        return None if packed is None else TokenIds.unpacked(packed)

    def clear(self) -> None:
        self._known.clear()
        self._used = 0
