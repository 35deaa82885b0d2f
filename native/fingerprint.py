"""The identity of a model file: BLAKE3 over its content, never over its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from native.errors import ModelNotFound


def fingerprint(files: Sequence[Path]) -> bytes:
    """Return 32 bytes: the digest of the file, or of the digests of all splits in order.

    One file gives what ``b3sum`` prints for it. Reads everything once, on all cores.
    """
    digests = [_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else blake3(b"".join(digests)).digest()


def _digest(path: Path) -> bytes:
    try:
        return blake3(max_threads=blake3.AUTO).update_mmap(path).digest()
    except OSError as error:
        raise ModelNotFound(path, f"cannot be read: {error.strerror}") from error
