"""The runtime folder of a node: private to its user, gone when the node has stopped.

``cookie``      32 random bytes that authenticate every frame
``node.json``   the launcher's pid, where the root listens, which start this is
``shelf``       the socket of the descriptor shelf
``thespian.log`` (and ``.old``) the library's own diagnostics
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Final

from supervision import process
from supervision.address import Address
from supervision.errors import NodeAlreadyRunning, RuntimeDirError
from supervision.frozen import frozen
from supervision.secret_bytes import random_bytes
from supervision.session import COOKIE_BYTES

VERSION: Final = 1
_NODE: Final = "node.json"
_COOKIE: Final = "cookie"
_LOG: Final = "thespian.log"
SHELF: Final = "shelf"


@frozen
class NodeRecord:
    """The content of ``node.json``."""

    version: int
    pid: int
    """The launcher."""
    pid_ticks: int
    """When that pid started, in clock ticks since boot: a later process may get the same pid."""
    port: int
    root: str
    """``host:port`` of the root supervisor."""
    root_pid: int
    admin_pid: int
    started_at: float
    """Unix time of this boot."""
    boot: int
    """1, and one more each time the launcher restarted the node."""
    packages: tuple[str, ...]
    """Top-level packages whose values may travel in messages, beside this one."""

    @property
    def root_address(self) -> Address:
        """The root supervisor's address."""
        return Address.parse(self.root)

    @property
    def is_alive(self) -> bool:
        """Whether the launcher that wrote this still runs."""
        return process.start_ticks(self.pid) == self.pid_ticks


class RuntimeDir:
    """One runtime folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None

    @property
    def thespian_log(self) -> Path:
        """Where the library writes its diagnostics."""
        return self.path / _LOG

    def claim(self) -> bytes:
        """Lock the folder and write a new cookie; files of a dead node are removed.

        Locked until ``release`` or the end of this process: of two that claim it at the same time,
        one is refused.
        """
        try:
            process.make_private_dirs(self.path)
            found = self.path.stat()
        except OSError as error:
            raise RuntimeDirError(self.path, f"cannot be made: {error.strerror}") from error
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            raise RuntimeDirError(self.path, "is not a folder of this user")
        if stat.S_IMODE(found.st_mode) != 0o700:
            self.path.chmod(0o700)
        record = self.read()
        if record is not None and record.is_alive:
            raise NodeAlreadyRunning(self.path, record.pid)
        self._lock()
        self.clear()
        cookie = random_bytes(COOKIE_BYTES)
        self._write(_COOKIE, cookie)
        return cookie

    def _lock(self) -> None:
        """Lock the folder itself: a lock file would have to be removed, and that cannot be safe."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            record = self.read()
            raise NodeAlreadyRunning(self.path, record.pid if record else None) from None
        self._lock_fd = fd
        process.close_in_children.add(fd)

    def release(self) -> None:
        """Let others claim the folder."""
        if self._lock_fd is not None:
            process.close_in_children.discard(self._lock_fd)
            os.close(self._lock_fd)
            self._lock_fd = None

    def cookie(self) -> bytes | None:
        """The node's cookie, if there is one to read."""
        try:
            return (self.path / _COOKIE).read_bytes()
        except OSError:
            return None

    def write(self, record: NodeRecord) -> None:
        """Publish the record, whole or not at all."""
        self._write(_NODE, json.dumps(asdict(record), indent=1).encode())

    def read(self) -> NodeRecord | None:
        """The record, if a whole one of our version is there."""
        try:
            fields = json.loads((self.path / _NODE).read_bytes())
            fields["packages"] = tuple(fields["packages"])
            record = NodeRecord(**fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record if record.version == VERSION else None

    def clear(self) -> None:
        """Remove every file of the node; the folder stays."""
        temporary = f"{_LOG}.old", f"{_NODE}.new", f"{_COOKIE}.new"
        for name in (_NODE, _COOKIE, _LOG, SHELF, *temporary):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        temporary.replace(self.path / name)
