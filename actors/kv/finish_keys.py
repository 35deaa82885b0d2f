"""Finish keys: keys of the ends of recent replies, which callers send back as ``parent_key``.

The last, partial block of a reply is written late, and not at all when the next turn extends it at
once; its key is returned to the caller in any case. The tokens of the latest ones are kept here, in
the model's process, within ``LIMIT_BYTES``; older ones are looked up in cache_meta.
"""

from __future__ import annotations

from typing import Final

from cache.lru import LruMap
from cache.tokens import TokenIds

LIMIT_BYTES: Final = 8 << 20


class FinishKeys:
    """Tokens by the key of their last row, within a limit."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._packed: LruMap[bytes, bytes] = LruMap(limit_bytes, len)

    def put(self, key: bytes, packed: bytes) -> None:
        """Keep packed tokens; those of the keys used longest ago are dropped."""
        self._packed.put(key, packed)

    def get(self, key: bytes | None) -> TokenIds | None:
        """The tokens, or None if they are not kept any more."""
        packed = self._packed.get(key or b"")
        return None if packed is None else TokenIds.unpacked(packed)

    def clear(self) -> None:
        """Drop every key."""
        self._packed.clear()
