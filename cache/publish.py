"""Rows as files, published so that a crash at any instant leaves the row absent or valid.

One file per row: ``<root>/<2 hex>/<64 hex>.kvb``.

The order, and why each step is where it is:

1. temp file, O_EXCL 0600, in the row's own directory (link does not cross file systems)
2. head (sealed: digest over head and payload) and payload are written
3. fdatasync: the bytes are durable before any name a reader looks for exists
4. link temp -> final: atomic, and unlike rename it never replaces what is there, so of two writers
   of one row the first wins; the row exists from here on
5. unlink temp, fsync directory: the name is durable; only now is the caller told

Killed before 4: a temp file, removed by the next rescan. Killed after 4: a valid row that nobody
was told of, adopted by the next rescan. If the final name exists already, its content decides:
valid means the work was done before; invalid means it is moved to ``quarantine/`` and the link is
tried once more.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from cache.errors import BadField, CorruptRow, KeyMismatch, MissingRow, TierUnavailable
from cache.filesystem import Filesystem
from cache.keys import KEY_BYTES
from cache.rows import (
    MAX_HEAD_BYTES,
    Buffer,
    RowHeader,
    parse_header,
    row_meta,
    row_payload,
    row_tokens,
    seal,
    verify,
)

SUFFIX: Final = ".kvb"
TEMP_SUFFIX: Final = ".tmp"
QUARANTINE: Final = "quarantine"
_FIRST_READ: Final = 4096  # one page holds the head of a 64-token block with ordinary metadata
_counter = itertools.count()

Path: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class MappedRow:
    """An open, verified row; the views live until ``close`` (or until the last of them goes)."""

    header: RowHeader
    tokens: bytes
    payload: memoryview

    def close(self) -> None:
        self.payload.release()


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A row found by a scan: its head is valid, its payload has not been read."""

    header: RowHeader
    tokens: bytes
    meta: bytes
    path: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Rescan:
    """What a scan of a directory found and cleaned up."""

    rows: tuple[FoundRow, ...]
    temps_removed: int
    quarantined: tuple[str, ...]  # file names, now under quarantine/


def row_path(root: Path, key: bytes) -> str:
    """Where the row with this key lives under a tier's root directory."""
    name = key.hex()
    return os.path.join(root, name[:2], name + SUFFIX)


def write_row(fs: Filesystem, root: Path, slab: Buffer) -> tuple[str, int]:
    """Publish a row (head and payload, as in the arena) as a file; returns its path and size.

    Publishing a row that is there already succeeds and changes nothing. CorruptRow if ``slab`` is
    no valid row; TierUnavailable, naming the directory and the step, if the file system refuses.
    """
    header = parse_header(slab)
    payload = row_payload(slab, header)
    head = seal(bytes(memoryview(slab)[: header.payload_offset]), payload)
    path = row_path(root, header.key)
    shard = os.path.dirname(path)
    temp = f"{path}.{os.getpid()}.{next(_counter)}{TEMP_SUFFIX}"
    with _refusals(root, "creating the directory"):
        _make_shard(fs, root, shard)
    try:
        with _refusals(root, "writing a row"):
            _write_temp(fs, temp, head, payload)
        with _refusals(root, "publishing a row"):
            _link(fs, root, temp, path, header.key)
    finally:
        with suppress(OSError):  # what stays behind is removed by the next rescan
            fs.unlink(temp)
    with _refusals(root, "syncing the directory"):
        fs.sync_dir(shard)
    return path, header.row_bytes


def open_row(fs: Filesystem, root: Path, key: bytes) -> MappedRow:
    """Map a row and check every byte of it *before* handing anything out.

    MissingRow if the file is gone, CorruptRow if its bytes are wrong (the caller quarantines),
    TierUnavailable if the disk refuses.
    """
    path = row_path(root, key)
    try:
        view = fs.map(path)
    except FileNotFoundError as cause:
        raise MissingRow(f"the file of row {key.hex()} is gone") from cause
    except OSError as cause:
        raise TierUnavailable(os.fspath(root), "opening a row", cause) from cause
    header = _checked(parse_header(view), len(view), key)
    verify(view, header)
    return MappedRow(header, row_tokens(view, header), row_payload(view, header))


def delete_row(fs: Filesystem, root: Path, key: bytes) -> bool:
    """Remove a row's file; False if it was gone already. Readers that mapped it keep their view."""
    try:
        fs.unlink(row_path(root, key))
    except FileNotFoundError:
        return False
    except OSError as cause:
        raise TierUnavailable(os.fspath(root), "deleting a row", cause) from cause
    return True


def quarantine_row(fs: Filesystem, root: Path, key: bytes) -> bool:
    """Move a corrupt row's file out of the way; False if it was gone already."""
    try:
        return _quarantine(fs, root, row_path(root, key))
    except OSError as cause:
        raise TierUnavailable(os.fspath(root), "quarantining a row", cause) from cause


def rescan(fs: Filesystem, root: Path) -> Rescan:
    """All rows of a directory whose heads are valid; temp files go, bad files are quarantined.

    Only for the directory's one owner at its start: a temp file of a live writer would go too.
    """
    rows: list[FoundRow] = []
    quarantined: list[str] = []
    temps = 0
    root = os.fspath(root)
    with _refusals(root, "scanning"):
        fs.make_dir(root)
        for shard in sorted(fs.list_dir(root)):
            if not _is_shard(shard):
                continue
            for name in sorted(fs.list_dir(os.path.join(root, shard))):
                path = os.path.join(root, shard, name)
                if name.endswith(TEMP_SUFFIX):
                    fs.unlink(path)
                    temps += 1
                    continue
                found = _read_found(fs, path, name)
                if found is not None:
                    rows.append(found)
                elif _quarantine(fs, root, path):
                    quarantined.append(name)
    return Rescan(tuple(rows), temps, tuple(quarantined))


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
        header = _checked(header, size, key)
    except (CorruptRow, ValueError):
        return None
    return FoundRow(header, row_tokens(head, header), row_meta(head, header), path, size)


def _checked(header: RowHeader, size: int, key: bytes) -> RowHeader:
    if header.key != key or len(key) != KEY_BYTES:
        raise KeyMismatch("the file's name is not its row's key")
    if size != header.row_bytes:
        raise BadField(f"the file has {size} bytes, its row {header.row_bytes}")
    if not header.sealed:
        raise BadField("the file was never sealed")
    return header


def _make_shard(fs: Filesystem, root: Path, shard: str) -> None:
    try:
        fs.list_dir(shard)
    except FileNotFoundError:
        fs.make_dir(os.fspath(root))  # by itself first: only a path's last part becomes private
        fs.make_dir(shard)
        fs.sync_dir(os.fspath(root))


def _write_temp(fs: Filesystem, temp: str, head: bytes, payload: memoryview) -> None:
    fd = fs.create(temp)
    try:
        fs.write(fd, head)
        fs.write(fd, payload)
        fs.sync(fd)
    finally:
        fs.close(fd)


def _link(fs: Filesystem, root: Path, temp: str, path: str, key: bytes) -> None:
    try:
        fs.link(temp, path)
    except FileExistsError:
        if _is_valid(fs, root, key):
            return
        _quarantine(fs, root, path)
        fs.link(temp, path)


def _is_valid(fs: Filesystem, root: Path, key: bytes) -> bool:
    try:
        open_row(fs, root, key).close()
    except (CorruptRow, MissingRow):
        return False
    return True


def _quarantine(fs: Filesystem, root: Path, path: str) -> bool:
    folder = os.path.join(root, QUARANTINE)
    fs.make_dir(folder)
    try:
        fs.rename(path, os.path.join(folder, os.path.basename(path)))
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _refusals(root: Path, step: str) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        if cause.errno is None:
            cause.errno = errno.EIO
        raise TierUnavailable(os.fspath(root), step, cause) from cause
