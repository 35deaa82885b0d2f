"""A running completion, as its caller holds it: iterate, cancel, or leave it.

A stream is read by one thread; ``cancel`` and ``request_id`` are for any. In a process that is
forked while it runs, its copy raises ``ForkedProcess``, and closing that copy does nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from runtime.client.reply import Reply
from runtime.client.results import Event
from runtime.client.transport import finished
from supervision.errors import SupervisionError


class RequestHandle:
    """The id of a request, once it has one, and whether it is to be cancelled."""

    def __init__(self, cancel: Callable[[str], None]) -> None:
        """``cancel`` sends the node a cancellation of the request with an id; it may raise."""
        self._cancel = cancel
        self._lock = threading.Lock()
        self._request_id: str | None = None
        self._is_cancelled = False

    @property
    def request_id(self) -> str | None:
        """None until the node has accepted the request."""
        return self._request_id

    @property
    def is_cancelled(self) -> bool:
        """Whether ``cancel`` was called; the stream may still have to end."""
        return self._is_cancelled

    def accepted(self, request_id: str) -> None:
        """The node has it, perhaps again: after a restart it has another id."""
        with self._lock:
            self._request_id = request_id
            is_cancelled = self._is_cancelled
        if is_cancelled:
            self._send_cancel(request_id)

    def cancel(self) -> None:
        """Stop the request, whatever it is doing; one that is not accepted yet stops then."""
        with self._lock:
            if self._is_cancelled:
                return
            self._is_cancelled = True
            request_id = self._request_id
        if request_id is not None:
            self._send_cancel(request_id)

    def _send_cancel(self, request_id: str) -> None:
        with contextlib.suppress(SupervisionError):  # then it ended with its node
            self._cancel(request_id)


class CompletionStream:
    """Events of one request, the last one a ``CompletionEvent``.

    The request is sent by the first step. Closing the stream, dropping it, or leaving its ``with``
    cancels what still runs. All from one thread but ``cancel``.

    >>> with node.stream("demo", "Once upon a time") as events:             # doctest: +SKIP
    ...     for event in events:
    ...         if isinstance(event, TokenEvent):
    ...             print(event.text, end="")
    """

    def __init__(self, reply: Reply, handle: RequestHandle) -> None:
        self._reply = reply
        self._handle = handle
        reply.on_accepted = handle.accepted

    @property
    def request_id(self) -> str | None:
        """None until the node has accepted the request, which the first step waits for."""
        return self._handle.request_id

    def cancel(self) -> None:
        """End the request from any thread, also while it is queued or reads a long prompt.

        The stream still yields what there is, and a completion with the reason ``cancelled``.
        """
        self._reply.require_own()
        self._handle.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = finished(self._reply.next())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Leave it; what still runs is cancelled. Does nothing at its end."""
        self._reply.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self._reply.leave()
