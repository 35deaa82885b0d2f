"""Scans a directory for rows at start: heads only, one by one, however many there are.

A scan opens each file once, reads its first page, checks the head (``parse_header``) and compares
the sizes; payloads are read and verified when a row is used. Found rows are not kept, so that a
million files take no more memory than ten, and the first rows are reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cache.errors import CorruptRow
from cache.filesystem import Filesystem
from cache.publish import SUFFIX, TEMP_SUFFIX, Path, checked, quarantine, refusals
from cache.rows import MAX_HEAD_BYTES, RowHeader, parse_header, row_meta

_FIRST_READ: Final = 4096  # one page holds the head of a 64-token block with ordinary metadata


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A row found by a scan: its head is valid, its payload has not been read."""

    header: RowHeader
    meta: bytes
    path: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Rescan:
    """The result of a scan of a directory."""

    rows: tuple[FoundRow, ...]
    temps_removed: int
    quarantined: tuple[str, ...]  # file names, now under quarantine/


class DirectoryScan:
    """Iterate over it for the rows of a directory; the counts grow meanwhile.

    Temp files are removed, bad files quarantined. TierUnavailable if the file system refuses. Only
    for the directory's one owner, while nothing is written: a writer's temp file would be removed.
    """

    def __init__(self, fs: Filesystem, root: Path) -> None:
        self._fs = fs
        self._root = os.fspath(root)
        self.temps_removed = 0
        self.quarantined: list[str] = []  # file names, now under quarantine/

    def __iter__(self) -> Iterator[FoundRow]:
        fs, root = self._fs, self._root
        with refusals(root, "scanning"):
            fs.make_dir(root)
            for shard in sorted(filter(_is_shard, fs.list_dir(root))):
                folder = os.path.join(root, shard)
                if not fs.is_dir(folder):  # through a link files elsewhere would be removed
                    self._put_aside(folder, shard)
                    continue
                for name in sorted(fs.list_dir(folder)):
                    found = self._read(f"{folder}/{name}", name)
                    if found is not None:
                        yield found

    def _read(self, path: str, name: str) -> FoundRow | None:
        if name.endswith(TEMP_SUFFIX):
            try:
                self._fs.unlink(path)
                self.temps_removed += 1
            except IsADirectoryError:
                self._put_aside(path, name)
            return None
        found = _read_found(self._fs, path, name)
        if found is None:
            self._put_aside(path, name)
        return found

    def _put_aside(self, path: str, name: str) -> None:
        if quarantine(self._fs, self._root, path):
            self.quarantined.append(name)


def rescan(fs: Filesystem, root: Path) -> Rescan:
    """A whole scan at once, see ``DirectoryScan``; for tools and tests."""
    scan = DirectoryScan(fs, root)
    rows = tuple(scan)
    return Rescan(rows, scan.temps_removed, tuple(scan.quarantined))


def _is_shard(name: str) -> bool:
    return len(name) == 2 and all(digit in "0123456789abcdef" for digit in name)


def _read_found(fs: Filesystem, path: str, name: str) -> FoundRow | None:
    try:
        key = bytes.fromhex(name.removesuffix(SUFFIX))
        head, size = fs.read_head(path, _FIRST_READ)
        try:
            header = parse_header(head, size)
        except CorruptRow:
            if size <= len(head):
                raise
            head, size = fs.read_head(path, MAX_HEAD_BYTES)
            header = parse_header(head, size)
        header = checked(header, size, key)
    except (CorruptRow, ValueError, PermissionError):
        return None
    return FoundRow(header, row_meta(head, header), path, size)
