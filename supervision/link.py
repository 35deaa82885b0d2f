"""One connection between two endpoints: a socket, its session, and what waits on it.

A message is in one of three places: *waiting* for the other side to prove itself, in the *output*
on its way into the kernel, or *sent* and not acknowledged. Where the connection ends, that decides
what is known of it: what did not leave was certainly not received.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import itertools
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from supervision.address import Address
from supervision.session import Kind, Session

READ_BYTES: Final = 256 << 10
_SIOCOUTQNSD: Final = 0x894B
"""Asks the kernel for the bytes of a socket that it has not sent yet."""
_INT: Final = struct.Struct("i")
_PARTS: Final = 64
"""Pieces of output handed to the kernel in one call."""
_LAZY_ACK: Final = 32
"""So many messages whose senders do not wait are acknowledged together."""


class Outcome(enum.Enum):
    """The outcome of a message."""

    ARRIVED = "arrived"
    """The other process has it."""
    REFUSED = "refused"
    """It is known to be undelivered: it did not leave, or it was not read and never will be."""
    UNKNOWN = "unknown"
    """It left, and the connection ended before it was acknowledged."""


Done = Callable[[Outcome], None]


@dataclass(slots=True, eq=False)
class Outgoing:
    """One message on its way."""

    payload: bytes
    done: Done | None
    prompt: bool
    """Whether its sender waits for the acknowledgement."""
    left: bool = False
    """Whether the kernel has all of it."""


class Link:
    """One connection. The endpoint that owns it reads, writes and registers it."""

    def __init__(
        self, sock: socket.socket, session: Session, peer: Address | None, now: float
    ) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.session = session
        self.peer = peer
        self.since = now
        self.events = 0
        """What it is registered for with epoll."""
        self.connected = peer is None
        """Whether the TCP connection stands; true from the start where it was accepted."""
        self.tries = 1
        self.waiting: deque[Outgoing] = deque()
        self._output: deque[tuple[bytes, Outgoing | None]] = deque()
        self._written = 0
        """Bytes of the first output that the kernel has already."""
        self._sent: deque[Outgoing] = deque()
        """Sealed and not acknowledged, in order."""
        self._acked = 0
        self._ack_due = 0
        """Messages that came and were not acknowledged."""
        self.unwritten_bytes = 0
        """Of messages that the kernel does not have yet."""

    @property
    def unaccepted(self) -> int:
        """Messages that the other side has not acknowledged."""
        return len(self.waiting) + len(self._sent)

    @property
    def unwritten(self) -> int:
        """Messages that the kernel does not have yet."""
        return len(self.waiting) + sum(1 for _, one in self._output if one is not None)

    @property
    def owes_ack(self) -> bool:
        """Whether messages came that were not acknowledged."""
        return self._ack_due > 0

    @property
    def wanted_events(self) -> int:
        """The events to register this connection for."""
        wants_write = bool(self._output) or not self.connected
        return select.EPOLLIN | (select.EPOLLOUT if wants_write else 0)

    # ── out ──────────────────────────────────────────────────────────────────

    def put(self, message: Outgoing) -> None:
        """Queue a message; ``flush`` sends it."""
        self.unwritten_bytes += len(message.payload)
        if self.session.is_open:
            self._seal(message)
        else:
            self.waiting.append(message)

    def opened(self) -> None:
        """The other side has proved itself: what waited may go."""
        while self.waiting:
            self._seal(self.waiting.popleft())

    def _seal(self, message: Outgoing) -> None:
        if self._ack_due:
            self.put_ack()  # it is sent with the message
        kind = Kind.MESSAGE_TO_ACK if message.prompt else Kind.MESSAGE
        self._output.append((self.session.seal(kind, message.payload), message))
        self._sent.append(message)

    def put_ack(self) -> None:
        """Acknowledge what has arrived."""
        self._ack_due = 0
        self._output.append((self.session.seal_ack(), None))

    def put_bye(self) -> None:
        """Acknowledge what has arrived, as the last frame: nothing later is read."""
        self._ack_due = 0
        self._output.append((self.session.seal_bye(), None))

    def flush(self) -> None:
        """Hand the kernel what it takes. Raises OSError where the connection is gone."""
        greeting = self.session.take_output()
        if greeting:
            self._output.appendleft((greeting, None))
        if not self.connected:
            return
        while self._output:
            parts = [data for data, _ in itertools.islice(self._output, _PARTS)]
            if self._written:
                parts[0] = parts[0][self._written :]
            try:
                wrote = self.socket.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                return
            self._account(wrote)

    def _account(self, wrote: int) -> None:
        self._written += wrote
        while self._output and self._written >= len(self._output[0][0]):
            data, message = self._output.popleft()
            self._written -= len(data)
            if message is not None:
                message.left = True
                self.unwritten_bytes -= len(message.payload)

    def cancel(self, message: Outgoing) -> bool:
        """Take a message back that is still waiting. False: it is on its way."""
        with contextlib.suppress(ValueError):
            self.waiting.remove(message)
            self.unwritten_bytes -= len(message.payload)
            return True
        return False

    # ── in ───────────────────────────────────────────────────────────────────

    def note_arrived(self, *, wants_ack: bool) -> None:
        """A message came."""
        self._ack_due += 1
        if wants_ack or self._ack_due >= _LAZY_ACK:
            self.put_ack()

    def note_acked(self, count: int) -> list[Outgoing]:
        """The other side has so many of our messages; those that are newly acknowledged."""
        arrived = []
        while self._acked < count and self._sent:
            self._acked += 1
            arrived.append(self._sent.popleft())
        return arrived

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether this side's kernel still has bytes that the other side's does not have.

        Those are lost when the process ends with something unread on the connection.
        """
        with contextlib.suppress(OSError):
            (unsent,) = _INT.unpack(fcntl.ioctl(self.fd, _SIOCOUTQNSD, bytes(_INT.size)))
            return int(unsent) > 0
        return False

    def note_left(self) -> list[Outgoing]:
        """The other side reads no more: the messages that it has not read."""
        unread = list(self._sent)
        self._sent.clear()
        return unread

    # ── end ──────────────────────────────────────────────────────────────────

    def close(self) -> list[tuple[Outgoing, Outcome]]:
        """Close the socket; what became of every message that was not acknowledged."""
        self.socket.close()
        lost = [(one, Outcome.UNKNOWN if one.left else Outcome.REFUSED) for one in self._sent]
        lost += [(one, Outcome.REFUSED) for one in self.waiting]
        self.waiting.clear()
        self._sent.clear()
        self._output.clear()
        return lost
