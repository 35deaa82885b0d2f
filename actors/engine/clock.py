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
    left: float | None = None
    """When it stepped aside, while it is so."""
    aside_s: float = 0.0
    """How long it was aside, all times together."""
    aside_before_first_s: float = 0.0
    """The part of that before its first token."""

    def start(self, now: float) -> None:
        """The request leaves the queue, for the first time or again."""
        self.started = self.started or now
        self._end_aside(now)

    def deliver(self, now: float) -> None:
        """Tokens are sent to its caller."""
        self.delivered = now

    def finish(self, now: float) -> None:
        """It has its last token, or will have none."""
        self.finished = now
        self._end_aside(now)

    def step_aside(self, now: float) -> None:
        """Its sequence is free; it is in the queue again."""
        self.left = now

    def _end_aside(self, now: float) -> None:
        if self.left is not None:
            seconds, self.left = now - self.left, None
            self.aside_s += seconds
            self.aside_before_first_s += 0.0 if self.prefilled else seconds

    def prompt_done(self, now: float) -> None:
        """A token was accepted, or none is asked for; only the first call counts."""
        if not self.prefilled:
            self.prefilled = now

    def is_overdue(self, now: float) -> bool:
        """Whether its time limit has passed."""
        return self.deadline is not None and now >= self.deadline
