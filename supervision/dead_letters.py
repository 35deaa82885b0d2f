"""Undeliverable messages: the sender is notified, and each is logged, at a limited rate."""

from __future__ import annotations

import logging
import time
from typing import Final

from supervision.address import Address
from supervision.messages import Addressed, WrongIncarnation

_LINE_EVERY_S: Final = 1.0
"""A stream of tokens to a process that is gone gets one line, not one per token."""
_PAIRS: Final = 256


def refusal_of(message: Addressed, actual: int | None) -> WrongIncarnation | None:
    """The answer to a message for another process; None if the message has no ``ref``."""
    ref = getattr(message.message, "ref", None)
    if not isinstance(ref, str) or not ref:
        return None
    return WrongIncarnation(ref, message.id, message.incarnation, actual)


class DeadLetterLog:
    """One line per target, type of message and second; never the content."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[float, int]] = {}
        """When the last line was written, and how many were left out since."""

    def write(self, log: logging.Logger, target: Address | str, message: object) -> None:
        """Log that this message did not reach its target."""
        kind = type(message).__name__
        key = (str(target), kind)
        now = time.monotonic()
        at, left_out = self._last.get(key, (-_LINE_EVERY_S, 0))
        if now - at < _LINE_EVERY_S:
            self._last[key] = (at, left_out + 1)
            return
        if len(self._last) >= _PAIRS:
            self._last.clear()
        self._last[key] = (now, 0)
        more = f" (and {left_out} more before)" if left_out else ""
        log.warning("not known to have arrived: a %s for %s%s", kind, target, more)
