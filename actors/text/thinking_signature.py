"""Signatures of what a model thought, so that a client may send it back and the node accepts it."""

from __future__ import annotations

import hashlib
import hmac


def sign(key: bytes, content: bytes) -> bytes:
    """HMAC-SHA256 of a thinking block's exact bytes; empty without a key."""
    return hmac.digest(key, content, hashlib.sha256) if key else b""


def is_signed(key: bytes, content: bytes, signature: bytes) -> bool:
    """Whether this node signed these bytes; compared in constant time."""
    return bool(key) and hmac.compare_digest(sign(key, content), signature)
