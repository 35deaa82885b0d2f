"""A transport that shows a log every byte before it is written, and that watches its peer read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import socket
from typing import Any

from runtime.gateway.stream_log import ReceivedLog, StreamLog, accepted, is_countable


class Tap:
    """In place of the transport of a connection; what is not here is the transport's own."""

    def __init__(self, transport: asyncio.Transport, stalled_s: float) -> None:
        """The connection is aborted once its peer has read nothing of what waits so long."""
        self.transport = transport
        self.log: StreamLog | None = None
        self.received: ReceivedLog | None = None
        self.lingers: Callable[[], bool] | None = None
        """Whether the connection is to be read on for a moment instead of being closed now."""
        self._write = transport.write
        self._held: list[bytes] | None = None
        self._has_ended = False
        self._stalled_s = stalled_s
        self._n_written = 0
        self._n_read = 0
        """Bytes that had left the buffer at the last look."""
        self._stall: asyncio.TimerHandle | None = None

    def write(self, data: bytes, *, is_whole: bool = False) -> None:
        """``is_whole``: it is a whole answer, and nothing else of one is on its way."""
        if self._has_ended:
            return  # refused meanwhile; an answer comes too late
        if self._held is not None:
            self._held.append(data)
            return
        if self.log is not None and self.log.is_open:
            self.log.wrote(data)
        elif self.received is not None:
            self.received.answers(self._until(len(data)) if is_whole else 0)
        self._n_written += len(data)
        self._write(data)
        if self._stall is None and self.transport.get_write_buffer_size():
            self._look_later()

    def hold(self) -> None:
        """What is written from here on is a whole answer: one write, at ``release``."""
        self._held = []

    def release(self) -> None:
        """Write what was held."""
        held, self._held = self._held, None
        if held:
            self.write(b"".join(held), is_whole=True)

    def _until(self, n_bytes: int) -> int:
        """What the kernel has accepted once it has so many bytes more; 0: it does not count."""
        sock: socket | None = self.get_extra_info("socket")
        if sock is None or not is_countable(sock):
            return 0
        return accepted(sock) + self.transport.get_write_buffer_size() + n_bytes

    def write_eof(self) -> None:
        """Nothing is written after this."""
        self.release()
        self._has_ended = True
        self.transport.write_eof()

    def close(self) -> None:
        self.release()
        if self.lingers is None or not self.lingers():
            self.transport.close()

    def lost(self) -> None:
        """The connection is gone."""
        self._held = None
        if self._stall is not None:
            self._stall.cancel()

    def _look_later(self) -> None:
        self._n_read = self._n_written - self.transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(self._stalled_s, self._look)

    def _look(self) -> None:
        """A peer that has read nothing since the last look will not."""
        self._stall = None
        n_left = self.transport.get_write_buffer_size()
        if not n_left:
            return
        if self._n_written - n_left <= self._n_read:
            self.transport.abort()
        else:
            self._look_later()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
