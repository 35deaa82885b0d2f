"""Keys are exact: a BLAKE3 chain over the namespace and every token up to the end of a block.

``k0 = namespace_key(parts)``; ``ki = BLAKE3(k(i-1) || tokens of block i)``. By induction a key
covers the namespace and the full token list, and all the prefix keys of a prompt cost one pass.

The parts of a namespace are chosen by the caller: everything that changes KV bytes, and nothing
that does not. Its hash runs in BLAKE3's derive-key mode, the chain in plain hash mode, so
a namespace key can never equal a chain key by construction of the input.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from blake3 import blake3

from cache.tokens import TOKEN_BYTES

KEY_BYTES: Final = 32
BLOCK_TOKENS: Final = 64  # per-row overhead <= 0.04 % at 2 KB/token, and 64 tokens bound any tail

_NAMESPACE_CONTEXT: Final = "llama-actors 2026 cache namespace v1"
_KINDS: Final = {str: b"s", bytes: b"b", int: b"i"}


def namespace_key(parts: Iterable[tuple[str, str | bytes | int]]) -> bytes:
    """The root key (32 bytes) of everything stored under these named parts.

    Independent of order; each name, type and value is length-prefixed, so no two different sets
    of parts encode alike (``1``, ``"1"`` and ``b"1"`` differ). A repeated name is a ValueError.
    """
    hasher = blake3(derive_key_context=_NAMESPACE_CONTEXT)
    seen: set[str] = set()
    for name, value in sorted(parts, key=lambda part: part[0]):
        if name in seen:
            raise ValueError(f"namespace part {name!r} is given twice")
        seen.add(name)
        kind = _KINDS.get(type(value))
        if kind is None:
            raise TypeError(f"namespace part {name!r} must be str, bytes or int, not {value!r}")
        label = name.encode()
        body = value if isinstance(value, bytes) else str(value).encode()
        hasher.update(len(label).to_bytes(8, "little") + label + kind)
        hasher.update(len(body).to_bytes(8, "little") + body)
    return hasher.digest()


def child_key(parent: bytes, tokens: bytes) -> bytes:
    """The key (32 bytes) of the row that extends ``parent`` by ``tokens`` (packed)."""
    return blake3(parent + tokens).digest()


def split(tokens: bytes, block_tokens: int = BLOCK_TOKENS) -> tuple[list[bytes], bytes]:
    """Cut packed tokens into full blocks and the shorter (maybe empty) tail."""
    step = block_tokens * TOKEN_BYTES
    full = len(tokens) // step * step
    return [tokens[at : at + step] for at in range(0, full, step)], tokens[full:]


def chain_keys(root: bytes, tokens: bytes, block_tokens: int = BLOCK_TOKENS) -> list[bytes]:
    """The keys of all full blocks of ``tokens``, in order; the tail has none here."""
    keys: list[bytes] = []
    parent = root
    for block in split(tokens, block_tokens)[0]:
        parent = child_key(parent, block)
        keys.append(parent)
    return keys
