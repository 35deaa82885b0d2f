"""Files that other programs on this machine have fetched already, found by their SHA-256.

Ollama names its blobs by it, and the cache of ``huggingface_hub``, which llama.cpp uses too, those
of a repository. Nothing there is changed: a file is linked, or copied where that is not possible.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from runtime.catalog.fetching import is_there
from runtime.catalog.store import StoredFile, size_of

_SHA256: Final = "sha256:"


def copy_of(
    file: StoredFile, repo: str, ollama_folders: Sequence[Path], hub_caches: Sequence[Path]
) -> Path | None:
    """A file of the same digest by its name, and of the same size; its bytes are not read."""
    digest = file.digest.removeprefix(_SHA256)
    if digest == file.digest:
        return None
    repo_folder = f"models--{repo.replace('/', '--')}"
    candidates = [
        *(folder / "blobs" / f"sha256-{digest}" for folder in ollama_folders),
        *(folder / repo_folder / "blobs" / digest for folder in hub_caches),
    ]
    return next((one for one in candidates if size_of(one) == file.n_bytes), None)


def adopted(file: StoredFile, copy: Path, final: Path) -> bool:
    """Make ``final`` the file that is at ``copy``, if it is that file; whether that was done."""
    fresh = final.with_name(f".{final.name}.{os.getpid()}.new")
    try:
        if not is_there(file, copy):
            return False
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(copy, fresh)
        except OSError:  # another file system, or another user's file
            shutil.copyfile(copy, fresh)
        fresh.replace(final)
    except OSError:
        fresh.unlink(missing_ok=True)
        return False
    return True
