"""Looking at the table of rows without changing it: pages, one row, its children, the namespaces.

Everything here is bounded by what the caller asks for, so that whoever owns the index may answer
between two lookups, whatever the size of the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.table import RowTable
    from cache.tiers import Row


@dataclass(frozen=True, slots=True)
class RowFacts:
    """One row as the index knows it; sizes in bytes, positions in tokens."""

    key: bytes
    parent: bytes
    root: bytes
    start: int
    n_tokens: int
    row_bytes: int
    reason: str
    tiers: tuple[tuple[str, int | None], ...]
    """Who holds a copy, fastest first, and its arena offset in the ram tier."""
    leases: int
    superseded: bool
    """A longer sibling contains all of its tokens."""


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """What one namespace (a model with its settings) has stored."""

    root: bytes
    rows: int
    sample: RowFacts | None
    """A row at its start, whose head names the model; ``None`` when the first block is gone."""


def scan(table: RowTable, cursor: int, limit: int) -> tuple[list[RowFacts], int]:
    """Up to ``limit`` rows from ``cursor`` (0: the beginning), and the next cursor, 0 at the end.

    Rows that come or go meanwhile may be missed; every other row is seen once.
    """
    rows = [_facts(table, row) for row in islice(table.rows.values(), cursor, cursor + limit)]
    return rows, cursor + limit if len(rows) == limit else 0


def facts(table: RowTable, key: bytes) -> RowFacts | None:
    """The row with this key, or None."""
    row = table.rows.get(key)
    return None if row is None else _facts(table, row)


def children(table: RowTable, key: bytes) -> list[bytes]:
    """Keys of the rows that continue this one (or this root), in the order of their tokens."""
    return [row.key for row in table.children.get(key, ())]


def namespaces(table: RowTable) -> list[NamespaceFacts]:
    """Every namespace with rows. There are as many as models and settings: few."""
    found = []
    for root, rows in table.roots.items():
        first = next(iter(children(table, root)), None)
        found.append(NamespaceFacts(root, rows, None if first is None else facts(table, first)))
    return found


def _facts(table: RowTable, row: Row) -> RowFacts:
    held = (
        (tier.name, tier.held[row.key][0]) for tier in table.tiers.values() if row.key in tier.held
    )
    return RowFacts(
        row.key,
        row.parent,
        row.root,
        row.start,
        row.n_tokens,
        row.row_bytes,
        row.reason.name.lower(),
        tuple(held),
        row.leases,
        row.superseded,
    )
