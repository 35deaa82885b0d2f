"""Whether restoring is faster: speeds learned while running, and how many rows are worth reading.

Pure: times are measured by the engine thread and handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cache.policy import RestorePolicy


@dataclass(slots=True)
class Average:
    """An exponentially weighted mean; the first values count fully."""

    weight: float
    value: float = 0.0
    n: int = 0

    def add(self, value: float) -> None:
        self.n += 1
        self.value += (value - self.value) * max(self.weight, 1 / self.n)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored row that could be restored."""

    tier: str
    n_bytes: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds that a token takes."""

    prompt_token_s: float
    """Among the many of a prompt."""
    row_s: float
    """In a step of its own."""


@dataclass(slots=True)
class Rates:
    """What this model's process has measured: seconds per token computed, per byte by tier."""

    policy: RestorePolicy = field(default_factory=RestorePolicy)
    refused: int = 0
    _compute: Average = field(init=False)
    _row: Average = field(init=False)
    _tiers: dict[str, Average] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._compute = Average(self.policy.weight)
        self._row = Average(self.policy.weight)

    def record_step(self, n_tokens: int, seconds: float, *, singly: bool = False) -> None:
        """A step computed ``n_tokens``; ``singly``: each took the time of a step of its own."""
        if singly:
            self._row.add(seconds / n_tokens)
        elif n_tokens >= self.policy.min_prefill_tokens:
            self._compute.add(seconds / n_tokens)

    def speeds(self) -> Speeds | None:
        """What a token takes in either way; ``None`` until both were measured a few times."""
        if min(self._compute.n, self._row.n) < self.policy.min_samples:
            return None
        return Speeds(self._compute.value, self._row.value)

    def record_restore(self, pieces: Sequence[Piece], seconds: float) -> None:
        """These rows were restored together; rows of several tiers are attributed to none."""
        tiers = {piece.tier for piece in pieces}
        n_bytes = sum(piece.n_bytes for piece in pieces)
        n_tokens = sum(piece.n_tokens for piece in pieces)
        if len(tiers) == 1 and n_bytes and n_tokens >= self.policy.min_tokens:
            average = self._tiers.setdefault(tiers.pop(), Average(self.policy.weight))
            average.add(seconds / n_bytes)

    def worth_restoring(self, pieces: Sequence[Piece]) -> int:
        """How many of these consecutive rows to restore; the rest is faster to compute.

        All of them while too little is known, where the difference is small, and once in a while
        although it looks slower, since a busy disk may have become quick again.
        """
        best, saved = self._best(pieces)
        if saved < self.policy.min_saved_s:
            return len(pieces)
        self.refused += 1
        return len(pieces) if self.refused % self.policy.probe_every == 0 else best

    def _best(self, pieces: Sequence[Piece]) -> tuple[int, float]:
        """The fastest number of rows, and how many seconds it saves over restoring all."""
        extra = 0.0  # of restoring the rows from here to the end, over computing them
        best, saved = len(pieces), 0.0
        for index in range(len(pieces) - 1, -1, -1):
            piece = pieces[index]
            tier = self._tiers.get(piece.tier)
            is_known = tier is not None and tier.n >= self.policy.min_samples
            if tier is None or not is_known or not self._compute.n:
                break  # its cost is not known, so it and those before it are restored
            extra += piece.n_bytes * tier.value - piece.n_tokens * self._compute.value
            if extra > saved:
                best, saved = index, extra
        return best, saved

    def figures(self) -> dict[str, float]:
        """For a status report: tokens and MiB a second."""
        found = {}
        if self._compute.value:
            found["prefill_tokens_per_s"] = round(1 / self._compute.value, 1)
        for name, average in list(self._tiers.items()):
            if average.value:
                found[f"restore_mib_per_s_{name}"] = round(1 / average.value / (1 << 20), 1)
        return found
