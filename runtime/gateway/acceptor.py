"""Accepts connections: each is on the launcher's shelf as soon as this process has it.

asyncio's own server makes a protocol some turns of the loop later; a connection that is accepted in
between would be reset when its worker is killed. So nothing but one packet to the shelf lies
between here: what a connection needs is made before it comes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Final

from runtime.gateway.connection import Arrival

ACCEPTS_PER_TURN: Final = 64
PAUSE_S: Final = 0.5
"""Without a free descriptor; connections wait in the kernel's queue."""
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts on some listening sockets of this loop until ``close``."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        prepare: Callable[[], Arrival],
        accepted: Callable[[socket.socket, Arrival], None],
    ) -> None:
        """``prepare`` makes what the next connection needs that can be continued.

        ``accepted`` is called at once with each connection.
        """
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._prepare = prepare
        self._accepted = accepted
        self._next = prepare()
        for one in self._sockets:
            one.setblocking(False)
            self._loop.add_reader(one.fileno(), self._accept, one)

    def close(self) -> None:
        """Accept no more; the sockets go on in other processes."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            self._loop.remove_reader(one.fileno())
            one.close()
        if self._next.received is not None:
            self._next.received.close()

    def _accept(self, listener: socket.socket) -> None:
        is_continued = listener.family in (socket.AF_INET, socket.AF_INET6)
        for _ in range(ACCEPTS_PER_TURN):
            arrival = self._next if is_continued else Arrival()
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._loop.remove_reader(listener.fileno())
                    self._loop.call_later(PAUSE_S, self._resume, listener)
                return
            arrival.keep(sock)
            sock.setblocking(False)
            if is_continued:
                self._next = self._prepare()
            self._accepted(sock, arrival)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._sockets:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
