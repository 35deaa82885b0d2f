"""What the cache did for requests, summed up: plain numbers that only grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.messages import Completed


@dataclass(slots=True)
class CacheStats:
    """``note`` is called with every finished request; ``report`` goes into the model's status."""

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
        if report.miss is not None:
            reason = report.miss.reason.value
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
