"""From a key to its slot in about nine bytes a key: open addressing over arrays of slot numbers.

The keys themselves are not kept here; a callback returns the key of a slot. Python's own ``hash``
is used, whose seed differs in each process, so that tokens cannot be chosen to make keys collide.
The table is divided into many small ones that grow one at a time: adding a key to a map of a
million takes a millisecond at worst, where growing one large table would take a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

_BITS: Final = 9
_SMALLEST: Final = 8


class KeyMap:
    """Maps keys to slots above 0. ``key_at`` gives the key of a slot that was added."""

    def __init__(self, key_at: Callable[[int], bytes], bits: int = _BITS) -> None:
        self._key_at = key_at
        self._bits = bits
        self._which = (1 << bits) - 1
        self._tables = [array("I", bytes(4 * _SMALLEST)) for _ in range(1 << bits)]
        self._counts = array("I", bytes(4 << bits))

    def find(self, key: bytes) -> int:
        """The slot of a key, or 0."""
        hashed = hash(key)
        table = self._tables[hashed & self._which]
        mask = len(table) - 1
        place = hashed >> self._bits & mask
        key_at = self._key_at
        while at := table[place]:
            if key_at(at) == key:
                return at
            place = place + 1 & mask
        return 0

    def add(self, key: bytes, at: int) -> None:
        """Add a key that is not there yet."""
        hashed = hash(key)
        number = hashed & self._which
        table = self._tables[number]
        self._counts[number] += 1
        if self._counts[number] * 3 > len(table) * 2:
            table = self._tables[number] = self._doubled(table)
        _put(table, hashed >> self._bits, at)

    def remove(self, key: bytes) -> None:
        """Remove a key that is there, and move back the entries that it displaced."""
        hashed = hash(key)
        number = hashed & self._which
        table = self._tables[number]
        mask = len(table) - 1
        hole = hashed >> self._bits & mask
        while self._key_at(table[hole]) != key:
            hole = hole + 1 & mask
        place = hole
        while at := table[place := place + 1 & mask]:
            home = hash(self._key_at(at)) >> self._bits & mask
            # An entry may fill the hole unless that would put it before its own home.
            if (place - home & mask) >= (place - hole & mask):
                table[hole] = at
                hole = place
        table[hole] = 0
        self._counts[number] -= 1

    def _doubled(self, table: array[int]) -> array[int]:
        larger = array("I", bytes(2 * table.itemsize * len(table)))
        for at in table:
            if at:
                _put(larger, hash(self._key_at(at)) >> self._bits, at)
        return larger


def _put(table: array[int], hashed: int, at: int) -> None:
    mask = len(table) - 1
    place = hashed & mask
    while table[place]:
        place = place + 1 & mask
    table[place] = at
