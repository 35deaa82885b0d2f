"""The ram tier's memory: one arena file that every model process maps.

Layout: a superblock page, then page-aligned slabs, each holding one row (``cache.rows``) from its
first byte. There is no table of slabs: a row carries its own description and checksums, so an index
can be rebuilt from the arena alone.

superblock, little-endian
offset size type  name
     0    8 bytes magic         b"llamaARN"
     8    2 u16   version       readers refuse anything but 1
    10    2 u16   reserved      zero
    12    4 u32   page_bytes    slabs start at multiples of it
    16    8 u64   size_bytes    the whole file
    24    4 u32   block_tokens  tokens in a full block
    28    4 u32   reserved      zero

Who may write where: the holder of a reservation maps *its slab only* writable; readers map the file
read-only; ``mark_free`` writes one page header. A faulty process cannot damage rows of others.

Crash order. ``begin`` wipes the first bytes of every page of the slab before it writes its head,
so no stale row can be found inside a slab that is being overwritten; the head has the state
WRITING; the payload comes next; the state byte becomes PUBLISHED last. A writer killed at any point
leaves a slab that is not a row, or a whole row. Other processes see the stores of a process that
has exited in program order, so no flush is needed; the arena does not survive a power loss.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from cache.allocation import PAGE_BYTES, ArenaMap
from cache.errors import BadArena, CorruptRow, NoArenaSpace
from cache.keys import BLOCK_TOKENS
from cache.rows import (
    MAGIC,
    MAX_HEAD_BYTES,
    STATE_AT,
    MappedRow,
    RowHeader,
    RowState,
    encode_header,
    parse_header,
    row_meta,
    seal,
)

__all__ = [
    "ArenaLayout",
    "ArenaMap",
    "ArenaReader",
    "SlabWriter",
    "arena_page_bytes",
    "create_arena",
    "mark_free",
    "read_layout",
    "scan_arena",
]

ARENA_MAGIC: Final = b"llamaARN"
ARENA_VERSION: Final = 1
SUPERBLOCK: Final = struct.Struct("<8sHHIQII")
_FIRST_READ: Final = 1024  # holds the head of a 64-token block with ordinary metadata
PROVED_HEADS: Final = 1 << 14  # about 1 KB each, and the heads of a million tokens
_WIPE: Final = bytes(8)  # written over the magic: what has none is no row


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """The contents of the superblock; sizes in bytes."""

    size_bytes: int
    page_bytes: int
    block_tokens: int


def arena_page_bytes() -> int:
    """Slab alignment on this machine: mmap must accept any slab's offset."""
    return max(PAGE_BYTES, mmap.ALLOCATIONGRANULARITY)


def create_arena(fd: int, size_bytes: int, block_tokens: int = BLOCK_TOKENS) -> ArenaLayout:
    """Give an empty memfd (or file) its size and superblock; slabs take no memory yet."""
    page = arena_page_bytes()
    size = size_bytes // page * page
    if size < 2 * page:
        raise BadArena(f"an arena of {size_bytes} bytes holds no slab of {page} bytes")
    os.ftruncate(fd, size)
    os.pwrite(fd, SUPERBLOCK.pack(ARENA_MAGIC, ARENA_VERSION, 0, page, size, block_tokens, 0), 0)
    return ArenaLayout(size, page, block_tokens)


def read_layout(fd: int) -> ArenaLayout:
    """Check the superblock of an open arena; BadArena if it is not one."""
    head = os.pread(fd, SUPERBLOCK.size, 0)
    if len(head) < SUPERBLOCK.size:
        raise BadArena("the file is shorter than a superblock")
    magic, version, _, page, size, block_tokens, _ = SUPERBLOCK.unpack(head)
    if magic != ARENA_MAGIC or version != ARENA_VERSION:
        raise BadArena("no arena of this version starts here")
    if page < PAGE_BYTES or page % mmap.ALLOCATIONGRANULARITY or size % page or not block_tokens:
        raise BadArena("the superblock does not fit this machine")
    if os.fstat(fd).st_size < size:
        raise BadArena("the file is shorter than the size in its superblock")
    return ArenaLayout(size, page, block_tokens)


@dataclass(frozen=True, slots=True)
class _Proved:
    """A head that was checked, and the bytes by which it is recognised."""

    fixed: bytes
    header: RowHeader


class ArenaReader:
    """The whole arena, mapped read-only once; rows are returned as views, never copied."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.layout = read_layout(fd)
            self._map = mmap.mmap(fd, self.layout.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        self._view = memoryview(self._map)
        self._proved: dict[int, _Proved] = {}

    def meta(self, offset: int, header: RowHeader) -> bytes:
        """The packed metadata of the row at ``offset``, whose header this is."""
        return row_meta(self._view[offset : offset + header.row_bytes], header)

    def row(self, offset: int) -> MappedRow:
        """The published row at ``offset``.

        Call it only for a leased row. CorruptRow if the slab holds no published row; the payload
        is not verified (``rows.verify`` can, for sealed rows).

        A head that was parsed and checked before is only compared with the slab's fixed header,
        which holds the checksum of the whole head: parsing is most of the cost of a hit beside its
        copy.
        """
        known = self._proved.get(offset)
        view = self._view[offset : offset + STATE_AT + 1]
        if (
            known is not None
            and view[:STATE_AT] == known.fixed
            and view[STATE_AT] == RowState.PUBLISHED
        ):
            header = known.header
        else:
            header, whole = self._find(offset)
            if len(self._proved) >= PROVED_HEADS:
                self._proved.clear()
            self._proved[offset] = _Proved(bytes(whole[:STATE_AT]), header)
        start = offset + header.payload_offset
        return MappedRow(header, self._view[start : start + header.payload_bytes])

    def slab(self, offset: int) -> memoryview:
        """All bytes of the published row at ``offset``, head included, as a file holds them."""
        header, view = self._find(offset)
        return view[: header.row_bytes]

    def _find(self, offset: int) -> tuple[RowHeader, memoryview]:
        layout = self.layout
        if offset % layout.page_bytes or not layout.page_bytes <= offset < layout.size_bytes:
            raise BadArena(f"no slab can start at offset {offset}")
        view = self._view[offset:]
        header = parse_header(view)
        if header.state is not RowState.PUBLISHED:
            raise CorruptRow(f"the slab at {offset} is {header.state.name}, not PUBLISHED")
        return header, view

    def close(self) -> None:
        """Unmap; payload views that still exist keep the mapping until they are released."""
        self._view.release()
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class SlabWriter:
    """One reserved slab, mapped writable; nothing else of the arena is reachable through it.

    ``begin``, fill ``payload``, ``publish``, ``close``. Closing without publishing leaves no row.
    """

    def __init__(self, path: str, offset: int, nbytes: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            layout = read_layout(fd)
            self._page = layout.page_bytes
            size = -(-nbytes // self._page) * self._page
            end = offset + size
            if offset % self._page or offset < self._page or end > layout.size_bytes or nbytes <= 0:
                raise BadArena(f"no slab of {nbytes} bytes fits at offset {offset}")
            _take_memory(fd, offset, size)
            # Populated at once: a page fault per page would cost as much as the copy itself.
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)
        finally:
            os.close(fd)
        self.nbytes = nbytes
        self._header: RowHeader | None = None
        self._payload: memoryview | None = None

    def begin(self, header: RowHeader, meta: bytes = b"") -> None:
        """Write the head, state WRITING; the size of the metadata is taken from the bytes."""
        head = encode_header(
            replace(header, state=RowState.WRITING, sealed=False, digest=bytes(32)), meta
        )
        parsed = parse_header(head, total_bytes=len(head) + header.payload_bytes)
        if parsed.row_bytes > self.nbytes:
            raise BadArena(f"a row of {parsed.row_bytes} bytes exceeds its slab of {self.nbytes}")
        for at in range(0, len(self._map), self._page):
            self._map[at : at + len(_WIPE)] = _WIPE
        # The magic is written last, so that half a head is not taken for a whole one.
        self._map[len(_WIPE) : len(head)] = head[len(_WIPE) :]
        self._map[: len(_WIPE)] = head[: len(_WIPE)]
        self._header = parsed
        self._payload = memoryview(self._map)[parsed.payload_offset : parsed.row_bytes]

    @property
    def payload(self) -> memoryview:
        """The memory for the KV bytes, exactly ``payload_bytes`` long."""
        if self._payload is None:
            raise BadArena("begin() comes before payload")
        return self._payload

    def publish(self, *, sealed: bool = False) -> RowHeader:
        """Make the row valid; ``sealed`` adds a digest of its payload (one more pass)."""
        if self._header is None:
            raise BadArena("begin() comes before publish()")
        if sealed:
            head = seal(bytes(self._map[: self._header.payload_offset]), self.payload)
            self._map[: len(_WIPE)] = _WIPE
            self._map[len(_WIPE) : len(head)] = head[len(_WIPE) :]
            self._map[: len(_WIPE)] = head[: len(_WIPE)]
        self._map[STATE_AT] = RowState.PUBLISHED
        return parse_header(bytes(self._map[: self._header.payload_offset]), self.nbytes)

    def close(self) -> None:
        """Unmap the slab. Views of ``payload`` must be released before."""
        if self._payload is not None:
            self._payload.release()
            self._payload = None
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _take_memory(fd: int, offset: int, size: int) -> None:
    """Allocate memory now: when none is left, writing to a mapped hole would raise SIGBUS."""
    try:
        os.posix_fallocate(fd, offset, size)
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
            raise NoArenaSpace(offset, size, cause.strerror or "no space") from cause
        raise


def scan_arena(path: str) -> Iterator[tuple[int, int, RowHeader]]:
    """(offset, slab bytes, header) of every published row, in order of offset.

    Robust against torn slabs: where no valid head is, the scan continues at the next page. Holes
    are skipped, so that a scan of an empty arena takes no time and allocates no memory.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        layout = read_layout(fd)
        page, at = layout.page_bytes, layout.page_bytes
        with mmap.mmap(fd, layout.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            while (extent := _next_data(fd, at, layout.size_bytes)) is not None:
                at, end = extent[0] // page * page, min(extent[1], layout.size_bytes)
                while at < end:
                    if memory[at : at + len(MAGIC)] != MAGIC:
                        at += page
                        continue
                    header = _head_at(memory, at)
                    if header is None:
                        at += page
                        continue
                    nbytes = -(-header.row_bytes // page) * page
                    if header.state is RowState.PUBLISHED:
                        yield at, nbytes, header
                    at += nbytes
    finally:
        os.close(fd)


def _next_data(fd: int, at: int, size: int) -> tuple[int, int] | None:
    """The next extent that has memory (or disk) behind it; reading a hole would allocate it."""
    if at >= size:
        return None
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return max(at, start), os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as cause:
        if cause.errno == errno.ENXIO:  # only holes from here on
            return None
        if cause.errno == errno.EINVAL:  # this file system does not report holes
            return at, size
        raise


def _head_at(memory: mmap.mmap, at: int) -> RowHeader | None:
    rest = len(memory) - at
    for nbytes in (_FIRST_READ, MAX_HEAD_BYTES):
        try:
            return parse_header(memory[at : at + nbytes], rest)
        except CorruptRow:
            continue
    return None


def mark_free(path: str, offset: int) -> None:
    """Invalidate the row at ``offset``; its memory stays allocated for the next slab.

    Call it before the slab's bytes are reserved again (see ``answers.Reserved``).
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        layout = read_layout(fd)
        if offset % layout.page_bytes or not layout.page_bytes <= offset < layout.size_bytes:
            raise BadArena(f"no slab can start at offset {offset}")
        os.pwrite(fd, _WIPE, offset)
    finally:
        os.close(fd)
