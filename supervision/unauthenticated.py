"""Connections of an endpoint whose other side has not authenticated yet.

Their number and their time are bounded. What they do costs a counter and, at most every few
seconds, a line in the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from supervision.link import Link

if TYPE_CHECKING:
    from logging import Logger

    from supervision.address import Address

MAX_UNAUTHENTICATED: Final = 256
AUTHENTICATION_S: Final = 5.0
"""Seconds in which a connection must be authenticated, in both directions."""
_LOG_EVERY_S: Final = 10.0


class Unauthenticated:
    """Links that are not authenticated yet, oldest first, in both directions."""

    def __init__(self) -> None:
        self.refused = 0
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
        """It is authenticated, or gone."""
        self._links.pop(link.fd, None)

    def surplus(self) -> Link | None:
        """The one to refuse before another may come; the oldest if the limit is reached."""
        return next(iter(self._links.values())) if len(self._links) >= MAX_UNAUTHENTICATED else None

    def oldest(self) -> Link | None:
        """The link that has waited longest."""
        return next(iter(self._links.values()), None)

    def overdue(self, now: float) -> Iterator[Link]:
        """Those whose time is over."""
        for link in list(self._links.values()):
            if now - link.since < AUTHENTICATION_S:
                return
            yield link

    @property
    def is_idle(self) -> bool:
        """Whether ``overdue`` and ``log`` have nothing to do, now or later."""
        return not (self._links or self._unlogged)

    def due_at(self) -> float | None:
        """When ``overdue`` or ``log`` has something to do next."""
        if self.is_idle:
            return None
        oldest = self.oldest()
        due = [] if oldest is None else [oldest.since + AUTHENTICATION_S]
        if self._unlogged:
            due.append(self._log_at)
        return min(due, default=None)

    def log_refusal(self, why: str) -> None:
        """One was refused."""
        self.refused += 1
        self._unlogged += 1
        self._last = why
        self.log(time.monotonic())

    def log(self, now: float) -> None:
        """Write the line that is due."""
        if not self._unlogged or now < self._log_at:
            return
        log = _logger()
        if log.hasHandlers():  # nothing is printed in a host that set up no logging
            log.warning("refused %s connections; the last one: %s", self._unlogged, self._last)
        self._unlogged = 0
        self._log_at = now + _LOG_EVERY_S


def silence_of(link: Link) -> str:
    """Why a connection is refused whose time is over."""
    sent = "half a hello" if link.session.has_spoken else "nothing"
    return f"sent {sent} in {AUTHENTICATION_S:.0f} s"


def log_dropped(target: Address) -> None:
    """A message to a process that reads nothing was dropped."""
    _logger().warning("%s accepts no messages; dropped one", target)


def _logger() -> Logger:
    import logging  # here: most processes log nothing of this, and a command starts without it

    return logging.getLogger("supervision.transport")
