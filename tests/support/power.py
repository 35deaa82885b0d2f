"""A disk that loses what was not synced: the contents of a directory after power loss.

Operations are carried out in a real folder and recorded. ``after_power_loss`` writes what a disk
may hold then into another folder. Bytes are durable once ``sync`` of their file returned, names
once ``sync_dir`` of their folder did. Of everything else any part may have reached the disk, in any
order, so a chooser decides: whether an unsynced name is there, and of an unsynced file how much.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cache.filesystem import PosixFilesystem
from cache.rows import Buffer

Chooser = Callable[[int], int]
"""A number from 0 up to its argument, that included."""


@dataclass(slots=True)
class _File:
    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


class LosingDisk(PosixFilesystem):
    """A real folder, and a record of which parts of it are durable."""

    def __init__(self, stop_at: int) -> None:
        self.calls = 0
        self.stop_at = stop_at
        self._open: dict[int, _File] = {}
        self._now: dict[str, _File | None] = {}
        """Every name as programs see it; None is a folder."""
        self._durable: dict[str, _File | None] = {}
        self._maybe: dict[str, list[_File | None]] = {}
        """What else an unsynced name may stand for after the loss: earlier and later states."""

    class Lost(BaseException):
        """The power fails: nothing runs afterwards."""

    def _count(self) -> None:
        if self.calls >= self.stop_at:
            raise self.Lost
        self.calls += 1

    def _name(self, path: str, file: _File | None) -> None:
        self._maybe.setdefault(path, []).append(file)
        self._now[path] = file

    def make_dir(self, path: str) -> None:
        self._count()
        new = not os.path.isdir(path)
        super().make_dir(path)
        if new:
            self._name(path, None)

    def create(self, path: str) -> int:
        self._count()
        fd = super().create(path)
        self._open[fd] = _File()
        self._name(path, self._open[fd])
        return fd

    def write(self, fd: int, chunk: Buffer) -> None:
        self._count()
        super().write(fd, chunk)
        self._open[fd].content += bytes(chunk)

    def sync(self, fd: int) -> None:
        self._count()
        super().sync(fd)
        self._open[fd].synced = bytes(self._open[fd].content)

    def close(self, fd: int) -> None:
        super().close(fd)
        self._open.pop(fd, None)

    def link(self, source: str, target: str) -> None:
        self._count()
        super().link(source, target)
        self._name(target, self._now[source])

    def rename(self, source: str, target: str) -> None:
        self._count()
        super().rename(source, target)
        self._name(target, self._now.pop(source))
        self._maybe.setdefault(source, [])

    def unlink(self, path: str) -> None:
        self._count()
        super().unlink(path)
        self._now.pop(path, None)
        self._maybe.setdefault(path, [])

    def sync_dir(self, path: str) -> None:
        self._count()
        super().sync_dir(path)
        for name in [one for one in {*self._now, *self._durable} if os.path.dirname(one) == path]:
            self._maybe.pop(name, None)
            if name in self._now:
                self._durable[name] = self._now[name]
            else:
                self._durable.pop(name, None)

    def after_power_loss(self, root: Path, target: Path, choose: Chooser) -> None:
        """Write into ``target`` what may be left of ``root``."""
        target.mkdir()
        left: dict[str, _File | None] = dict(self._durable)
        for name, states in self._maybe.items():
            pick = choose(len(states) + 1)
            if pick < len(states):
                left[name] = states[pick]
            elif pick == len(states):
                left.pop(name, None)
        for name in sorted(left):
            where = target / os.path.relpath(name, root)
            if not where.parent.is_dir():
                continue  # a name in a folder that is not there
            file = left[name]
            if file is None:
                where.mkdir(exist_ok=True)
            elif not where.is_dir():
                where.write_bytes(_left_of(file, choose))


def _left_of(file: _File, choose: Chooser) -> bytes:
    """The synced bytes, and of later ones none, some, or zeros of the right length."""
    later = bytes(file.content[len(file.synced) :])
    match choose(2):
        case 0:
            return file.synced
        case 1:
            return file.synced + bytes(len(later))
        case _:
            return file.synced + later[: choose(len(later))]
