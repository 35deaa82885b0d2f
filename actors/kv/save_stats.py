"""What a model copied into the arena: plain numbers that only grow."""

from __future__ import annotations

from dataclasses import dataclass


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
