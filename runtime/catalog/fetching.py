"""Fetches one file: continued where it broke off, verified, and only then given its name.

Bytes go to a partial file, which is locked against other processes and survives a kill: its next
reader computes the digest of what is there and asks for the rest. A partial file with a wrong
digest is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.catalog.store import StoredFile, size_of
from runtime.errors import FetchFailed
from runtime.settings.sizes import format_size
from supervision.frozen import frozen

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK: Final = 1 << 20
PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each attempt that follows one that brought no byte; then it is given up."""
_NO_SPACE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Broken(Exception):
    """The connection ended, or was not made; another attempt may succeed."""


@frozen
class Body:
    """The bytes of a file from ``start`` on; 0 where a server begins at its beginning."""

    start: int
    chunks: Iterator[bytes]


Get = Callable[[str, int], AbstractContextManager[Body]]
"""Opens a file by its path in the repository, from a byte on; raises Broken or FetchFailed."""
Advance = Callable[[int], None]
"""Called with the bytes of the file that are there."""


def require_space(folder: Path, needed: int, name: str) -> None:
    """FetchFailed where the file system of ``folder`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchFailed(
            name,
            f"{format_size(needed)} are needed in {folder}, and {format_size(free)} are free; "
            "remove a model (`llama-actors rm`), or name another folder with LLAMA_ACTORS_STORE",
        )


def missing_bytes(file: StoredFile, final: Path, partial: Path) -> int:
    """Bytes that are still to be fetched."""
    if size_of(final) == file.n_bytes:
        return 0
    return file.n_bytes - min(file.n_bytes, max(0, size_of(partial)))


def fetch(
    name: str,
    file: StoredFile,
    final: Path,
    partial: Path,
    get: Get,
    *,
    advance: Advance = lambda _: None,
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Make ``final`` that file, unless it is; ``name`` is that of the model, for errors."""
    if is_there(file, final):
        advance(file.n_bytes)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(name, partial) as out:
        if is_there(file, final):  # another process was faster
            partial.unlink()
            return
        try:
            digest = _Receiver(name, file, out, advance).received(get, pauses_s)
            if digest == file.digest:
                os.fsync(out.fileno())
                partial.replace(final)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise FetchFailed(
                name,
                f"the disk of {partial.parent} is full ({error.strerror}); what was fetched is "
                "kept: make room, and `llama-actors pull` continues there",
            ) from error
        finally:
            if size_of(partial) == 0:
                partial.unlink()
        if digest != file.digest:
            partial.unlink()
            raise FetchFailed(
                name,
                f"{file.path} arrived with another digest ({digest}) than the hub names "
                f"({file.digest}) and was removed; try again",
            )
    _sync_folder(final.parent)


class _Receiver:
    """Appends what comes of a file to its partial file."""

    def __init__(self, name: str, file: StoredFile, out: FileIO, advance: Advance) -> None:
        self._name = name
        self._file = file
        self._out = out
        self._advance = advance
        self._hash = new_hash(file)
        self._at = 0

    def received(self, get: Get, pauses_s: Sequence[float]) -> str:
        """Receive the rest of the file; returns the digest of all of it."""
        self._take_what_is_there()
        failures = 0
        while self._at < self._file.n_bytes:
            before = self._at
            try:
                with get(self._file.path, self._at) as body:
                    self._append(body)
                why = "it ended early"
            except Broken as error:
                why = str(error)
            if self._at >= self._file.n_bytes:
                break
            failures = 0 if self._at > before else failures + 1
            if failures > len(pauses_s):
                done = f"{format_size(self._at)} of {format_size(self._file.n_bytes)}"
                raise FetchFailed(
                    self._name,
                    f"the connection broke {failures} times without a byte, last because {why}; "
                    f"{done} of {self._file.path} are kept, and `llama-actors pull` continues "
                    "there",
                )
            if failures:
                time.sleep(pauses_s[failures - 1])  # noqa: TID251 - a command, not an actor
        return _digest(self._file, self._hash)

    def _take_what_is_there(self) -> None:
        self._out.seek(0)
        while part := self._out.read(CHUNK):
            self._hash.update(part)
            self._at += len(part)
        if self._at > self._file.n_bytes:
            self._restart()
        self._advance(self._at)

    def _append(self, body: Body) -> None:
        if body.start != self._at:
            if body.start:
                raise Broken(f"the server sent byte {body.start}, not byte {self._at}")
            self._restart()  # this server cannot continue a file
        for chunk in body.chunks:
            _write_all(self._out, chunk)
            self._hash.update(chunk)
            self._at += len(chunk)
            self._advance(self._at)
            if self._at > self._file.n_bytes:
                return  # its digest is wrong

    def _restart(self) -> None:
        self._out.seek(0)
        self._out.truncate()
        self._hash = new_hash(self._file)
        self._at = 0


def new_hash(file: StoredFile) -> _Hash:
    """The hash of the file's digest, before its first byte."""
    if file.digest.startswith("git-sha1:"):
        found = hashlib.sha1(usedforsecurity=False)
        found.update(b"blob %d\0" % file.n_bytes)
        return found
    return hashlib.sha256()


def is_there(file: StoredFile, path: Path) -> bool:
    """Whether the path is that file, byte by byte."""
    if size_of(path) != file.n_bytes:
        return False
    found = new_hash(file)
    with path.open("rb") as one:
        while part := one.read(CHUNK):
            found.update(part)
    return _digest(file, found) == file.digest


def _digest(file: StoredFile, found: _Hash) -> str:
    return f"{file.digest.partition(':')[0]}:{found.hexdigest()}"


def _write_all(out: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[out.write(rest) or 0 :]


@contextlib.contextmanager
def _locked(name: str, partial: Path) -> Iterator[FileIO]:
    """The partial file, open to be continued; FetchFailed where another process fetches it."""
    while True:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with FileIO(fd, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FetchFailed(
                    name, "another process is fetching it already; wait until that has ended"
                ) from None
            if _is_still(fd, partial):
                yield file
                return


def _is_still(fd: int, path: Path) -> bool:
    """Whether the path is that file: another process may have renamed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
