"""When things happened to one request, in seconds on the engine's clock; 0.0 is not yet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Clock:
    """Times of one request."""

    arrived: float
    deadline: float | None = None
    started: float = 0.0
    """When it left the queue."""
    prefilled: float = 0.0
    """When its first token was chosen, or its prompt was read if it asks for none."""
    delivered: float = 0.0
    """When tokens were last sent to its caller."""
    finished: float = 0.0

    def start(self, now: float) -> None:
        """The request leaves the queue."""
        self.started = now

    def deliver(self, now: float) -> None:
        """Tokens are sent to its caller."""
        self.delivered = now

    def finish(self, now: float) -> None:
        """It has its last token, or will have none."""
        self.finished = now

    def prompt_done(self, now: float) -> None:
        """A token was accepted, or none is asked for; only the first call counts."""
        if not self.prefilled:
            self.prefilled = now

    def is_overdue(self, now: float) -> bool:
        """Whether its time limit has passed."""
        return self.deadline is not None and now >= self.deadline
