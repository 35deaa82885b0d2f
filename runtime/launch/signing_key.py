"""The key with which a node signs the thinking of its models: random, and kept beside the rows.

Without a disk tier it exists as long as the launcher; then signatures from before a restart of the
node are refused after it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

KEY_FILE: Final = "signing-key"
KEY_BYTES: Final = 32


def signing_key(disk_root: Path | None) -> bytes:
    """The key in this directory, made at the first start; a new one where none can be kept."""
    fresh = os.urandom(KEY_BYTES)
    if disk_root is None:
        return fresh
    path = disk_root / KEY_FILE
    with contextlib.suppress(OSError):
        known = path.read_bytes()
        if len(known) == KEY_BYTES:
            return known
    with contextlib.suppress(OSError):
        draft = path.with_suffix(".new")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, fresh)
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.replace(path)
    return fresh
