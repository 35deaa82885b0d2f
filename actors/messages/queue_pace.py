"""How soon a queue that is full has a place again, by how fast its requests ended lately. Pure."""

from __future__ import annotations

from typing import Final

from actors.messages.finish_reasons import FailureFacts

LEAST_S: Final = 1.0
"""Also where nothing is known yet."""
MOST_S: Final = 60.0
WEIGHT: Final = 1 / 8
"""Of the latest interval in the average: requests that run together end in bursts."""


class QueuePace:
    """The average interval between ends of requests, while there were some.

    Times are seconds on any one clock, passed in.
    """

    def __init__(self) -> None:
        self._average_s = 0.0
        self._n_ended = 0
        self._since: float | None = None
        """The last end, or the first arrival after an idle time; ``None`` while it is idle."""

    def arrived(self, now: float) -> None:
        """A request has come."""
        if self._since is None:
            self._since = now

    def ended(self, now: float, *, is_busy: bool) -> None:
        """A request has ended; ``is_busy``: others are left."""
        if self._since is not None:
            self._n_ended += 1
            weight = max(WEIGHT, 1 / self._n_ended)
            self._average_s += weight * (now - self._since - self._average_s)
        self._since = now if is_busy else None

    def retry_after_s(self, now: float) -> float:
        """Seconds until a place is likely to be free.

        One interval; longer where none has ended for longer than that.
        """
        waited_s = 0.0 if self._since is None else now - self._since
        return min(MOST_S, max(LEAST_S, self._average_s, waited_s))

    def facts(self, now: float) -> FailureFacts:
        """What a caller is answered whose request found the queue full."""
        return FailureFacts(retry_after_s=self.retry_after_s(now))
