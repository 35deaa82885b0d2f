"""Blocks of a match in few bytes, for messages: 26 bytes a block, so 2,000 fit into 64 KiB.

Keys are not sent where the receiver can derive them: the key of a whole block follows from the
root and the prompt's own tokens. Only a block that is cut (its other tokens are not the prompt's)
carries its key.

format, little-endian: u16 number of tier names, each u8 length + UTF-8; u32 start of the first
block; then per block u8 tier, u8 flags (bit 0: location given, 1: key follows, 2: a tip), u32
n_used, u32 n_tokens, u64 location, u64 row_bytes, and 32 bytes of key if flagged.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from cache.answers import BlockRef
from cache.errors import BadField, CorruptRow, Truncated
from cache.keys import KEY_BYTES, child_key
from cache.tokens import cut

_HEAD: Final = struct.Struct("<H")
_START: Final = struct.Struct("<I")
_BLOCK: Final = struct.Struct("<BBIIQQ")
_LOCATED: Final = 1
_KEYED: Final = 2
_TIP: Final = 4


def pack_blocks(blocks: Sequence[BlockRef], *, with_keys: bool = False) -> bytes:
    """Encode consecutive blocks; ``with_keys`` for a receiver that lacks the tokens."""
    tiers = sorted({block.tier for block in blocks})
    out = bytearray(_HEAD.pack(len(tiers)))
    for tier in tiers:
        name = tier.encode()
        out += bytes([len(name)]) + name
    out += _START.pack(blocks[0].start if blocks else 0)
    number = {tier: at for at, tier in enumerate(tiers)}
    for block in blocks:
        is_keyed = with_keys or block.is_tip or block.n_used != block.n_tokens
        flags = (_LOCATED if block.location is not None else 0) | (_KEYED if is_keyed else 0)
        flags |= _TIP if block.is_tip else 0
        out += _BLOCK.pack(
            number[block.tier],
            flags,
            block.n_used,
            block.n_tokens,
            block.location or 0,
            block.row_bytes,
        )
        if is_keyed:
            out += block.key
    return bytes(out)


def unpack_blocks(packed: bytes, root: bytes = b"", tokens: bytes = b"") -> list[BlockRef]:
    """Decode; ``root`` and the prompt's packed ``tokens`` rebuild the keys that were left out.

    Raises CorruptRow (Truncated, BadField) for anything ``pack_blocks`` does not produce.
    """
    try:
        return _unpack(packed, root, tokens)
    except (struct.error, IndexError) as cause:
        raise Truncated("the list of blocks ends early") from cause
    except UnicodeDecodeError as cause:
        raise BadField("a tier name is not UTF-8") from cause


def _unpack(packed: bytes, root: bytes, tokens: bytes) -> list[BlockRef]:
    (n_tiers,) = _HEAD.unpack_from(packed, 0)
    at = _HEAD.size
    tiers: list[str] = []
    for _ in range(n_tiers):
        end = at + 1 + packed[at]
        tiers.append(packed[at + 1 : end].decode())
        at = end
    (start,) = _START.unpack_from(packed, at)
    at += _START.size
    blocks: list[BlockRef] = []
    parent = root
    while at < len(packed):
        tier, flags, n_used, n_tokens, location, row_bytes = _BLOCK.unpack_from(packed, at)
        at += _BLOCK.size
        if flags & _KEYED:
            key = packed[at : at + KEY_BYTES]
            at += KEY_BYTES
        else:
            own = cut(tokens, start, start + n_used)
            if len(parent) != KEY_BYTES or len(own) != 4 * n_used:
                raise CorruptRow("keys were left out and the tokens to derive them are missing")
            key = child_key(parent, own)
        if len(key) != KEY_BYTES:
            raise Truncated("a key ends early")
        place = location if flags & _LOCATED else None
        is_tip = bool(flags & _TIP)
        blocks.append(BlockRef(key, tiers[tier], place, row_bytes, start, n_used, n_tokens, is_tip))
        parent = key
        start += n_used
    return blocks
