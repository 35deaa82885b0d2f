"""Tokens of a reply on the shortest way to what shows them.

A task that reads a stream is woken for each message. While a reply is generated nearly all of them
are tokens, and waking takes longer than showing them. So a reader on an event loop may give a
``TokenSink`` before it waits: tokens are handed to that as they are read from the socket, and the
reader goes on waiting. The first message that is no token, and the first token that the sink cannot
show now, ends this: they and what follows are for the reader, until it gives the sink again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from actors.messages import TokensDelivered
from runtime.client.received import PartMissing
from runtime.client.results import TokenEvent

if TYPE_CHECKING:
    from runtime.client.reply import Progress


class TokenSink(Protocol):
    """Shows tokens of one reply while its reader waits. No method may raise."""

    def is_open(self) -> bool:
        """Whether it can show something now."""

    def add(self, event: TokenEvent) -> None:
        """The next tokens."""

    def flush(self) -> None:
        """Nothing more has come; after one or several ``add``."""


class DivertedTokens:
    """What a ``supervision.loop_endpoint.Box`` has of a sink for the tokens of a reply."""

    def __init__(self, progress: Progress, sink: TokenSink) -> None:
        self._progress = progress
        self._sink = sink
        self.flush: Callable[[], None] = sink.flush

    def take(self, message: object) -> bool:
        """Count and show it; False where the reader has to see it."""
        progress = self._progress
        if type(message) is not TokensDelivered or progress.is_interrupted:
            return False
        if not self._sink.is_open():
            return False
        try:
            event = progress.received.take(message)
        except PartMissing:  # the reader meets it again, and recovers
            return False
        if event is not None:
            progress.has_new(event.index)
            self._sink.add(event)
        return True
