"""The filters of ``cache ls``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The filters of ``cache ls``. Ages in seconds; None: no filter."""

    model: str | None = None
    namespace: str | None = None
    """The beginning of its hex digits."""
    tier: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    limit: int = 0
    """Rows, at least a whole page; 0: all."""
    cursor: int = 0
