"""Facts about a row or a namespace, as values that messages carry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowFacts:
    """One row of the index; sizes in bytes, positions in tokens."""

    key: bytes
    parent: bytes
    root: bytes
    start: int
    n_tokens: int
    row_bytes: int
    reason: str
    tiers: tuple[tuple[str, int | None], ...]
    """Tiers that hold a copy, fastest first, and its arena offset in the ram tier."""
    leases: int
    superseded: bool
    """A longer sibling contains all of its tokens."""


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """The rows of one namespace (a model with its settings)."""

    root: bytes
    rows: int
    sample: RowFacts | None
    """A row at its start, whose head names the model; ``None`` if no first block is stored."""
