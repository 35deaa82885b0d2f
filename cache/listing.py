"""Reads the table of rows for administration: pages, one row, its children, the namespaces.

The work of each call is bounded by its arguments, so that the owner of the index may answer between
two lookups, whatever the size of the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cache import siblings
from cache.facts import NamespaceFacts, RowFacts
from cache.nodes import REASON
from cache.rows import SaveReason

if TYPE_CHECKING:
    from cache.table import RowTable

SLOTS_PER_SCAN: Final = 4096  # visited in well under a millisecond when they are empty


def scan(table: RowTable, cursor: int, limit: int) -> tuple[list[RowFacts], int]:
    """Up to ``limit`` rows from ``cursor`` (0: the beginning), and the next cursor, 0 at the end.

    Rows added or removed meanwhile may be missed; every other row is returned once. A page may be
    empty although more follow: each call visits a bounded part of the table.
    """
    found: list[RowFacts] = []
    copies = table.nodes.copies
    end = min(len(copies), cursor + SLOTS_PER_SCAN)
    while cursor < end and len(found) < limit:
        if copies[cursor]:
            found.append(_facts(table, cursor))
        cursor += 1
    return found, cursor if cursor < len(copies) else 0


def facts(table: RowTable, key: bytes) -> RowFacts | None:
    """The row with this key, or None."""
    at = table.find(key)
    return _facts(table, at) if at else None


def children(table: RowTable, key: bytes) -> list[bytes]:
    """Keys of the rows that continue this one (or this root), in the order of their tokens."""
    nodes = table.nodes
    at = nodes.find(key)
    return [nodes.key(child) for child in siblings.of(nodes, at)] if at else []


def namespaces(table: RowTable) -> list[NamespaceFacts]:
    """Every namespace with rows. There are as many as models and settings: few."""
    found = []
    for at, rows in table.roots.items():
        first = next(siblings.of(table.nodes, at), None)
        sample = None if first is None else _facts(table, first)
        found.append(NamespaceFacts(table.nodes.key(at), rows, sample))
    return found


def _facts(table: RowTable, at: int) -> RowFacts:
    nodes = table.nodes
    held = ((tier.name, tier.location(at)) for tier in table.tiers.values() if tier.holds(at))
    return RowFacts(
        nodes.key(at),
        nodes.key(nodes.parent[at]),
        nodes.key(nodes.root[at]),
        nodes.start[at],
        nodes.n_tokens[at],
        nodes.row_bytes[at],
        SaveReason(nodes.mark[at] & REASON).name.lower(),
        tuple(held),
        table.leases.get(at, 0),
        table.is_superseded(at),
    )
