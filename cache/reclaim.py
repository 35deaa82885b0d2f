"""Returns arena memory to the kernel: punches holes where no row is.

An evicted slab keeps its memory for the next one, which saves page faults. Under memory pressure
only a hole in the file returns it. A later ``SlabWriter`` allocates again, and raises
``NoArenaSpace`` when there is no memory.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Final

from cache.arena import read_layout
from cache.errors import BadArena

_PIECE_BYTES: Final = 4 << 20  # a limit is kept to within this


def resident_bytes(path: str) -> int:
    """The memory that an arena takes now, slabs and free pages together."""
    return os.stat(path).st_blocks * 512  # the unit of st_blocks on every file system


def return_memory(path: str, extents: Iterable[tuple[int, int]], limit: int | None = None) -> int:
    """Punch holes at ``(offset, bytes)``; returns how many bytes were freed.

    Only for pages that belong to no slab: they read as zeros from now on. Stops once ``limit``
    bytes were freed. BadArena for an extent that is not whole pages of the arena's slabs.
    """
    returned = 0
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        layout = read_layout(fd)
        for offset, nbytes in extents:
            end = offset + nbytes
            if offset % layout.page_bytes or nbytes % layout.page_bytes or nbytes <= 0:
                raise BadArena(f"{nbytes} bytes at offset {offset} are not whole pages")
            if offset < layout.page_bytes or end > layout.size_bytes:
                raise BadArena(f"{nbytes} bytes at offset {offset} are not in the arena")
            for start, stop in _with_memory(fd, offset, end, layout.page_bytes):
                if limit is not None and returned >= limit:
                    return returned
                with mmap.mmap(fd, stop - start, mmap.MAP_SHARED, offset=start) as pages:
                    pages.madvise(mmap.MADV_REMOVE)
                returned += stop - start
    finally:
        os.close(fd)
    return returned


def _with_memory(fd: int, start: int, end: int, page: int) -> Iterator[tuple[int, int]]:
    """Whole pages between ``start`` and ``end`` that have memory behind them, in pieces."""
    while start < end:
        try:
            found = os.lseek(fd, start, os.SEEK_DATA) // page * page
        except OSError as cause:
            if cause.errno == errno.ENXIO:  # holes up to the end of the file
                return
            raise
        if found >= end:
            return
        stop = min(end, os.lseek(fd, found, os.SEEK_HOLE), found + _PIECE_BYTES)
        stop = -(-stop // page) * page
        yield max(start, found), stop
        start = stop
