"""Where a request stands among the others of its model: its class, its arrival, what it has had.

Times are seconds on the engine's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actors import messages as m
from actors.engine.room_policy import PATIENCE_S, QUANTUM_ROWS

PLACE_EVERY_S: Final = 1.0
"""A caller receives another place in the queue so often at most."""


@dataclass(slots=True)
class Turn:
    """Of one request; ``engine.room`` and ``engine.step`` change it through these methods."""

    priority: m.Priority = m.Priority.INTERACTIVE
    number: int = 0
    """Of its arrival."""
    n_rows: int = 0
    """Rows that were computed for it since it started, or came back."""
    served_at: float = 0.0
    """When it last had a step; before that, when it arrived."""
    owed: int = 0
    """Rows for which it counts as interactive, since it had waited too long."""
    has_started: bool = False
    """Whether it has had a sequence: its prompt is fixed and its reply may have begun."""
    first_cache: m.CacheReport | None = None
    """What the cache did for it when it first started; ``None`` unless it has stepped aside."""
    n_cached: int = 0
    """Tokens that were not computed then."""
    is_announced: bool = False
    """Whether its caller has received how much of its prompt is warm."""
    place: int | None = None
    """In the queue, as its caller last received it."""
    placed_at: float = 0.0
    """When that was."""

    @property
    def is_background(self) -> bool:
        """Whether it steps aside for interactive requests now."""
        return self.priority is m.Priority.BACKGROUND and not self.owed

    @property
    def rank(self) -> tuple[bool, int]:
        """Smaller is more urgent."""
        return (self.is_background, self.number)

    def arrive(self, number: int, now: float) -> None:
        """It is in the queue."""
        self.number, self.served_at = number, now

    def moves_to(self, place: int, now: float) -> bool:
        """Whether its caller is to receive its place in the queue now; then it has."""
        if place == self.place:
            return False
        if self.place is not None and now - self.placed_at < PLACE_EVERY_S:
            return False
        self.place, self.placed_at = place, now
        return True

    def announce(self) -> bool:
        """Whether its caller is to receive how much of its prompt is warm: once."""
        is_first, self.is_announced = not self.is_announced, True
        return is_first

    def start(self) -> None:
        """It has a sequence, for the first time or again."""
        self.n_rows, self.has_started = 0, True

    def had_rows(self, n_rows: int, now: float) -> None:
        """A step computed rows of it."""
        self.n_rows += n_rows
        self.owed = max(0, self.owed - n_rows)
        self.served_at = now

    def is_owed(self, now: float) -> bool:
        """Whether it has waited so long that it is no background work for a while."""
        return self.is_background and now - self.served_at >= PATIENCE_S

    def owe(self, n_rows: int) -> None:
        """It counts as interactive for a quantum behind ``n_rows`` that it has to read first."""
        self.owed = n_rows + QUANTUM_ROWS

    def step_aside(self, cache: m.CacheReport, n_cached: int) -> None:
        """Its sequence is free; what is reported of the cache is what it did the first time."""
        if self.first_cache is None:
            self.first_cache, self.n_cached = cache, n_cached
