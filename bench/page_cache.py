"""The page cache of row files: dropped, so that the next read comes from the disk.

A cold page cache of a virtual machine may still be warm in its host.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def stored_files(cache: Path) -> list[Path]:
    """The files of a cache directory that have bytes."""
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)


def drop_pages(files: Iterable[Path]) -> float:
    """Drop all pages of these files; returns the share that is still resident."""
    resident = total = 0
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = _resident_pages(file.fileno(), path.stat().st_size)
            resident, total = resident + found[0], total + found[1]
    return resident / total


def _resident_pages(fd: int, n_bytes: int) -> tuple[int, int]:
    """Pages of a file in the page cache, and all of its pages."""
    n_pages = -(-n_bytes // mmap.PAGESIZE)
    with mmap.mmap(fd, n_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        vector = (ctypes.c_ubyte * n_pages)()
        if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), vector):
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(one & 1 for one in vector), n_pages
