"""What a client needs of a connection to a node, and the two that there are.

The client is written once, as coroutines over a ``Transport``. On an event loop that is a
``LoopTransport``, whose coroutines wait for the loop. For threads it is a ``BlockingTransport``:
its coroutines block inside and never suspend, so ``finished`` runs one to its end like a call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from supervision import Address, Connection, Entry
from supervision.node_file import NodeRecord

R = TypeVar("R")


class Replies(Protocol):
    """The messages that answer one request."""

    async def next(self) -> object:
        """The next one; sends the request first, if that was not done.

        Raises TargetDown, NodeRestarted, NoReply and other errors of ``supervision``.
        """

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        """Receive no more. ``on_late`` may be called with a first message that comes later."""


class Transport(Protocol):
    """A connection to a node."""

    @property
    def record(self) -> NodeRecord:
        """The node's own description of itself, as it was read last."""

    async def ask(self, target: str | Address, message: object, *, timeout_s: float) -> object:
        """Send, and return the answer with the same ``ref``."""

    def stream(
        self,
        target: str,
        message: object,
        *,
        idle_timeout_s: float,
        ends_at: float | None,
        any_sign: bool = False,
        on_full: Callable[[], None] | None = None,
    ) -> Replies:
        """All messages with the same ``ref``.

        ``any_sign``: whatever comes from the target's process ends a silence. ``on_full`` may be
        called when very many messages were not read.
        """

    def notify(self, target: str, message: object, *, timeout_s: float) -> None:
        """Send without an answer. May raise errors of ``supervision``."""

    async def where(self, child_id: str, *, timeout_s: float) -> Entry | None:
        """The root's entry for an actor."""

    async def directory(self) -> tuple[Entry, ...]:
        """Every entry that the root has."""

    async def pause(self, seconds: float) -> None:
        """Wait."""

    async def run(self, call: Callable[[], R]) -> R:
        """Call what may block for some milliseconds."""


def finished(work: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine over a ``BlockingTransport``."""
    try:
        work.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    work.close()
    raise RuntimeError("this client waits for an event loop; use it with await")


class BlockingTransport:
    """A ``Connection`` as a transport for threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def record(self) -> NodeRecord:
        return self._connection.record

    async def ask(self, target: str | Address, message: object, *, timeout_s: float) -> object:
        return self._connection.ask(target, message, timeout_s=timeout_s)

    def stream(
        self,
        target: str,
        message: object,
        *,
        idle_timeout_s: float,
        ends_at: float | None,
        any_sign: bool = False,
        on_full: Callable[[], None] | None = None,
    ) -> Replies:
        # A thread that does not read leaves its messages in the sockets, so it has no `on_full`.
        del any_sign, on_full
        return _BlockingReplies(
            lambda: self._connection.stream(
                target, message, idle_timeout_s=idle_timeout_s, ends_at=ends_at, until_down=True
            )
        )

    def notify(self, target: str, message: object, *, timeout_s: float) -> None:
        self._connection.tell(target, message, timeout_s=timeout_s)

    async def where(self, child_id: str, *, timeout_s: float) -> Entry | None:
        return self._connection.where(child_id, timeout_s=timeout_s)

    async def directory(self) -> tuple[Entry, ...]:
        return self._connection.directory()

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: TID251  # a host thread, not an actor; bounded by callers

    async def run(self, call: Callable[[], R]) -> R:
        return call()


class _BlockingReplies:
    def __init__(self, send: Callable[[], Iterator[object]]) -> None:
        self._send = send
        self._messages: Iterator[object] | None = None

    async def next(self) -> object:
        if self._messages is None:
            self._messages = self._send()
        return next(self._messages)

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        del on_late  # a thread that does not read receives nothing
        close = getattr(self._messages, "close", None)
        if close is not None:
            close()
