"""Imports rows that tiers found into the index, in slices between which lookups are answered.

A tier over a full directory reports a hundred thousand rows within seconds. Each costs tens of
microseconds here; all of them at once would delay every request by seconds. What a tier reports
after its rows (the scan has ended, the disk takes rows again) waits behind them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from actors import messages as m
from cache.answers import Evicted, RowRequest
from cache.index import CacheIndex
from cache.text_marks import TextMarks

SLICE_S: Final = 0.002  # about what a lookup may wait for
LOOKED_AT: Final = 16  # rows between two readings of the clock
TIDIED_AT_ONCE: Final = 64  # the same for rows that are looked at when a tier changes


class RowImport:
    """The queue of what tiers found. ``then`` is called with each message when its rows are in."""

    def __init__(
        self,
        index: CacheIndex,
        dispose: Callable[[Sequence[Evicted]], None],
        then: Callable[[m.RowsFound | m.TierChanged], None],
        marks: TextMarks | None = None,
    ) -> None:
        self._index = index
        self._dispose = dispose
        self._then = then
        self._marks = marks
        self._waiting: deque[m.RowsFound | m.TierChanged] = deque()
        self._rows_done = 0  # of the first message

    @property
    def is_idle(self) -> bool:
        return not self._waiting and self._index.is_tidy

    def put(self, message: m.RowsFound | m.TierChanged) -> None:
        """Queue what a tier reports."""
        self._waiting.append(message)

    def step(self) -> None:
        """Work for about ``SLICE_S``."""
        until = time.monotonic() + SLICE_S
        while self._tidy(until) and self._waiting:
            message = self._waiting[0]
            if isinstance(message, m.RowsFound) and not self._adopt(message, until):
                return
            self._rows_done = 0
            self._waiting.popleft()
            self._then(message)

    def _tidy(self, until: float) -> bool:
        """Whether what the last message asked of all rows is done; only then the next one counts.

        Rows of a directory that came back must not be adopted while the old ones are forgotten.
        """
        while not self._index.is_tidy and time.monotonic() < until:
            self._index.tidy(TIDIED_AT_ONCE)
        return self._index.is_tidy

    def _adopt(self, found: m.RowsFound, until: float) -> bool:
        """Whether all rows of this message are in."""
        evicted: list[Evicted] = []
        now = time.monotonic()
        while self._rows_done < len(found.rows) and now < until:
            first = self._rows_done
            self._rows_done = first + LOOKED_AT
            for row in found.rows[first : self._rows_done]:
                request = RowRequest(row.identity, row.row_bytes)
                used = now - row.age_s
                evicted += self._index.adopt(now, found.tier, request, row.location, used)
                if row.ends:
                    self._index.add_finish_keys(used, request, row.ends)
                if row.marks and self._marks is not None:
                    self._marks.adopt(request.id, row.marks)
            now = time.monotonic()
        self._dispose(evicted)
        return self._rows_done >= len(found.rows)
