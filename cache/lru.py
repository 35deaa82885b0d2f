"""A mapping that keeps the entries put or read last, within a limit on their total size.

Written here and not taken from a library because its callers need three things together: a value
larger than the limit is dropped and raises nothing, sizes are of the callers' own, and a second
limit may bound the number of entries.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, ValuesView
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def _one(_: Any) -> int:
    return 1


class LruMap(Generic[K, V]):
    """Entries whose sizes add up to at most ``limit``; the least recently used go first.

    ``size_of`` gives the size of a value in the unit of ``limit``; without it each counts 1, so
    that ``limit`` is a number of entries. ``max_entries`` is a second limit, on their number.
    Putting an entry and ``get`` count as use; ``in`` and ``values`` do not.
    """

    def __init__(
        self, limit: int, size_of: Callable[[V], int] = _one, max_entries: int | None = None
    ) -> None:
        self._limit = limit
        self._size_of = size_of
        self._max_entries = max_entries
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value of a key, which is the most recently used one then; None: it is not kept."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Add or replace an entry and drop the least recently used ones beyond the limits."""
        if key in self._entries:
            self._used -= self._size_of(self._entries.pop(key))
        self._entries[key] = value
        self._used += self._size_of(value)
        while self._used > self._limit or self._has_too_many():
            _, oldest = self._entries.popitem(last=False)
            self._used -= self._size_of(oldest)

    def values(self) -> ValuesView[V]:
        """All values, the least recently used first."""
        return self._entries.values()

    def clear(self) -> None:
        """Drop every entry."""
        self._entries.clear()
        self._used = 0

    def _has_too_many(self) -> bool:
        return self._max_entries is not None and len(self._entries) > self._max_entries
