"""One file tier's way to disk: reads rows where they lie and publishes them, several at a time.

Runs on a thread of the writer, one for each tier, so that a disk that hangs delays no other tier.
Its memory is bounded: rows are written from where the arena or a faster file is mapped, and no
more are ordered at once than cache_meta allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from actors import messages as m
from cache.answers import RAM
from cache.arena import ArenaReader
from cache.errors import CacheError, TierUnavailable
from cache.filesystem import Filesystem
from cache.publish import read_row, write_rows
from cache.rows import Buffer

BATCH_ROWS = 16  # one directory sync for all of them; more rows would only wait for each other


class TierWriter:
    """Writes for one tier. The counters may be read from another thread."""

    def __init__(
        self,
        tier: str,
        roots: Mapping[str, str],
        arena_path: str | None,
        files: Filesystem,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tier = tier
        self._roots = dict(roots)
        self._arena_path = arena_path
        self._arena: ArenaReader | None = None
        self._files = files
        self._clock = clock
        self.rows = self.bytes = self.failures = self.batches = 0
        self.busy_s = self.last_ms = self.slowest_ms = 0.0

    def write(self, orders: Sequence[m.CopyRow]) -> list[m.RowCopied | m.CopyFailed]:
        """One answer per order, in order."""
        started = self._clock()
        answers: dict[bytes, m.RowCopied | m.CopyFailed] = {}
        rows: list[tuple[m.CopyRow, Buffer]] = []
        for order in orders:
            try:
                rows.append((order, self._source(order)))
            except (CacheError, OSError) as error:
                answers[order.key] = copy_failed(order, error, order.source)
        slabs = [row for _, row in rows]
        outcomes = write_rows(self._files, self._roots[self.tier], slabs, make_root=False)
        for (order, _), outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, CacheError):
                answers[order.key] = copy_failed(order, outcome, self.tier)
            else:
                answers[order.key] = m.RowCopied(order.key, self.tier)
                self.rows += 1
                self.bytes += outcome.row_bytes
        self.failures += sum(isinstance(answer, m.CopyFailed) for answer in answers.values())
        self._note(self._clock() - started)
        return [answers[order.key] for order in orders]

    def _source(self, order: m.CopyRow) -> Buffer:
        if order.source != RAM:
            return read_row(self._files, self._roots[order.source], order.key)[1]
        if self._arena is None:
            self._arena = ArenaReader(self._arena_path or "")
        return self._arena.slab(order.source_offset or 0)

    def _note(self, seconds: float) -> None:
        self.batches += 1
        self.busy_s += seconds
        self.last_ms = 1e3 * seconds
        self.slowest_ms = max(self.slowest_ms, self.last_ms)

    def status(self) -> dict[str, object]:
        """Counts, bytes and milliseconds (per batch) since this process started."""
        return {
            "rows_written": self.rows,
            "bytes_written": self.bytes,
            "failures": self.failures,
            "batches": self.batches,
            "last_batch_ms": round(self.last_ms, 3),
            "slowest_batch_ms": round(self.slowest_ms, 3),
            "bytes_per_s": round(self.bytes / self.busy_s) if self.busy_s else None,
        }


def copy_failed(order: m.CopyRow, error: Exception, where: str) -> m.CopyFailed:
    """The report of a failed copy: a storage that refuses, or a source that is no valid row."""
    if isinstance(error, TierUnavailable | OSError):
        return m.CopyFailed(order.key, order.tier, order.source, str(error), False, where)
    return m.CopyFailed(order.key, order.tier, order.source, str(error), True, None)
