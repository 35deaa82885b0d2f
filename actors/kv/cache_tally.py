"""What the cache did for requests, summed up: plain numbers that only grow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from actors.messages import Completed


@dataclass(slots=True)
class LookupTimes:
    """How long cache_meta takes for the questions of models, whatever they find."""

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


@dataclass(slots=True)
class SaveTimes:
    """What a model copied into the arena, and how long its engine was held up by it."""

    rows: int = 0
    nbytes: int = 0
    total_ns: int = 0
    slowest_ns: int = 0

    def note(self, nbytes: int, took_ns: int) -> None:
        self.rows += 1
        self.nbytes += nbytes
        self.total_ns += took_ns
        self.slowest_ns = max(self.slowest_ns, took_ns)

    def figures(self) -> dict[str, float]:
        return {
            "saved_rows": self.rows,
            "saved_bytes": self.nbytes,
            "saved_ms": round(self.total_ns / 1e6, 3),
            "saved_ms_slowest": round(self.slowest_ns / 1e6, 3),
        }


@dataclass(slots=True)
class CacheTally:
    """Told of every finished request; ``report`` goes into the model's status."""

    kv_bytes_per_token: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    """By hit kind."""
    misses: dict[str, int] = field(default_factory=dict)
    """By reason, without its detail."""
    restored: dict[str, dict[str, float]] = field(default_factory=dict)
    """By the slowest tier that a request read."""
    lookups: int = 0
    lookup_ms: float = 0.0
    last: dict[str, object] | None = None
    """Of the request that ended last: its hit kind, its source, and how many tokens were warm."""

    def note(self, done: Completed) -> None:
        report = done.cache
        self.last = {
            "hit": report.hit.value,
            "source": report.source,
            "cached_tokens": done.usage.cached_tokens,
        }
        self.hits[report.hit.value] = self.hits.get(report.hit.value, 0) + 1
        if report.miss_reason is not None:
            reason = report.miss_reason.partition(":")[0]
            self.misses[reason] = self.misses.get(reason, 0) + 1
        if report.lookup_ms:
            self.lookups += 1
            self.lookup_ms += report.lookup_ms
        if done.usage.cached_tokens:
            empty = {"requests": 0, "tokens": 0, "bytes": 0, "ms": 0.0}
            sums = self.restored.setdefault(report.source, empty)
            sums["requests"] += 1
            sums["tokens"] += done.usage.cached_tokens
            sums["bytes"] += done.usage.cached_tokens * self.kv_bytes_per_token
            sums["ms"] += report.restore_ms

    def report(self) -> dict[str, Any]:
        return {
            "last": self.last,
            "hits": dict(self.hits),
            "misses": dict(self.misses),
            "lookups": self.lookups,
            "lookup_ms": round(self.lookup_ms, 3),
            "restored": {
                tier: {**sums, "ms": round(sums["ms"], 3)} for tier, sums in self.restored.items()
            },
        }
