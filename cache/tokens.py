"""Token lists as bytes: unsigned 32-bit little-endian ids, one after the other.

Bytes are hashable, comparable with memcmp, sliceable without a Python loop, and are exactly what
the key chain hashes and what a row stores, so no second encoding exists that could disagree.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Self, overload

TOKEN_BYTES: Final = 4
TIP: Final = 0xFFFF_FFFF
"""No token of any model: the first of a row whose payload is the state of a whole sequence."""
_CHUNK: Final = 4096  # bytes; large enough that memcmp dominates, small enough that an XOR is cheap


class TokenIds(Sequence[int]):
    """Token ids that do not change: as numbers, and packed, which is done once.

    A slice is a copy of its part of both.
    """

    __slots__ = ("_ids", "_packed")

    def __init__(self, ids: Iterable[int] = (), *, _packed: bytes | None = None) -> None:
        """Raises ValueError if an id does not fit 32 unsigned bits."""
        self._ids = _column(ids)
        self._packed = _packed

    @classmethod
    def unpacked(cls, packed: bytes) -> Self:
        """Of what ``pack`` made; ValueError if the length is no multiple of four."""
        return cls(_unpacked(packed), _packed=packed)

    @property
    def packed(self) -> bytes:
        """The ids as bytes."""
        if self._packed is None:
            self._packed = _bytes_of(self._ids)
        return self._packed

    def column(self) -> array[int]:
        """A copy that may grow: unsigned numbers of 32 bits."""
        return self._ids[:]

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> Self: ...

    def __getitem__(self, at: int | slice) -> int | Self:
        return type(self)(self._ids[at]) if isinstance(at, slice) else self._ids[at]

    def __add__(self, more: TokenIds) -> TokenIds:
        return TokenIds(self._ids + more._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenIds) and self._ids == other._ids

    def __hash__(self) -> int:
        return hash(self.packed)

    def __repr__(self) -> str:
        return f"TokenIds({self._ids.tolist()})"


def pack(ids: Iterable[int]) -> bytes:
    """Encode token ids; ValueError if one does not fit 32 unsigned bits."""
    return _bytes_of(_column(ids))


def _column(ids: Iterable[int]) -> array[int]:
    try:
        return array("I", ids)
    except (OverflowError, TypeError) as cause:
        raise ValueError(f"token ids are integers in 0 .. 2**32-1: {cause}") from cause


def _bytes_of(ids: array[int]) -> bytes:
    if sys.byteorder == "big":
        ids = ids[:]
        ids.byteswap()
    return ids.tobytes()


def unpack(tokens: bytes) -> list[int]:
    """Decode the result of ``pack``; ValueError if the length is no multiple of four."""
    return _unpacked(tokens).tolist()


def _unpacked(tokens: bytes) -> array[int]:
    if len(tokens) % TOKEN_BYTES:
        raise ValueError(f"{len(tokens)} bytes are not whole 4-byte token ids")
    ids = array("I")
    ids.frombytes(tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def count(tokens: bytes) -> int:
    """How many tokens these bytes hold."""
    return len(tokens) // TOKEN_BYTES


def cut(tokens: bytes, start: int, stop: int | None = None) -> bytes:
    """Tokens ``start`` up to ``stop``, both counted in tokens."""
    return tokens[start * TOKEN_BYTES : None if stop is None else stop * TOKEN_BYTES]


def common_prefix(a: bytes, b: bytes) -> int:
    """Length, in tokens, of the longest common prefix."""
    shorter = min(len(a), len(b))
    at = 0
    while at < shorter:
        left = a[at : min(at + _CHUNK, shorter)]
        right = b[at : min(at + _CHUNK, shorter)]
        if left != right:
            # The lowest set bit of the XOR is the first difference: one big-integer operation.
            diff = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
            first_bit = (diff & -diff).bit_length() - 1
            return at // TOKEN_BYTES + first_bit // (8 * TOKEN_BYTES)
        at += len(left)
    return shorter // TOKEN_BYTES
