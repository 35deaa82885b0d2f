"""Ends of recent replies by key: what ``parent_key`` stands for before it is stored anywhere.

A reply's tail is stored late, and not at all when the conversation goes on at once; its key is the
caller's from the start. Of the tokens behind it the latest ``LIMIT_BYTES`` are kept here, a model's
own memory; older ones are asked of cache_meta.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from cache import tokens as token_bytes

LIMIT_BYTES: Final = 8 << 20


class RecentTips:
    """Token lists by the key of their last row, within a limit."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._used = 0

    def put(self, key: bytes, ids: Sequence[int]) -> None:
        """Remember; the oldest are forgotten."""
        self._used -= len(self._known.pop(key, b""))
        self._known[key] = packed = token_bytes.pack(ids)
        self._used += len(packed)
        while self._used > self._limit:
            _, oldest = self._known.popitem(last=False)
            self._used -= len(oldest)

    def get(self, key: bytes | None) -> list[int] | None:
        """The tokens, if they are still known."""
        packed = self._known.get(key or b"")
        return None if packed is None else token_bytes.unpack(packed)

    def clear(self) -> None:
        self._known.clear()
        self._used = 0
