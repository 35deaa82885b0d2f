"""Rows as files, published so that a crash at any instant leaves the row absent or valid.

One file per row: ``<root>/<2 hex>/<64 hex>.kvb``.

The order, and why each step is where it is:

1. temp file, O_EXCL 0600, in the row's own directory (link does not cross file systems)
2. head (sealed: digest over head and payload) and payload are written
3. fdatasync: the bytes are durable before any name a reader looks for exists
4. link temp -> final: atomic, and unlike rename it never replaces what is there, so of two writers
   of one row the first wins; the row exists from here on
5. unlink temp, fsync directory: the name is durable; only now does the call return

Several rows take each step together (``write_rows``): a directory is synced once for all of them,
and a journal that was just committed for one file has little left to write for the next.

Killed before 4: a temp file, removed by the next rescan. Killed after 4: a valid row that is in no
index yet, adopted by the next rescan. If the final name exists already, its content decides: if it
is valid, the row was published before; if not, it is moved to ``quarantine/`` and the link is tried
once more.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeAlias

from cache.errors import (
    BadField,
    CacheError,
    CorruptRow,
    KeyMismatch,
    MissingRow,
    TierUnavailable,
)
from cache.filesystem import Filesystem
from cache.keys import KEY_BYTES
from cache.rows import (
    Buffer,
    MappedRow,
    RowHeader,
    parse_header,
    row_payload,
    seal,
    verify,
)

SUFFIX: Final = ".kvb"
TEMP_SUFFIX: Final = ".tmp"
QUARANTINE: Final = "quarantine"
QUARANTINE_KEPT: Final = 8  # files; enough to inspect, too few to fill a disk
_NAME_TAKEN: Final = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)
PROBE: Final = "probe.tmp"
PROBE_BYTES: Final = 1 << 20
_counter = itertools.count()

Path: TypeAlias = str | os.PathLike[str]


def row_path(root: Path, key: bytes) -> str:
    """The path of the row with this key under a tier's root directory."""
    name = key.hex()
    return os.path.join(root, name[:2], name + SUFFIX)


def write_row(
    fs: Filesystem, root: Path, slab: Buffer, *, make_root: bool = True
) -> tuple[str, int]:
    """Publish a row (head and payload, as in the arena) as a file; returns its path and size.

    Publishing a row that is there already succeeds and changes nothing. CorruptRow if ``slab`` is
    no valid row; TierUnavailable, naming the directory and the step, if the file system refuses.
    """
    written = write_rows(fs, root, [slab], make_root=make_root)[0]
    if isinstance(written, CacheError):
        raise written
    return row_path(root, written.key), written.row_bytes


def write_rows(
    fs: Filesystem, root: Path, slabs: Sequence[Buffer], *, make_root: bool = True
) -> list[RowHeader | CacheError]:
    """Publish several rows; each one's header, or what ``write_row`` would raise for it.

    The first refusal of the file system ends the batch: the rows after it are refused as well.
    With ``make_root`` False a missing root directory is a refusal: its disk may have been removed,
    and rows written to the empty mount point would fill another disk.
    """
    outcomes: list[RowHeader | CacheError] = []
    drafts: dict[int, _Draft] = {}
    refusal: TierUnavailable | None = None
    try:
        for at, slab in enumerate(slabs):
            if refusal is not None:
                outcomes.append(refusal)
                continue
            try:
                draft = _Draft(root, slab)
                drafts[at] = draft
                outcomes.append(draft.header)
                with refusals(root, "creating the directory"):
                    _make_shard(fs, root, draft.shard, make_root=make_root)
                with refusals(root, "writing a row"):
                    draft.write(fs)
            except TierUnavailable as refused:
                drafts.pop(at).discard(fs)
                outcomes[at] = refusal = refused
            except CorruptRow as corrupt:
                outcomes.append(corrupt)
        _each(drafts, outcomes, fs, "writing a row", lambda draft: draft.sync(fs))
        _each(drafts, outcomes, fs, "publishing a row", lambda draft: draft.publish(fs))
    finally:
        for draft in drafts.values():
            draft.discard(fs)
    synced: dict[str, OSError | None] = {}

    def make_durable(draft: _Draft) -> None:
        if draft.shard not in synced:
            synced[draft.shard] = None
            try:
                fs.sync_dir(draft.shard)
            except OSError as error:  # a second fsync would succeed without making anything durable
                synced[draft.shard] = error
        refused = synced[draft.shard]
        if refused is not None:
            raise refused

    _each(drafts, outcomes, fs, "syncing the directory", make_durable)
    return outcomes


def _each(
    drafts: dict[int, _Draft],
    outcomes: list[RowHeader | CacheError],
    fs: Filesystem,
    step: str,
    work: Callable[[_Draft], None],
) -> None:
    """One step for all rows that have not failed; a row that fails leaves no file behind."""
    for at, draft in list(drafts.items()):
        try:
            with refusals(draft.root, step):
                work(draft)
        except TierUnavailable as refused:
            outcomes[at] = refused
            del drafts[at]
            draft.discard(fs)
            draft.retract(fs)


class _Draft:
    """A row that is being written into a file."""

    def __init__(self, root: Path, slab: Buffer) -> None:
        self.root = root
        self.header = parse_header(slab)
        self._payload = row_payload(slab, self.header)
        self._head = seal(bytes(memoryview(slab)[: self.header.payload_offset]), self._payload)
        self._path = row_path(root, self.header.key)
        self.shard = os.path.dirname(self._path)
        self._temp: str | None = None
        self._fd: int | None = None
        self._is_linked = False

    def write(self, fs: Filesystem) -> None:
        """Steps 1 and 2: all bytes, not durable yet."""
        self._temp = f"{self._path}.{os.getpid()}.{next(_counter)}{TEMP_SUFFIX}"
        self._fd = fs.create(self._temp)
        fs.write(self._fd, self._head)
        fs.write(self._fd, self._payload)

    def sync(self, fs: Filesystem) -> None:
        """Step 3."""
        if self._fd is not None:
            fs.sync(self._fd)
            self._close(fs)

    def publish(self, fs: Filesystem) -> None:
        """Step 4."""
        if self._temp is None:
            return
        try:
            fs.link(self._temp, self._path)
        except FileExistsError:
            if _is_valid(fs, self.root, self.header.key):
                return
            quarantine(fs, self.root, self._path)
            fs.link(self._temp, self._path)
        self._is_linked = True

    def discard(self, fs: Filesystem) -> None:
        """Close and unlink the temp file; if that fails, the next rescan removes it."""
        with suppress(OSError):
            self._close(fs)
        if self._temp is not None:
            with suppress(OSError):
                fs.unlink(self._temp)
            self._temp = None

    def retract(self, fs: Filesystem) -> None:
        """Unlink a name that may not be durable: the caller is not to count this row."""
        if self._is_linked:
            with suppress(OSError):
                fs.unlink(self._path)

    def _close(self, fs: Filesystem) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            fs.close(fd)


def probe(fs: Filesystem, root: Path) -> None:
    """Test whether the directory accepts rows: write, sync and remove a file of a row's size.

    TierUnavailable, naming the directory and the step, if it does not.
    """
    path = os.path.join(root, PROBE)
    with refusals(root, "trying to write"):
        with suppress(FileNotFoundError):
            fs.unlink(path)
        fd = fs.create(path)
        try:
            fs.write(fd, bytes(PROBE_BYTES))
            fs.sync(fd)
        finally:
            fs.close(fd)
            fs.unlink(path)


def open_row(fs: Filesystem, root: Path, key: bytes) -> MappedRow:
    """Map a row and check every byte of it *before* it is returned.

    MissingRow if the file is gone, CorruptRow if its bytes are wrong (the caller quarantines),
    TierUnavailable if the disk refuses.
    """
    header, view = read_row(fs, root, key)
    return MappedRow(header, row_payload(view, header))


def read_row(fs: Filesystem, root: Path, key: bytes) -> tuple[RowHeader, memoryview]:
    """Like ``open_row``, for copying: the header, and all bytes of the file with the head."""
    path = row_path(root, key)
    try:
        view = fs.map(path)
    except FileNotFoundError as cause:
        raise MissingRow(f"the file of row {key.hex()} is gone") from cause
    except (
        PermissionError
    ) as cause:  # of this file; that of the directory is noticed by the quarantine
        raise BadField(f"the file of row {key.hex()} may not be read by this user") from cause
    except OSError as cause:
        raise TierUnavailable(os.fspath(root), "opening a row", cause) from cause
    header = checked(parse_header(view), len(view), key)
    verify(view, header)
    return header, view


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
    """Move a corrupt row's file to the quarantine; False if it was gone already."""
    try:
        return quarantine(fs, root, row_path(root, key))
    except OSError as cause:
        raise TierUnavailable(os.fspath(root), "quarantining a row", cause) from cause


def checked(header: RowHeader, size: int, key: bytes) -> RowHeader:
    """The header, if the file's name, size and seal agree with it; otherwise CorruptRow."""
    if header.key != key or len(key) != KEY_BYTES:
        raise KeyMismatch("the file's name is not its row's key")
    if size != header.row_bytes:
        raise BadField(f"the file has {size} bytes, its row {header.row_bytes}")
    if not header.sealed:
        raise BadField("the file was never sealed")
    return header


def _make_shard(fs: Filesystem, root: Path, shard: str, *, make_root: bool) -> None:
    try:
        fs.list_dir(shard)
    except FileNotFoundError:
        if make_root:
            fs.make_dir(os.fspath(root))  # separately: only the last part of a path is made private
        else:
            fs.list_dir(os.fspath(root))
        fs.make_dir(shard)
        fs.sync_dir(os.fspath(root))


def _is_valid(fs: Filesystem, root: Path, key: bytes) -> bool:
    try:
        open_row(fs, root, key).close()
    except (CorruptRow, MissingRow):
        return False
    return True


def quarantine(fs: Filesystem, root: Path, path: str) -> bool:
    """Move the file or directory of this name to the quarantine; False if it was gone already."""
    folder = os.path.join(root, QUARANTINE)
    _make_quarantine(fs, folder)
    name = os.path.basename(path)
    try:
        try:
            fs.rename(path, os.path.join(folder, name))
        except OSError as cause:
            if cause.errno not in _NAME_TAKEN:
                raise
            name = f"{name}.{os.getpid()}.{next(_counter)}"
            fs.rename(path, os.path.join(folder, name))
    except FileNotFoundError:
        return False
    kept = fs.list_dir(folder)
    if len(kept) > QUARANTINE_KEPT:  # these bytes count against no budget
        others = (os.path.join(folder, other) for other in sorted(set(kept) - {name}))
        oldest = next((other for other in others if not fs.is_dir(other)), None)
        if oldest is not None:  # a directory is no row: its contents are not removed
            fs.unlink(oldest)
    return True


def _make_quarantine(fs: Filesystem, folder: str) -> None:
    """Make the directory; a link of that name is removed, or files outside would be changed."""
    try:
        if fs.is_dir(folder):
            return
        fs.unlink(folder)
    except FileNotFoundError:
        pass
    fs.make_dir(folder)


@contextmanager
def refusals(root: Path, step: str) -> Iterator[None]:
    """Turn errors of the file system into TierUnavailable, naming directory and step."""
    try:
        yield
    except OSError as cause:
        if cause.errno is None:
            cause.errno = errno.EIO
        raise TierUnavailable(os.fspath(root), step, cause) from cause
