"""A response in the background as other processes read it: from its log on the shelf.

The worker that generates it logs its request, the events of its reply, and its frames. So another
worker can show it too, and the next process of this one goes on with it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

from runtime.gateway.frame_log import FrameLog
from runtime.gateway.generation import BrokenStream
from runtime.gateway.stream_log import MAX_LOG_BYTES, read_records
from supervision.shelf import ShelfClient

RUNS: Final = "gateway/run/"
"""Beginning of the names of logs on the shelf; then the worker's number, and the response's id."""
ENDS: Final = frozenset({"end", "failed"})
"""Marks of a log whose response has ended."""
LOOK_S: Final = 0.03
"""A reader in another process looks so often whether more has come."""
_ALIVE_S: Final = 1.0
_FRAME_END: Final = b"\n\n"


def run_name(number: int, name: str) -> str:
    """On the shelf."""
    return f"{RUNS}{number}/{name}"


class ShelvedRun:
    """What its log has, while that grows."""

    def __init__(self, fd: int, is_running: Callable[[], Awaitable[bool]]) -> None:
        """Closes ``fd`` at ``close``. ``is_running``: whether more may come."""
        self.log = FrameLog(MAX_LOG_BYTES)
        self.is_over = False
        self._fd = fd
        self._at = 0
        self._is_running = is_running
        self._read()

    @classmethod
    def open(
        cls, shelf: ShelfClient, number: int, name: str, is_running: Callable[[], Awaitable[bool]]
    ) -> ShelvedRun | None:
        """The log of this response; None: there is none."""
        entry = shelf.get(run_name(number, name))
        return None if entry is None or not entry.fds else cls(entry.fds[0], is_running)

    def close(self) -> None:
        """Read no more."""
        os.close(self._fd)

    async def changed(self) -> None:
        """Wait until the log has more, or all; BrokenStream: it is written no more."""
        looked_at = time.monotonic()
        while not (self.is_over or self._read()):
            await asyncio.sleep(LOOK_S)
            if time.monotonic() - looked_at > _ALIVE_S:
                looked_at = time.monotonic()
                if not (await self._is_running() or self._read()):
                    raise BrokenStream

    def _read(self) -> bool:
        """Take what has come; whether anything has."""
        records, self._at = read_records(self._fd, self._at)
        for marks, data in records:
            self.log.add(frames_in(data))
            self.is_over = self.is_over or bool(marks & ENDS)
        return bool(records)


def frames_in(data: bytes) -> list[bytes]:
    """Frames that were written one after the other."""
    return [one + _FRAME_END for one in data.split(_FRAME_END)[:-1]]
