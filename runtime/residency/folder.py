"""The models of a folder that is watched: files that are there, whole and no longer written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from native.errors import NativeError
from native.gguf_header import all_splits, check_gguf
from runtime.catalog.files import ModelFile, found_in

SETTLED_S: Final = 2.0
"""A file that was changed less long ago is offered once it is the same at two looks."""
MAX_NAME: Final = 64
_AWKWARD: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that can be loaded."""

    model: str
    path: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was at the last look."""

    n_bytes: int
    mtime: float
    is_valid: bool | None = None
    """None: not examined yet."""


class Folder:
    """Looks at one folder, again and again; remembers what it has examined."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        """``report`` takes sentences for the log: what cannot be offered, once."""
        self._path = path
        self._report = report
        self._seen: dict[Path, _Seen] = {}
        self._reported: set[str] = set()

    def look(self) -> dict[str, Offered]:
        """The models that can be loaded now, by their ids."""
        try:
            files = found_in(self._path)
        except OSError as error:
            self._say(f"the folder of models cannot be read: {error}")
            return {}
        offered: dict[str, Offered] = {}
        seen: dict[Path, _Seen] = {}
        for one in files:
            found = seen[one.path] = self._examined(one)
            model = model_id(one.name)
            if not found.is_valid:
                continue
            if not model or model in offered:
                self._say(f"{one.path} has no name of its own as a model; rename it")
                continue
            offered[model] = Offered(model, str(one.path), one.n_bytes)
        self._seen = seen
        return offered

    def _examined(self, one: ModelFile) -> _Seen:
        """Read its header, unless it is known, incomplete, or still written."""
        now = _Seen(one.n_bytes, one.mtime)
        before = self._seen.get(one.path)
        is_same = before is not None and (before.n_bytes, before.mtime) == (now.n_bytes, now.mtime)
        if is_same and before is not None and before.is_valid is not None:
            return before
        if not one.is_whole:
            return now
        if not is_same and time.time() - one.mtime < SETTLED_S:
            return now
        try:
            all_splits(one.path, check_gguf(one.path))
        except (NativeError, OSError) as error:
            self._say(f"not offered: {error}")
            return _Seen(now.n_bytes, now.mtime, is_valid=False)
        return _Seen(now.n_bytes, now.mtime, is_valid=True)

    def _say(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self._report(text)


def model_id(name: str) -> str:
    """The id of a file's name: what ids do not have in them becomes a hyphen."""
    return _AWKWARD.sub("-", name).lstrip("._-")[:MAX_NAME]
