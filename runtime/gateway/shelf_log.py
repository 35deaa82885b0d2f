"""Values by name in a memory file on the launcher's shelf: the next process reads them again.

Records, each after its length: a name and its value, or nothing where it counts no more. The last
record of a name counts.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from runtime.gateway.stream_log import content, write_all
from supervision.shelf import ShelfClient

SLACK_BYTES: Final = 16 << 20
"""Of records that count no more; then the file is rewritten."""
_LENGTH: Final = struct.Struct("<I")
_RECORD: Final = tuple[str, bytes | None]
_LOG: Final = logging.getLogger("supervision.gateway_ledger")


class ShelfLog:
    """Written by one process at a time."""

    def __init__(self, shelf: ShelfClient, name: str, slack: int = SLACK_BYTES) -> None:
        """Read what a predecessor has left into ``found``, and go on with it."""
        self._shelf = shelf
        self._name = name
        self._slack = slack
        self._fd: int | None = None
        self._size = 0
        self._n_live = 0
        """Bytes after the last time that it was rewritten."""
        self.found: dict[str, bytes] = {}
        """Values by name, in the order in which they were put."""
        entry = shelf.get(name)
        if entry is not None and entry.fds:
            self._fd = entry.fds[0]
            self._read(self._fd)

    def put(self, name: str, value: bytes) -> None:
        """From now on this is the value."""
        self._append(_packed(name, value))

    def drop(self, name: str) -> None:
        """There is none any more."""
        self._append(_packed(name, None))

    def tidy(self, kept: Iterable[tuple[str, bytes]], n_bytes: int | None = None) -> None:
        """Rewrite the file if most of it counts no more; ``n_bytes``: about those of ``kept``."""
        n_live = self._n_live if n_bytes is None else n_bytes
        if self._size > 2 * n_live + self._slack:
            try:
                self._rewrite(kept)
            except OSError:
                self.close()

    def _rewrite(self, kept: Iterable[tuple[str, bytes]]) -> None:
        """Into a new file, which takes the other's place when all of it is there."""
        fd = _new_file()
        size = 0
        for name, value in kept:
            record = _packed(name, value)
            write_all(fd, record)
            size += len(record)
        if not self._shelf.keep(self._name, [fd]):
            os.close(fd)
            return
        self.close()
        self._fd, self._size, self._n_live = fd, size, size

    def _append(self, record: bytes) -> None:
        try:
            if self._fd is None:
                self._begin()
            if self._fd is not None:
                write_all(self._fd, record)
                self._size += len(record)
        except OSError:  # no memory: what is kept ends with this process
            self.close()

    def _begin(self) -> None:
        fd = _new_file()
        if self._shelf.keep(self._name, [fd]):
            self._fd, self._size = fd, 0
        else:
            os.close(fd)

    def close(self) -> None:
        """Leave it as it is, for the next process; what is put from now on begins a new one."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _read(self, fd: int) -> None:
        raw = content(fd)
        at = 0
        while at + _LENGTH.size <= len(raw):
            start = at + _LENGTH.size
            end = start + _LENGTH.unpack_from(raw, at)[0]
            if end > len(raw):
                break  # its writer was killed while it wrote this
            try:
                name, value = msgspec.msgpack.decode(raw[start:end], type=_RECORD)
            except msgspec.DecodeError:
                _LOG.warning("%s is damaged from byte %d on; the rest is dropped", self._name, at)
                break
            self.found.pop(name, None)
            if value is not None:
                self.found[name] = value
            at = end
        os.ftruncate(fd, at)
        os.lseek(fd, at, os.SEEK_SET)
        self._size = at


def _new_file() -> int:
    return os.memfd_create("llama-actors-gateway", os.MFD_CLOEXEC)


def _packed(name: str, value: bytes | None) -> bytes:
    record = msgspec.msgpack.encode((name, value))
    return _LENGTH.pack(len(record)) + record
