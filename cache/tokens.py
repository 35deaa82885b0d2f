"""Token lists as bytes: unsigned 32-bit little-endian ids, one after the other.

Bytes are hashable, comparable with memcmp, sliceable without a Python loop, and are exactly what
the key chain hashes and what a row stores, so no second encoding exists that could disagree.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Final

TOKEN_BYTES: Final = 4
TIP: Final = 0xFFFF_FFFF
"""No token of any model: the first of a row whose payload is the state of a whole sequence."""
_CHUNK: Final = 4096  # bytes; large enough that memcmp dominates, small enough that an XOR is cheap


def pack(ids: Iterable[int]) -> bytes:
    """Encode token ids; ValueError if one does not fit 32 unsigned bits."""
    try:
        packed = array("I", ids)
    except (OverflowError, TypeError) as cause:
        raise ValueError(f"token ids are integers in 0 .. 2**32-1: {cause}") from cause
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(tokens: bytes) -> list[int]:
    """Decode the result of ``pack``; ValueError if the length is no multiple of four."""
    if len(tokens) % TOKEN_BYTES:
        raise ValueError(f"{len(tokens)} bytes are not whole 4-byte token ids")
    packed = array("I")
    packed.frombytes(tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


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
