"""Bytes that cannot be guessed, and their comparison, as ``secrets`` and ``hmac`` have them.

Those two load OpenSSL, which every command would wait for: each of them talks to a node.
"""

from __future__ import annotations

import os

try:
    from _operator import _compare_digest as same_bytes
except ImportError:
    from hmac import compare_digest as same_bytes  # type: ignore[no-redef]

__all__ = ["random_bytes", "same_bytes"]


def random_bytes(n_bytes: int) -> bytes:
    """From the kernel."""
    return os.urandom(n_bytes)
