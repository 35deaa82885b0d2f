"""A running completion, as its caller holds it: iterate, cancel, or leave it.

A stream is read by one thread; ``cancel`` and ``request_id`` are for any. In a process that is
forked while it runs, its copy raises ``ForkedProcess``, and closing that copy does nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self

from runtime import errors
from runtime.client.results import Event, ResumedEvent
from supervision import forks
from supervision.errors import SupervisionError


class RequestHandle:
    """Which request it is, as soon as that is known, and whether it is to be cancelled."""

    def __init__(self, cancel: Callable[[str], None], timeout_s: float | None = None) -> None:
        """``cancel`` tells the node to stop the request of an id; it may raise."""
        self.timeout_s = timeout_s
        self._ends_at: float | None = None
        self._cancel = cancel
        self._lock = threading.Lock()
        self._request_id: str | None = None
        self._is_cancelled = False

    def start_clock(self) -> float | None:
        """When the caller's time is over, on the monotonic clock; it begins with the first call."""
        if self._ends_at is None and self.timeout_s is not None:
            self._ends_at = time.monotonic() + self.timeout_s
        return self._ends_at

    @property
    def request_id(self) -> str | None:
        """None until the node has accepted the request."""
        return self._request_id

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked for it; the stream may still have to end."""
        return self._is_cancelled

    def accepted(self, request_id: str) -> None:
        """The node has it, perhaps for another time: after a restart it has another id."""
        with self._lock:
            self._request_id = request_id
            is_cancelled = self._is_cancelled
        if is_cancelled:
            self._tell(request_id)

    def cancel(self) -> None:
        """Stop the request, whatever it is doing; one that is not accepted yet stops then."""
        with self._lock:
            if self._is_cancelled:
                return
            self._is_cancelled = True
            request_id = self._request_id
        if request_id is not None:
            self._tell(request_id)

    def _tell(self, request_id: str) -> None:
        with contextlib.suppress(SupervisionError):  # then it ended with its node
            self._cancel(request_id)


class CompletionStream:
    """Events of one request, the last one a ``CompletionEvent``.

    The request is sent by the first step. Closing the stream, dropping it, or leaving its ``with``
    cancels what still runs. All from one thread but ``cancel``.
    """

    def __init__(self, events: Generator[Event, None, None], handle: RequestHandle) -> None:
        self._events = events
        self._handle = handle
        self._read_by: forks.Mark | None = None

    @property
    def request_id(self) -> str | None:
        """None until the node has accepted the request, which the first step waits for."""
        return self._handle.request_id

    def start_clock(self) -> float | None:
        """Let ``timeout_s`` begin before the first step, which waits for something else.

        When it is over, on the monotonic clock; None without a limit.
        """
        return self._handle.start_clock()

    def cancel(self) -> None:
        """End the request from any thread, also while it is queued or reads a long prompt.

        Its reader gets what there is, and a completion that says ``cancelled``.
        """
        self.require_own()
        self._handle.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        self.require_own()
        self._read_by = forks.here()
        return next(self._events)

    def close(self) -> None:
        """Leave it; what still runs is cancelled. Does nothing at its end."""
        if self._is_own:
            self._events.close()

    @property
    def _is_own(self) -> bool:
        """Whether it was begun here, or not yet; a copy in a forked child is not."""
        return self._read_by is None or forks.is_here(self._read_by)

    def require_own(self) -> None:
        """Raises ForkedProcess in a process that was forked after it was begun."""
        if not self._is_own:
            pid = self._read_by[0] if self._read_by else 0
            raise errors.ForkedProcess(
                f"this stream was begun in process {pid}, from which this one was forked; "
                "send the request again in this process"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def without_resumed(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """All but what only those want to hear who asked for it; closing this closes ``events``."""
    try:
        for event in events:
            if not isinstance(event, ResumedEvent):
                yield event
    finally:
        events.close()
