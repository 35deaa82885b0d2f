"""Tokens from the node's socket to the client's: no task, no queue and no ASGI between them.

A stream begins, waits, fails and ends in ``Generation``. While it waits for tokens, it leaves a
``DirectTokens`` with its reply. What is read from the node in one turn of the loop is rendered by
the same renderer, noted in the same log, and written to the same transport in one write.

The reader has the stream back with the first message that is no token, and whenever the client
reads more slowly than its tokens come: then they wait in its queue, and are counted there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.client.results import TokenEvent


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes parts of the body of an answer that has begun."""

    is_open: Callable[[], bool]
    """Whether one can be written now: the client is there, and takes what is written."""
    write: Callable[[bytes], None]
    """Write one. Only while it is open."""


class DirectTokens:
    """A ``TokenSink`` that shows the tokens of one reply to an HTTP client."""

    def __init__(self, writer: Writer, render: Callable[[list[TokenEvent]], bytes]) -> None:
        """``render`` returns what is shown of events, and notes them."""
        self._writer = writer
        self._render = render
        self._events: list[TokenEvent] = []
        self._error: Exception | None = None

    def is_open(self) -> bool:
        return self._error is None and self._writer.is_open()

    def add(self, event: TokenEvent) -> None:
        self._events.append(event)

    def flush(self) -> None:
        events, self._events = self._events, []
        try:
            frames = self._render(events)
            if frames:
                self._writer.write(frames)
        except Exception as error:  # noqa: BLE001 - other streams are served in this turn too
            self._error = error

    def check(self) -> None:
        """Raises what ``flush`` has met."""
        if self._error is not None:
            raise self._error
