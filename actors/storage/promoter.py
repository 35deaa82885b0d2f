"""Copies rows of slower tiers into the arena, on ram_tier's thread, which may block on a disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from actors import messages as m
from actors.storage.tier_writer import copy_failed
from cache.answers import RAM
from cache.arena import SlabWriter
from cache.errors import CacheError, NoArenaSpace
from cache.filesystem import Filesystem
from cache.publish import read_row, row_path
from cache.rows import row_meta, row_payload


class Promoter:
    """Writes slabs that cache_meta has reserved. The counters may be read from another thread."""

    def __init__(
        self,
        arena_path: str,
        roots: Mapping[str, str],
        files: Filesystem,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._arena_path = arena_path
        self._roots = dict(roots)
        self._files = files
        self._clock = clock
        self._rows = self._bytes = self._failures = 0
        self._busy_s = self._last_ms = 0.0

    def promote_all(self, order: m.PromoteRows) -> m.RowsPromoted:
        """Copy rows, one after the other."""
        outcomes = [(row.key, self.promote(row)) for row in order.rows]
        return m.RowsPromoted(
            tuple(key for key, failed in outcomes if failed is None),
            tuple(failed for _, failed in outcomes if failed is not None),
        )

    def promote(self, order: m.CopyRow) -> m.CopyFailed | None:
        """Copy a file, every byte of it verified before, into its slab; returns why it failed."""
        started = self._clock()
        try:
            header, view = read_row(self._files, self._roots[order.source], order.key)
            with SlabWriter(self._arena_path, order.offset or 0, order.row_bytes) as slab:
                slab.begin(header, row_meta(view, header))
                slab.payload[:] = row_payload(view, header)
                slab.publish()
        except NoArenaSpace as error:  # the machine is short of memory; no directory has failed
            self._failures += 1
            return m.CopyFailed(order.key, RAM, order.source, str(error), False, RAM)
        except (CacheError, OSError) as error:
            self._failures += 1
            return copy_failed(order, error, order.source)
        seconds = self._clock() - started
        self._busy_s += seconds
        self._last_ms = 1e3 * seconds
        self._rows += 1
        self._bytes += order.row_bytes
        return None

    def read_ahead(self, order: m.ReadAhead) -> None:
        """Have the system read files before they are asked for; one that is gone is ignored."""
        for key in order.keys:
            with suppress(OSError):
                self._files.read_ahead(row_path(self._roots[order.tier], key))

    def status(self) -> dict[str, object]:
        """Counts, bytes and milliseconds since this process started."""
        return {
            "promoted": self._rows,
            "promoted_bytes": self._bytes,
            "promotion_failures": self._failures,
            "last_promotion_ms": round(self._last_ms, 3),
            "promoted_bytes_per_s": round(self._bytes / self._busy_s) if self._busy_s else None,
        }
