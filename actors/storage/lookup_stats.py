"""How long the lookups of cache_meta take: plain numbers that only grow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class LookupStats:
    """How long cache_meta takes for the lookups of models, whatever they find."""

    count: int = 0
    total_ns: int = 0
    slowest_ns: int = 0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        started = time.perf_counter_ns()
        yield
        took = time.perf_counter_ns() - started
        self.count += 1
        self.total_ns += took
        self.slowest_ns = max(self.slowest_ns, took)

    def status(self) -> dict[str, object]:
        return {
            "lookups": self.count,
            "lookup_ms_total": round(self.total_ns / 1e6, 3),
            "lookup_ms_slowest": round(self.slowest_ns / 1e6, 3),
        }
