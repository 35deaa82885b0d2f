"""A running completion in asyncio code: iterate with ``async for``, cancel, or leave it.

What comes while it is not read is kept with it: at most its reply. A reader that falls behind by
``supervision.loop_endpoint.MAX_UNREAD`` messages has its request cancelled, and gets all that
came before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runtime.client.reply import Reply
from runtime.client.results import Event
from runtime.client.stream import RequestHandle

if TYPE_CHECKING:
    from runtime.client.diverted import TokenSink


class AsyncStream:
    """Events of one request, the last one a ``CompletionEvent``.

    The request is sent by the first step. Leaving it early, by ``aclose``, ``async with``, the end
    of the task or just by dropping it, cancels what still runs; so does ``cancel``, but then the
    stream yields what there is and a completion with the reason ``cancelled``.

    >>> async with node.stream("demo", "Once upon a time") as events:       # doctest: +SKIP
    ...     async for event in events:
    ...         if isinstance(event, TokenEvent):
    ...             print(event.text, end="")
    """

    def __init__(self, reply: Reply, handle: RequestHandle) -> None:
        self._reply = reply
        self._handle = handle
        reply.on_accepted = handle.accepted

    @property
    def request_id(self) -> str | None:
        """None until the node has accepted the request."""
        return self._handle.request_id

    def cancel(self) -> None:
        """End the request; returns at once. To be called on the loop."""
        self._reply.require_own()
        self._handle.cancel()

    def continue_after(self, events: Iterable[Event]) -> None:
        """Yield only what comes after these events, which an earlier reader has received.

        Before the first step. For a process that continues the stream of one that has died: the
        same request with the same seed, whose first part is known.
        """
        self._reply.restore(events)

    def ready(self) -> list[Event]:
        """What has come besides the event that the last step returned; waits for nothing.

        For a reader that shows several tokens at once where they come faster than it reads. What is
        no token may be left to the next step; the completion always is.
        """
        self._reply.require_own()
        return self._reply.ready()

    def divert(self, sink: TokenSink) -> None:
        """Show tokens by ``sink`` instead of by the next step, as long as it waits.

        To be called before each step for which that is wanted; does nothing before the first.
        """
        self._reply.divert(sink)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._reply.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Leave it; what still runs is cancelled."""
        self._reply.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reply.leave()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self._reply.leave()
