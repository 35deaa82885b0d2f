"""The file system calls of a file tier, behind one object, so that tests can make them fail."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from typing import Final, Protocol

from cache.rows import Buffer

LOCK_FILE: Final = "lock"
ROWS_DIR: Final = "rows"


class Filesystem(Protocol):
    """Every method may raise OSError; none of them retries or cleans up."""

    def make_dir(self, path: str) -> None:
        """Create a directory and its missing parents, each 0700; an existing one stays as it is."""

    def list_dir(self, path: str) -> list[str]:
        """Names in a directory, unsorted."""
        ...

    def is_dir(self, path: str) -> bool:
        """Whether this is a directory, and not a link to one."""
        ...

    def create(self, path: str) -> int:
        """A descriptor of a new file (O_EXCL, 0600)."""
        ...

    def write(self, fd: int, chunk: Buffer) -> None:
        """Append all of ``chunk``."""

    def sync(self, fd: int) -> None:
        """Make the bytes written so far durable (fdatasync)."""

    def close(self, fd: int) -> None:
        """Close a descriptor."""

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; FileExistsError if ``target`` exists."""

    def rename(self, source: str, target: str) -> None:
        """Move a file, replacing ``target``."""

    def unlink(self, path: str) -> None:
        """Remove a name."""

    def sync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""

    def read_head(self, path: str, nbytes: int) -> tuple[bytes, int]:
        """The first ``nbytes`` of a file, and the size of all of it.

        Anything but a regular file (a link, a pipe, a directory) counts as empty.
        """
        ...

    def device(self, path: str) -> int:
        """Number of the file system that a file lies on."""
        ...

    def map(self, path: str) -> memoryview:
        """The whole file, mapped read-only; the mapping lives as long as views of it do.

        Anything but a regular file counts as empty, as in ``read_head``.
        """
        ...

    def read_ahead(self, path: str) -> None:
        """Have the system read a whole file into its page cache, without waiting for it."""


class PosixFilesystem:
    """The calls of the operating system."""

    def make_dir(self, path: str) -> None:
        make_private_dirs(path)

    def list_dir(self, path: str) -> list[str]:
        return os.listdir(path)

    def is_dir(self, path: str) -> bool:
        return stat.S_ISDIR(os.lstat(path).st_mode)

    def create(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, chunk: Buffer) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(fd, rest) :]

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read_head(self, path: str, nbytes: int) -> tuple[bytes, int]:
        fd = _open_regular(path)
        if fd is None:
            return b"", 0
        try:
            return os.pread(fd, nbytes, 0), os.fstat(fd).st_size
        finally:
            os.close(fd)

    def device(self, path: str) -> int:
        return os.stat(path).st_dev

    def map(self, path: str) -> memoryview:
        fd = _open_regular(path)
        if fd is None:
            return memoryview(b"")
        try:
            if os.fstat(fd).st_size == 0:
                return memoryview(b"")  # mmap refuses empty files
            return memoryview(mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ))
        finally:
            os.close(fd)

    def read_ahead(self, path: str) -> None:
        fd = _open_regular(path)
        if fd is None:
            return
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)


def make_private_dirs(path: str) -> None:
    """Create a directory and its missing parents, for this user alone whatever the umask.

    ``os.makedirs`` gives its mode to the last one only. Existing directories stay as they are.
    """
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.normpath(path))
    if parent and parent != path:
        make_private_dirs(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:  # another process made it first, or it is no directory
        if not os.path.isdir(path):
            raise
    else:
        os.chmod(path, 0o700)  # the umask may have removed rights of the owner, too


def _open_regular(path: str) -> int | None:
    """A descriptor to read from; None for anything but a regular file. Never blocks."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would block
    try:
        fd = os.open(path, flags)
    except OSError as cause:
        if cause.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            return None
        raise
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None


def lock_directory(path: str) -> int:
    """Lock a directory for this node; the lock lasts until the descriptor is closed.

    OSError with EWOULDBLOCK if another node holds it, with ELOOP if the lock is a symbolic link.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(os.path.join(path, LOCK_FILE), flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd
