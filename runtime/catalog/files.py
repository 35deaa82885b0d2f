"""Model files in a folder: one GGUF file, or the numbered parts of one, is one model.

A folder holds files, and folders of one model each, as llama-server's ``--models-dir`` has them.
Reads names and sizes, no contents.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from supervision.frozen import frozen

SUFFIX: Final = ".gguf"
MAX_DEPTH: Final = 3
"""Folders below the one that is named, as in ``org/repo/file``."""
PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
"""The stem of a part's name, as llama.cpp's ``gguf-split`` writes it."""
_OTHER: Final = re.compile(r"(^|[-_.])(mmproj|imatrix|lora|adapter|control-vector)([-_.]|$)", re.I)
"""In names of files that go with a model and are none."""


@frozen
class ModelFile:
    """A model that can be loaded from a folder."""

    name: str
    """What it is called there: the file's name without its ending and its part."""
    path: Path
    """Of the file to load: of the first part, where there are several."""
    n_bytes: int
    """Of all parts."""
    mtime: float
    """Unix time of the latest change of a part."""
    missing: tuple[str, ...] = ()
    """Names of parts that are not there; it cannot be loaded without them."""

    @property
    def is_whole(self) -> bool:
        return not self.missing


def found_in(folder: Path) -> list[ModelFile]:
    """The models in a folder, by their names; those hidden by a dot are left out.

    A second model of the same name has the folder it lies in before it. What cannot be read is left
    out. Raises OSError where the folder itself cannot be.
    """
    os.scandir(folder).close()
    stems: dict[tuple[Path, str, int], list[Path]] = {}
    for path in _files(folder, MAX_DEPTH, set()):
        part = PART.fullmatch(path.stem)
        name, count = (path.stem, 0) if part is None else (part["stem"], int(part["count"]))
        if not _OTHER.search(name):
            stems.setdefault((path.parent, name, count), []).append(path)
    models: dict[str, ModelFile] = {}
    for (parent, name, count), paths in sorted(stems.items()):
        found = _model(name, count, paths)
        if found is not None:
            unique = f"{parent.name}/{name}" if name in models else name
            models[unique] = replace(found, name=unique)
    return [models[name] for name in sorted(models)]


def _model(name: str, count: int, paths: list[Path]) -> ModelFile | None:
    names = {one.name for one in paths}
    wanted = [f"{name}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]
    try:
        stats = [one.stat() for one in paths]
    except OSError:  # removed, or a link to nothing
        return None
    return ModelFile(
        name,
        paths[0].parent / wanted[0] if count else paths[0],
        sum(one.st_size for one in stats),
        max(one.st_mtime for one in stats),
        tuple(one for one in wanted if one not in names),
    )


def _files(folder: Path, depth: int, seen: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        found = folder.stat()
        if (found.st_dev, found.st_ino) in seen:  # a link leads back to it
            return
        seen.add((found.st_dev, found.st_ino))
        entries = sorted(os.scandir(folder), key=lambda one: one.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=True):
            if depth:
                yield from _files(Path(entry.path), depth - 1, seen)
        elif entry.name.endswith(SUFFIX):
            yield Path(entry.path)
