"""Recounts every account of the index from its contents; for tests and debugging."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from cache import siblings
from cache.errors import InvariantBroken
from cache.keys import child_key
from cache.nodes import Nodes
from cache.table import RowTable
from cache.tiers import Tier, Write


def check(
    table: RowTable, writes: list[Write], leases: Mapping[int, tuple[str, Sequence[int]]]
) -> None:
    """Raise InvariantBroken unless accounts, tree, leases and slots agree."""
    nodes = table.nodes
    pins = Counter(at for _, leased in leases.values() for at in leased)
    pins.update(write.source for write in writes if write.source)
    _require(dict(pins) == table.leases, "a row's lease count is wrong")
    _require(all(at in pins for at in table.doomed), "a doomed slab has no reader")
    rows = nodes.rows()
    _require(len(rows) == table.n_rows, "the number of rows is wrong")
    _check_tree(nodes, rows, table.roots)
    _check_contained(table)
    for tier in table.tiers.values():
        mine = [write for write in writes if write.tier is tier]
        _check_tier(table, tier, rows, mine)
        tier.queue.check_integrity()
    _check_slots(table)


def _check_tree(nodes: Nodes, rows: list[int], roots: Mapping[int, int]) -> None:
    listed = 0
    for parent in nodes.slots():
        children = list(siblings.of(nodes, parent))
        tokens = [nodes.tokens(at) for at in children]
        _require(tokens == sorted(set(tokens)), "children are not sorted or not unique")
        for at in children:
            _require(bool(nodes.copies[at]), "a child is no row")
            _require(nodes.parent[at] == parent, "a child is misplaced")
            key = child_key(nodes.key(parent), nodes.tokens(at))
            _require(key == nodes.key(at), "a key is not the hash of its row")
            for below in (nodes.left[at], nodes.right[at]):
                _require(not below or nodes.key(below) < nodes.key(at), "siblings out of balance")
        listed += len(children)
    _require(listed == len(rows), "the tree and the table disagree")
    _require(dict(roots) == dict(Counter(nodes.root[at] for at in rows)), "namespace counts")


def _check_contained(table: RowTable) -> None:
    """Marks are right, and a tier holds no tail that a longer row of the same kind contains."""
    nodes = table.nodes
    for parent in nodes.slots():
        children = list(siblings.of(nodes, parent))
        for at, following in zip_longest(children, children[1:], fillvalue=0):
            is_extended = following and nodes.tokens(following).startswith(nodes.tokens(at))
            _require(bool(is_extended) == table.is_superseded(at), "a tail is marked wrongly")
            for tier in table.tiers.values():
                stays = tier.holds(at) and table.is_evictable(at, tier) and table.is_superseded(at)
                is_needless = stays and table.is_contained(nodes.identity(at), tier)
                _require(not is_needless, f"a tail stays in {tier.name} beside a longer row")


def _check_tier(table: RowTable, tier: Tier, rows: list[int], writes: list[Write]) -> None:
    nodes = table.nodes
    doomed = [
        (location, nbytes)
        for copies in table.doomed.values()
        for place, location, nbytes in copies
        if place is tier
    ]
    held = [at for at in rows if tier.holds(at)]
    _require(len(held) == tier.rows, f"the number of rows of {tier.name} is wrong")
    claims = [(tier.location(at), tier.nbytes(at)) for at in held]
    claims += [*((write.location, write.nbytes) for write in writes), *doomed]
    used = sum(nbytes for _, nbytes in claims)
    _require(used == tier.used_bytes, f"bytes of {tier.name} are wrong")
    _require(used <= tier.capacity_bytes, f"{tier.name} is over its budget")
    pinned = sum(tier.nbytes(at) for at in held if at in table.leases)
    pinned += sum(write.nbytes for write in writes) + sum(nbytes for _, nbytes in doomed)
    _require(pinned == tier.pinned_bytes, f"pinned bytes of {tier.name} are wrong")
    children = Counter(nodes.parent[at] for at in held)
    children.update(nodes.find(write.request.id.parent) for write in writes)
    for at in held:
        is_queued = tier.queue.has(at) or not table.is_evictable(at, tier)
        _require(is_queued, f"a row of {tier.name} that may be evicted is not queued")
    counted = {at: count for at, count in enumerate(tier.n_children) if count}
    _require(dict(children) == counted, f"children counts of {tier.name} are wrong")
    if tier.arena is not None:
        tier.arena.check_integrity()
        slabs = dict(claims)
        _require(len(slabs) == len(claims), "two owners of one slab")
        for location, nbytes in slabs.items():
            is_slab = location is not None and tier.arena.slab_bytes(location) == nbytes
            _require(is_slab, "a claim without its slab")


def _check_slots(table: RowTable) -> None:
    """Every slot is found by its key, and no unused slot is kept."""
    nodes = table.nodes
    for at in nodes.slots():
        _require(nodes.find(nodes.key(at)) == at, "a key leads to another slot")
        _require(not table.is_unused(at), "an unused slot is kept")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)
