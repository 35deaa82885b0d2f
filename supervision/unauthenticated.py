"""The waiting room of an endpoint: connections whose other side has not proved itself yet.

It has a bounded number of places, and nobody stays long. What strangers do costs a counter and, at
most every few seconds, a line in the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from supervision.link import Link

MAX_UNAUTHENTICATED: Final = 256
AUTHENTICATION_S: Final = 5.0
"""Time to prove oneself, in both directions."""
_LOG_EVERY_S: Final = 10.0
_LOG: Final = logging.getLogger("supervision.transport")


class Unauthenticated:
    """Links that are not proved yet, oldest first; our own to others too."""

    def __init__(self) -> None:
        self.turned_away = 0
        """Connections closed because of what came on them, or did not come."""
        self._links: dict[int, Link] = {}
        self._unlogged = 0
        self._last = ""
        self._log_at = 0.0
        """No line before this time."""

    def add(self, link: Link) -> None:
        """A new connection."""
        self._links[link.fd] = link

    def remove(self, link: Link) -> None:
        """It is proved, or gone."""
        self._links.pop(link.fd, None)

    def surplus(self) -> Link | None:
        """The one to turn away before another may come; the oldest if there is no place left."""
        return next(iter(self._links.values())) if len(self._links) >= MAX_UNAUTHENTICATED else None

    def oldest(self) -> Link | None:
        """Who has been here longest."""
        return next(iter(self._links.values()), None)

    def overdue(self, now: float) -> Iterator[Link]:
        """Those whose time is over."""
        for link in list(self._links.values()):
            if now - link.since < AUTHENTICATION_S:
                return
            yield link

    def due_at(self) -> float | None:
        """When something is to be done here next."""
        oldest = self.oldest()
        due = [] if oldest is None else [oldest.since + AUTHENTICATION_S]
        if self._unlogged:
            due.append(self._log_at)
        return min(due, default=None)

    def log_refusal(self, why: str) -> None:
        """One was turned away."""
        self.turned_away += 1
        self._unlogged += 1
        self._last = why
        self.log(time.monotonic())

    def log(self, now: float) -> None:
        """Write the line that is due."""
        if not self._unlogged or now < self._log_at:
            return
        if _LOG.hasHandlers():  # a host that set up no logging is left in peace
            _LOG.warning("turned away %s connections; the last one: %s", self._unlogged, self._last)
        self._unlogged = 0
        self._log_at = now + _LOG_EVERY_S


def silence_of(link: Link) -> str:
    """What to log_refusal of in one whose time is over."""
    said = "half a hello" if link.session.has_spoken else "nothing"
    return f"said {said} in {AUTHENTICATION_S:.0f} s"
