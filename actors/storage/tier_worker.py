"""What every tier and the writer share: an engine thread whose reports go to cache_meta.

A report is kept until cache_meta is up to take it: a tier may be ready before the directory lists
its neighbour, and a scan that is lost would leave the index without rows, or writing forbidden.
A scan of many files is reported no faster than cache_meta takes it: requests must not wait behind.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from actors import messages as m
from supervision import EngineWorker

if TYPE_CHECKING:
    from supervision import Entry
    from supervision.messages import Init

ROWS_PER_MESSAGE = 128  # about 45 KiB with 64-token rows
MARKS_PER_MESSAGE = 8 << 10  # bytes; few rows have any, and none has much of them
MESSAGES_UNDERWAY = 40  # more than the transport acknowledges at once (32)
MESSAGES_KEPT = 64  # about 3 MiB; a scan pauses above that
LOOK_AGAIN_S = 0.01
_LOOK_AGAIN = "report"


class TierWorker(EngineWorker):
    """Sends what its thread posts to cache_meta, in order, none lost."""

    def prepare(self, init: Init) -> None:
        super().prepare(init)
        self._unreported: deque[object] = deque()
        self._looks_again = False
        self._has_room = threading.Event()
        self._has_room.set()

    def post_paced(self, event: object) -> None:
        """From the engine thread: like ``post``, but waits while much is unsent."""
        self._has_room.wait()
        self.post(event)

    def handle_events(self, events: list[object]) -> None:
        self._unreported.extend(events)
        self._report()

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        del changed
        self._report()

    def handle_timer(self, payload: object) -> None:
        if payload == _LOOK_AGAIN:
            self._looks_again = False
            self._report()

    def _report(self) -> None:
        is_up = True  # if not, a change of the directory calls this again
        while self._unreported and is_up and self.backlog("cache_meta") < MESSAGES_UNDERWAY:
            is_up = self.tell("cache_meta", self._unreported[0])
            if is_up:
                self._unreported.popleft()
        if len(self._unreported) <= MESSAGES_KEPT:
            self._has_room.set()
        else:
            self._has_room.clear()
        if self._unreported and is_up and not self._looks_again:
            self._looks_again = True
            self.after(LOOK_AGAIN_S, _LOOK_AGAIN)


def batches(
    rows: Iterator[m.StoredRow], size: int = ROWS_PER_MESSAGE
) -> Iterator[tuple[tuple[m.StoredRow, ...], bool]]:
    """Cut a scan into messages; the last one, maybe empty, is marked."""
    batch: list[m.StoredRow] = []
    n_marks = 0
    for row in rows:
        n_marks += len(row.marks) + len(row.ends)
        if len(batch) == size or n_marks > MARKS_PER_MESSAGE:
            yield tuple(batch), False
            batch, n_marks = [], len(row.marks) + len(row.ends)
        batch.append(row)
    yield tuple(batch), True
