"""The stored responses of a worker in a memory file on the shelf: the next one has them too.

Records, each after its length: a response that is kept, or the id of one that is dropped.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from runtime.gateway.responses_store import Stored
from runtime.gateway.stream_log import content, write_all
from supervision.shelf import ShelfClient

RESPONSES: Final = "gateway/responses/"
"""Beginning of its name on the shelf; then the worker's number."""
SLACK_BYTES: Final = 16 << 20
"""Of records that count no more; then the file is rewritten."""
_LENGTH: Final = struct.Struct("<I")
_LOG: Final = logging.getLogger("supervision.http")


class ResponsesLog:
    """Written by one worker."""

    def __init__(self, shelf: ShelfClient, name: str) -> None:
        """Read what a predecessor has left in ``found``, and go on with it."""
        self._shelf = shelf
        self._name = name
        self._fd: int | None = None
        self._size = 0
        self.found: list[Stored] = []
        entry = shelf.get(name)
        if entry is not None and entry.fds:
            self._fd = entry.fds[0]
            self._read(self._fd)

    def keep(self, one: Stored) -> None:
        """It is stored from now on."""
        self._append(msgspec.msgpack.encode(one))

    def drop(self, name: str) -> None:
        """It is not."""
        self._append(msgspec.msgpack.encode(name))

    def tidy(self, kept: Iterable[Stored], n_bytes: int) -> None:
        """Rewrite the file if most of it counts no more; ``n_bytes``: of ``kept``."""
        if self._size > 2 * n_bytes + SLACK_BYTES:
            self._close()
            for one in kept:
                self.keep(one)

    def _append(self, record: bytes) -> None:
        try:
            if self._fd is None:
                self._begin()
            if self._fd is not None:
                write_all(self._fd, _LENGTH.pack(len(record)) + record)
                self._size += _LENGTH.size + len(record)
        except OSError:  # no memory: what is stored ends with this worker
            self._close()

    def _begin(self) -> None:
        fd = os.memfd_create("llama-actors-responses", os.MFD_CLOEXEC)
        self._size = 0
        if self._shelf.keep(self._name, [fd]):
            self._fd = fd
        else:
            os.close(fd)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _read(self, fd: int) -> None:
        raw = content(fd)
        kept: dict[str, Stored] = {}
        at = 0
        while at + _LENGTH.size <= len(raw):
            start = at + _LENGTH.size
            end = start + _LENGTH.unpack_from(raw, at)[0]
            if end > len(raw):
                break  # its writer was killed while it wrote this
            try:
                one = msgspec.msgpack.decode(raw[start:end], type=Stored | str)
            except msgspec.DecodeError:
                _LOG.warning("%s is damaged from byte %d on; the rest is dropped", self._name, at)
                break
            kept.pop(one if isinstance(one, str) else one.id, None)
            if not isinstance(one, str):
                kept[one.id] = one
            at = end
        os.ftruncate(fd, at)
        os.lseek(fd, at, os.SEEK_SET)
        self._size = at
        self.found = list(kept.values())
