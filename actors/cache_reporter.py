"""What every tier and the writer share: an engine thread whose findings reach cache_meta.

A finding is kept until cache_meta is up to take it: a tier may be ready before the directory knows
of its neighbour, and a scan that is lost would leave the index without rows, or writing forbidden.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from actors import messages as m
from supervision import EngineWorker

if TYPE_CHECKING:
    from supervision import Entry
    from supervision.messages import Init

ROWS_PER_MESSAGE = 128  # about 45 KiB with 64-token rows


class CacheReporter(EngineWorker):
    """Sends what its thread posts to cache_meta, in order, none lost."""

    def prepare(self, init: Init) -> None:
        super().prepare(init)
        self._unreported: deque[object] = deque()

    def handle_events(self, events: list[object]) -> None:
        self._unreported.extend(events)
        self._report()

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        del changed
        self._report()

    def _report(self) -> None:
        while self._unreported and self.tell("cache_meta", self._unreported[0]):
            self._unreported.popleft()


def batches(
    rows: Iterator[m.StoredRow], size: int = ROWS_PER_MESSAGE
) -> Iterator[tuple[tuple[m.StoredRow, ...], bool]]:
    """Cut a scan into messages; the last one, maybe empty, is marked."""
    batch: list[m.StoredRow] = []
    for row in rows:
        if len(batch) == size:
            yield tuple(batch), False
            batch = []
        batch.append(row)
    yield tuple(batch), True
