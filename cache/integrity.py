"""Recounts every account of the index from its contents; for tests and suspicion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cache.errors import InvariantBroken
from cache.keys import child_key
from cache.table import RowTable
from cache.tiers import Row, Tier, Write


def check(
    table: RowTable, writes: list[Write], leases: Mapping[int, tuple[str, tuple[Row, ...]]]
) -> None:
    """Raise InvariantBroken unless accounts, tree and leases agree."""
    tiers, rows = table.tiers, table.rows
    pins: Counter[int] = Counter()
    alive: dict[int, Row] = {id(row): row for row in rows.values()}
    for _, leased in leases.values():
        for row in leased:
            pins[id(row)] += 1
            alive[id(row)] = row
    for write in writes:
        if write.source is not None:
            pins[id(write.source)] += 1
            alive[id(write.source)] = write.source
    for ident, row in alive.items():
        _require(row.leases == pins[ident], "a row's lease count is wrong")
        _require(row.leases > 0 or not row.doomed, "a doomed slab has no reader")
    _check_tree(rows, table.children, table.roots)
    for row in rows.values():
        copies = sum(row.key in tier.held for tier in tiers.values())
        _require(copies == row.copies > 0, "a row's copy count is wrong")
    for tier in tiers.values():
        mine = [write for write in writes if write.tier is tier]
        _check_tier(tier, rows, mine, alive.values())


def _check_tree(
    rows: Mapping[bytes, Row], children: Mapping[bytes, list[Row]], roots: Mapping[bytes, int]
) -> None:
    listed = [row for siblings in children.values() for row in siblings]
    _require(len(listed) == len(rows), "the tree and the table disagree")
    for parent, siblings in children.items():
        _require(bool(siblings), "an empty list of children")
        tokens = [row.tokens for row in siblings]
        _require(tokens == sorted(set(tokens)), "children are not sorted or not unique")
        for row in siblings:
            _require(rows.get(row.key) is row and row.parent == parent, "a child is misplaced")
            _require(child_key(parent, row.tokens) == row.key, "a key does not prove itself")
    _require(dict(roots) == dict(Counter(row.root for row in rows.values())), "namespace counts")


def _check_tier(
    tier: Tier, rows: Mapping[bytes, Row], writes: list[Write], alive: Iterable[Row]
) -> None:
    doomed = [
        (location, nbytes)
        for row in alive
        for place, location, nbytes in row.doomed or ()
        if place is tier
    ]
    claims = [*tier.held.values(), *((w.location, w.nbytes) for w in writes), *doomed]
    used = sum(nbytes for _, nbytes in claims)
    _require(used == tier.used_bytes, f"bytes of {tier.name} are wrong")
    _require(used <= tier.capacity_bytes, f"{tier.name} is over its budget")
    pinned = sum(nbytes for key, (_, nbytes) in tier.held.items() if rows[key].leases)
    pinned += sum(write.nbytes for write in writes) + sum(nbytes for _, nbytes in doomed)
    _require(pinned == tier.pinned_bytes, f"pinned bytes of {tier.name} are wrong")
    kids = Counter(rows[key].parent for key in tier.held)
    kids.update(write.request.parent for write in writes)
    _require(dict(kids) == tier.kids, f"children counts of {tier.name} are wrong")
    if tier.arena is not None:
        tier.arena.check_integrity()
        slabs = dict(claims)
        _require(len(slabs) == len(claims), "two owners of one slab")
        for location, nbytes in slabs.items():
            is_slab = location is not None and tier.arena.slab_bytes(location) == nbytes
            _require(is_slab, "a claim without its slab")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)
