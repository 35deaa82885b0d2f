"""Maintenance passes over all rows, a few rows at a time, so that lookups are answered in between.

Three events concern every row of a tier: its directory has vanished (all its copies are dropped),
its disk accepts rows again (rows of faster tiers are queued for it), its disk refuses them (rows
queued for it are queued for others). With a million rows each pass takes seconds. ``step`` does a
part of the oldest one.

In between the index is as consistent as before the event: the byte accounts agree at every instant,
a row that a vanished tier still seems to hold turns out to be missing when it is opened, and a row
that is yet to be queued for a disk is not evicted as if it had no use.
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


class Maintenance:
    """The queue of such passes. Private to the index."""

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self._waiting: deque[Callable[[int], bool]] = deque()

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def step(self, n_rows: int) -> None:
        """Continue the oldest pass by at most ``n_rows`` rows."""
        if self._waiting and self._waiting[0](n_rows):
            self._waiting.popleft()

    def forget(self, place: Tier) -> None:
        """Drop every copy in this tier."""
        self._waiting.append(_Pass(self._table, partial(self._forget, place)))

    def fill(self, place: Tier) -> None:
        """Queue all rows of less durable tiers for this one, as long as it is open."""
        place.fillings += 1
        faster = [t for t in self._table.tiers.values() if t.durability < place.durability]
        visit = _Pass(self._table, partial(self._queue_copies, faster))

        def step(n_rows: int) -> bool:
            if place.is_open and not visit(n_rows):
                return False
            place.fillings -= 1
            return True

        self._waiting.append(step)

    def hand_over(self, place: Tier) -> None:
        """Queue the rows that wait for this tier for others of its kind; ``fill`` undoes it."""
        table = self._table
        waiting = itertools.chain(place.unpersisted, place.late)
        place.unpersisted, place.late = {}, {}

        def step(n_rows: int) -> bool:
            taken = 0
            for at in itertools.islice(waiting, n_rows):
                taken += 1
                if table.nodes.copies[at] and not table.is_superseded(at):
                    table.queue_copies(at)
            return taken < n_rows

        self._waiting.append(step)

    def _forget(self, place: Tier, at: int) -> None:
        if place.holds(at):
            self._table.drop(at, place)

    def _queue_copies(self, faster: list[Tier], at: int) -> None:
        if any(tier.holds(at) for tier in faster) and not self._table.is_superseded(at):
            self._table.queue_copies(at)


class _Pass:
    """One pass over all slots, with a cursor; rows added to slots before it are not visited."""

    def __init__(self, table: RowTable, visit: Callable[[int], None]) -> None:
        self._nodes, self._visit, self._at = table.nodes, visit, 0

    def __call__(self, n_rows: int) -> bool:
        copies = self._nodes.copies
        end = min(self._at + n_rows, len(copies))
        for at in range(self._at, end):
            if copies[at]:
                self._visit(at)
        self._at = end
        return end >= len(copies)
