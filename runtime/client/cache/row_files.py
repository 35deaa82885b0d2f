"""Row files from outside a node: walk a tier's directory, read a head, check every byte.

Only ``remove_files`` changes a directory. No node is needed, and one may run: a file that is
removed meanwhile is not damaged.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cache.arena import ArenaReader
from cache.errors import (
    BadField,
    BadMagic,
    CacheError,
    ChecksumMismatch,
    CorruptRow,
    KeyMismatch,
    Truncated,
    UnsupportedVersion,
)
from cache.filesystem import ROWS_DIR, PosixFilesystem
from cache.publish import QUARANTINE, SUFFIX, TEMP_SUFFIX
from cache.rows import (
    MAX_HEAD_BYTES,
    Buffer,
    RowHeader,
    decode_meta,
    parse_header,
    row_meta,
    verify,
)

_FIRST_READ: Final = 4096
_WHERE: Final[dict[type[CorruptRow], str]] = {
    BadMagic: "its first 8 bytes",
    UnsupportedVersion: "bytes 8 to 10, the format's version",
    Truncated: "its end, which is missing",
    BadField: "its fixed header, the first 256 bytes",
    ChecksumMismatch: "its head: header, metadata or tokens",
    KeyMismatch: "its key, parent or tokens, or the file's name",
}


@dataclass(frozen=True, slots=True)
class RowReport:
    """The header of a row, and whether its bytes match it."""

    place: str
    """A path, or an offset in the arena."""
    nbytes: int
    header: RowHeader | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    damage: str | None = None
    where: str | None = None
    is_proved: bool = False
    """Every byte was read and fits its digest; a row without one proves only its head."""

    @property
    def key(self) -> bytes | None:
        return None if self.header is None else self.header.key

    @property
    def tokens(self) -> bytes:
        """Packed; empty if the head is damaged."""
        return b"" if self.header is None else self.header.id.tokens

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``inspect`` and ``show`` print."""
        plain: dict[str, Any] = {
            "place": self.place,
            "bytes": self.nbytes,
            "ok": self.damage is None,
            "proved": self.is_proved,
            "damage": self.damage,
            "damaged_at": self.where,
        }
        header = self.header
        if header is not None:
            plain |= {
                "key": header.key.hex(),
                "parent": header.id.parent.hex(),
                "namespace": header.id.root.hex(),
                "start": header.id.start,
                "tokens": header.id.n_tokens,
                "head_bytes": header.payload_offset,
                "payload_bytes": header.payload_bytes,
                "reason": header.reason.name.lower(),
                "created_unix_s": header.created_unix_s,
                "sealed": header.sealed,
                "hits": header.hits,
                "last_used_unix_s": header.last_used_unix_s,
                "meta": {name: _shown(value) for name, value in self.meta.items()},
            }
        return plain


def _shown(value: object) -> object:
    """A value of a row's metadata as JSON has it; bytes as hex."""
    return value.hex() if isinstance(value, bytes) else value


@dataclass(slots=True)
class Walk:
    """What lies in a tier's directory, by kind; paths."""

    rows: list[str] = field(default_factory=list)
    temps: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def rows_root(cache_dir: Path) -> Path:
    """Where the rows of a cache directory lie: ``rows`` in it, or it is such a directory itself."""
    inner = cache_dir / ROWS_DIR
    return inner if inner.is_dir() else cache_dir


def walk(root: str | Path) -> Walk:
    """List a tier's directory; a missing one is empty."""
    found = Walk()
    for shard in _entries(root):
        if shard.name == QUARANTINE:
            found.quarantined += [one.path for one in _entries(shard.path)]
        elif len(shard.name) == 2 and shard.is_dir(follow_symlinks=False):
            for one in _entries(shard.path):
                if one.name.endswith(TEMP_SUFFIX):
                    found.temps.append(one.path)
                elif key_of(one.path) is None or not one.is_file(follow_symlinks=False):
                    found.strangers.append(one.path)
                else:
                    found.rows.append(one.path)
    return found


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def key_of(path: str) -> bytes | None:
    """The key in a row file's name, or None."""
    name = os.path.basename(path)
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(name.removesuffix(SUFFIX))
        if name == key.hex() + SUFFIX and len(key) == 32:
            return key
    return None


def read_head(path: str) -> RowReport:
    """Header, metadata and tokens of a row file, not its payload; raises OSError if it is gone."""
    files = PosixFilesystem()
    head, size = files.read_head(path, _FIRST_READ)
    report = _examine(path, head, size)
    if report.damage is not None and size > len(head):
        head, size = files.read_head(path, MAX_HEAD_BYTES)
        report = _examine(path, head, size)
    return report


def check_file(path: str, *, by_name: bool = True) -> RowReport:
    """Read a whole row file and check every byte; raises OSError if it is gone.

    ``by_name``: the file must be named for its key, as in a tier's directory.
    """
    view = PosixFilesystem().map(path)
    report = _examine(path, view, len(view))
    header = report.header
    if header is None or report.damage is not None:
        return report
    if by_name and key_of(path) != header.key:
        return _damaged(report, KeyMismatch("the file's name is not its row's key"))
    if len(view) != header.row_bytes:
        return _damaged(
            report,
            BadField(f"the file has {len(view)} bytes, its row {header.row_bytes}"),
            f"its end, from byte {header.row_bytes}",
        )
    return _prove(report, view)


def check_slab(arena: ArenaReader, offset: int, key: bytes) -> RowReport:
    """The same for a row in the arena; a row without a digest proves only its head."""
    try:
        view = arena.slab(offset)
    except CorruptRow as error:
        return _damaged(RowReport(f"arena offset {offset}", 0), error)
    report = _examine(f"arena offset {offset}", view, len(view))
    if report.header is not None and report.header.key != key:
        return _damaged(report, KeyMismatch("another row lies there"))
    if report.header is None or report.damage is not None or not report.header.sealed:
        return report
    return _prove(report, view)


def read_slab(arena: ArenaReader, offset: int) -> RowReport | None:
    """Head of a row in the arena; None if it is no longer there."""
    try:
        view = arena.slab(offset)
    except CacheError:
        return None
    return _examine(f"arena offset {offset}", view, len(view))


def _examine(place: str, view: Buffer, size: int) -> RowReport:
    try:
        header = parse_header(view, size)
    except CorruptRow as error:
        return _damaged(RowReport(place, size), error)
    try:
        meta = decode_meta(row_meta(view, header))
    except CorruptRow as error:
        return _damaged(RowReport(place, size, header), error, "its metadata")
    return RowReport(place, size, header, meta)


def _prove(report: RowReport, view: Buffer) -> RowReport:
    header = report.header
    if header is None:
        return report
    try:
        verify(view, header)
    except CorruptRow as error:
        payload = f"its payload, bytes {header.payload_offset} to {header.row_bytes}"
        where = payload if header.sealed else "its fixed header: it was never sealed"
        return _damaged(report, error, where)
    return replace(report, is_proved=True)


def _damaged(report: RowReport, error: CorruptRow, where: str | None = None) -> RowReport:
    where = where or _WHERE.get(type(error), "an unknown place")
    return replace(report, damage=error.detail, where=where)


def older_than(paths: list[str], age_s: float, now: float | None = None) -> Iterator[str]:
    """Those whose last change is at least ``age_s`` ago; vanished ones are left out."""
    now = time.time() if now is None else now
    for path in paths:
        with contextlib.suppress(OSError):
            if now - os.lstat(path).st_mtime >= age_s:
                yield path


def remove_files(paths: list[str] | Iterator[str]) -> tuple[int, int]:
    """Unlink files (changes the directory): how many, and their bytes."""
    count = nbytes = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            size = os.lstat(path).st_size
            os.unlink(path)
            count, nbytes = count + 1, nbytes + size
    return count, nbytes
