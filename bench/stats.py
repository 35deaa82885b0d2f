"""Statistics of repeated measurements: medians, and pairs compared within one round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle and the range of some values, in their own unit."""

    median: float
    low: float
    high: float
    runs: int

    @property
    def spread(self) -> str:
        """The range for the note of a table row; empty for a single value."""
        return f"{self.low:.4g} to {self.high:.4g}" if self.runs > 1 else ""


def summarise(values: Sequence[float]) -> Summary:
    """ValueError when there is nothing to summarise."""
    if not values:
        raise ValueError("no run succeeded, so there is nothing to summarise")
    return Summary(median(values), min(values), max(values), len(values))


def paired_ratios(ours: Sequence[float], peers: Sequence[float]) -> list[float]:
    """``ours / peer`` round by round: a slowdown of both in a round cancels out."""
    return [our / peer for our, peer in zip(ours, peers, strict=True)]


def paired_differences(ours: Sequence[float], peers: Sequence[float]) -> list[float]:
    """``ours - peer`` round by round."""
    return [our - peer for our, peer in zip(ours, peers, strict=True)]
