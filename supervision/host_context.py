"""The endpoint of a thread that is no actor: a launcher, a test, an application's thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from supervision import forks
from supervision.address import Address
from supervision.codec import ValueCodec
from supervision.endpoint import Endpoint
from supervision.errors import ForkedProcess
from supervision.link import Done, Outcome
from supervision.session import Secret

_FLUSH_S: Final = 0.5
_UNREAD_S: Final = 0.5
"""The limit for a process that is known to have ended and whose connection still stands."""


class HostContext:
    """A private endpoint. One thread at a time."""

    def __init__(self, secret: Secret, codec: ValueCodec | None = None) -> None:
        """Listens; connects to nothing yet. ``codec``: another one than that of the secret."""
        self._endpoint = Endpoint(secret, codec=codec)
        self._process = forks.here()

    @property
    def address(self) -> Address:
        """Where answers come."""
        return self._endpoint.address

    @property
    def is_own(self) -> bool:
        """Whether this process made it; in one forked from that it must not be used."""
        return forks.is_here(self._process)

    def require_own(self) -> None:
        """Raises ForkedProcess in a process that was forked from the owner."""
        if not self.is_own:
            raise ForkedProcess("this line to a node", self._process[0])

    def send(self, target: Address, message: object, timeout_s: float) -> bool:
        """Send; returns when the target's process has it, at the latest after ``timeout_s``.

        False: it certainly did not arrive. True: it arrived, or it left and what became of it is
        unknown, because the other side died or is stopped.
        """
        self.require_own()
        self._poll(0.0)  # a process that has died since the last poll has closed its connection
        outcomes: list[Outcome] = []
        outgoing = self._endpoint.send(target, message, outcomes.append, prompt=True)
        deadline = time.monotonic() + timeout_s
        while not outcomes:
            left = deadline - time.monotonic()
            if left <= 0:
                return not self._endpoint.cancel(target, outgoing)
            self._poll(left)
        return outcomes[0] is not Outcome.REFUSED

    def post(self, target: Address, message: object, done: Done | None = None) -> None:
        """Send without waiting; ``done`` is called with the outcome, from a later receive."""
        self.require_own()
        self._endpoint.send(target, message, done)

    def receive(self, timeout_s: float) -> object | None:
        """The next message for this endpoint, or None when the time is over."""
        self.require_own()
        deadline = time.monotonic() + timeout_s
        inbox = self._endpoint.inbox
        while not inbox and (left := deadline - time.monotonic()) > 0:
            self._endpoint.poll(left)
        return inbox.popleft()[1] if inbox else None

    def receive_until_closed(self, target: Address) -> Iterator[object]:
        """Every message that comes, from any process, until the connection to ``target`` has ended.

        The end of a connection is read after everything that was sent on it: waiting for it, and
        not for some time, finds what a process sent before it ended, however busy the machine is.
        """
        deadline = time.monotonic() + _UNREAD_S
        inbox = self._endpoint.inbox
        while True:
            was_open = self.is_connected(target)
            while inbox:
                yield inbox.popleft()[1]
            left = deadline - time.monotonic()
            if not was_open or left <= 0:
                return
            self._endpoint.poll(left)

    def _poll(self, timeout_s: float) -> None:
        """Wait for outcomes of what was sent, although messages may be waiting to be received."""
        waiting = list(self._endpoint.inbox)
        self._endpoint.inbox.clear()
        self._endpoint.poll(timeout_s)
        self._endpoint.inbox.extendleft(reversed(waiting))

    def is_connected(self, target: Address) -> bool:
        """Whether a connection to this address stands, as far as was read."""
        return self._endpoint.is_connected(target)

    def close(self) -> None:
        """Send what is waiting, and close every socket of this endpoint.

        In a forked process: close its copies of the sockets, and send nothing.
        """
        if not self.is_own:
            self._endpoint.abandon()
            return
        deadline = time.monotonic() + _FLUSH_S
        while self._endpoint.unwritten() and (left := deadline - time.monotonic()) > 0:
            self._poll(left)
        self._endpoint.close()
