"""What a client needs of a connection to a node, and the two that there are.

The client is written once, as coroutines over a ``Transport``. On an event loop that is a
``LoopTransport``, whose coroutines wait for the loop. For threads it is a ``BlockingTransport``:
its coroutines block inside and never suspend, so ``finished`` runs one to its end like a call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from supervision import Address, Connection, Entry
from supervision.node_file import NodeRecord

if TYPE_CHECKING:
    from supervision.loop_endpoint import Sink

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Replies(Protocol):
    """The messages that answer one request."""

    async def next(self) -> object:
        """The next one; sends the request first, if that was not done.

        Raises TargetDown, NodeRestarted, NoReply and other errors of ``supervision``.
        """

    def ready(self, kind: type[R]) -> list[R]:
        """Messages of this kind that have come already, up to the first one of another kind."""

    def divert(self, sink: Sink) -> None:
        """Hand what comes while ``next`` waits to ``sink``, until it refuses a message."""

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        """Receive no more. ``on_late`` may be called with a first message that comes later."""


class Gate(Protocol):
    """Works wait at it until another one opens it."""

    def open(self) -> None:
        """For good."""

    async def wait(self) -> None: ...


class Work(Protocol[R_co]):
    """Something to be done beside others."""

    async def run(self) -> R_co: ...

    def cancel(self) -> None:
        """End it soon, if it runs. May be called by any thread."""


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

    def gate(self) -> Gate:
        """A new one, closed."""

    async def together(self, works: Sequence[Work[R]], *, at_once: int) -> list[R]:
        """The results of works that run at the same time, begun in this order.

        The first one that raises ends the others, and its error is raised.
        """


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

    def gate(self) -> Gate:
        return _BlockingGate()

    async def together(self, works: Sequence[Work[R]], *, at_once: int) -> list[R]:
        """Each on a thread of its own, which has its own mailbox."""
        if len(works) == 1:
            return [await works[0].run()]
        from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

        with ThreadPoolExecutor(min(at_once, len(works)), "llama-actors") as pool:
            futures = [pool.submit(_finished_work, work) for work in works]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [one for one in futures if one in done and one.exception() is not None]
                if failed:
                    failed[0].result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for work in works:
                    work.cancel()
                raise
        return [one.result() for one in futures]


def _finished_work(work: Work[R]) -> R:
    return finished(_run(work))


async def _run(work: Work[R]) -> R:
    return await work.run()


class _BlockingGate:
    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        self._event.wait()


class _BlockingReplies:
    def __init__(self, send: Callable[[], Iterator[object]]) -> None:
        self._send = send
        self._messages: Iterator[object] | None = None

    async def next(self) -> object:
        if self._messages is None:
            self._messages = self._send()
        return next(self._messages)

    def ready(self, kind: type[R]) -> list[R]:  # noqa: ARG002 - a thread waits for each
        return []

    def divert(self, sink: Sink) -> None:
        del sink  # nothing comes while a thread does not read

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        del on_late  # a thread that does not read receives nothing
        close = getattr(self._messages, "close", None)
        if close is not None:
            close()
