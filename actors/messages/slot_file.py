"""A small text that outlives every actor of the node, in a memory file that the launcher holds.

It survives the actor that writes it and a restart of the whole tree, and dies with the node. Two
slots are written in turn, each with a generation and a checksum: a writer killed in the middle
costs its own change, never what was there.

slot, little-endian: u64 generation, u32 length, 32 bytes BLAKE3 of (generation, length, body), then
the body.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from blake3 import blake3

SLOT_BYTES: Final = 16 << 20  # thousands of models, or hundreds with chat templates of their own
_HEAD: Final = struct.Struct("<QI32s")
_COVERED: Final = struct.Struct("<QI")


class SlotFile:
    """Read once and written whole at every change, by one process at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._generation = 0
        self.body = b""
        """What was written last; empty if nothing was."""
        for slot in (0, 1):
            generation, body = self._read(slot)
            if generation > self._generation:
                self._generation, self.body = generation, body

    def write(self, body: bytes) -> None:
        """Replace what is there; ValueError if it is too much."""
        if len(body) > SLOT_BYTES - _HEAD.size:
            raise ValueError(f"{len(body)} bytes do not fit a slot of {SLOT_BYTES}")
        self._generation += 1
        covered = _COVERED.pack(self._generation, len(body))
        record = covered + blake3(covered + body).digest() + body
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, record, self._generation % 2 * SLOT_BYTES)
        finally:
            os.close(fd)
        self.body = body

    def _read(self, slot: int) -> tuple[int, bytes]:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(fd, _HEAD.size, slot * SLOT_BYTES)
            if len(head) < _HEAD.size:
                return 0, b""
            generation, length, digest = _HEAD.unpack(head)
            body = os.pread(fd, min(length, SLOT_BYTES), slot * SLOT_BYTES + _HEAD.size)
        finally:
            os.close(fd)
        if blake3(_COVERED.pack(generation, length) + body).digest() != digest:
            return 0, b""  # torn: the other slot holds what was there before
        return generation, body
