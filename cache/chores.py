"""Work over all rows, done a few rows at a time, so that lookups are answered in between.

Three things concern every row of a tier: its directory has vanished (no row is there any more), its
disk takes rows again (rows of faster tiers are wanted there), its disk refuses (what waited for it
goes to others). With a million rows each takes seconds. ``step`` does some of the oldest first.

In between the index is as right as it was before the news came: accounts agree at every instant, a
row that a vanished tier still seems to hold is found to be missing by whoever opens it, and a row
that waits for a disk that is being filled is not given up as if nobody wanted it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.table import RowTable
    from cache.tiers import Tier


class Chores:
    """The queue of such work. Private to the index."""

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self._waiting: deque[Callable[[int], bool]] = deque()

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def step(self, n_rows: int) -> None:
        """Look at so many rows, or fewer."""
        if self._waiting and self._waiting[0](n_rows):
            self._waiting.popleft()

    def forget(self, place: Tier) -> None:
        """Drop every copy in this tier."""
        self._waiting.append(_Pass(self._table, partial(self._forget, place)))

    def fill(self, place: Tier) -> None:
        """Want all rows of less durable tiers there, as long as it is open."""
        place.fillings += 1
        faster = [t for t in self._table.tiers.values() if t.durability < place.durability]
        look = _Pass(self._table, partial(self._want, faster))

        def step(n_rows: int) -> bool:
            if place.is_open and not look(n_rows):
                return False
            place.fillings -= 1
            return True

        self._waiting.append(step)

    def hand_over(self, place: Tier) -> None:
        """Give what waits for this tier to others of its kind; ``fill`` brings it back."""
        table = self._table
        waiting = itertools.chain(place.unpersisted, place.late)
        place.unpersisted, place.late = {}, {}

        def step(n_rows: int) -> bool:
            taken = 0
            for at in itertools.islice(waiting, n_rows):
                taken += 1
                if table.nodes.copies[at] and not table.is_superseded(at):
                    table.wanted_by(at)
            return taken < n_rows

        self._waiting.append(step)

    def _forget(self, place: Tier, at: int) -> None:
        if place.holds(at):
            self._table.drop(at, place)

    def _want(self, faster: list[Tier], at: int) -> None:
        if any(tier.holds(at) for tier in faster) and not self._table.is_superseded(at):
            self._table.wanted_by(at)


class _Pass:
    """Once over all slots, with a cursor; rows that come into slots behind it are not seen."""

    def __init__(self, table: RowTable, look: Callable[[int], None]) -> None:
        self._nodes, self._look, self._at = table.nodes, look, 0

    def __call__(self, n_rows: int) -> bool:
        copies = self._nodes.copies
        end = min(self._at + n_rows, len(copies))
        for at in range(self._at, end):
            if copies[at]:
                self._look(at)
        self._at = end
        return end >= len(copies)
