"""Finding the longest stored prefix, and saying why it ends where it ends. Reads the table only.

The rows form a radix tree: a node is a key, its children are the rows naming it as parent. Only
full blocks have children. The search descends full blocks by chain key, comparing the tokens too,
and then takes among all children of the deepest node the one with the longest common token prefix.
The children of a node are sorted by their token bytes; in a sorted list the longest common prefix
with any query is at one of the two neighbours of its insertion point, so 10,000 children cost one
bisection.
"""

from __future__ import annotations

from bisect import bisect_left

from cache.answers import Miss, MissReason
from cache.keys import child_key
from cache.table import RowTable, by_tokens
from cache.tiers import Row
from cache.tokens import TOKEN_BYTES, common_prefix, count, cut


def descend(table: RowTable, root: bytes, tokens: bytes) -> tuple[list[Row], bytes]:
    """The stored full blocks that ``tokens`` begins with, and the key of the last (or the root)."""
    rows, step = table.rows, table.block_tokens * TOKEN_BYTES
    path: list[Row] = []
    tip, end = root, len(tokens) - step
    for at in range(0, end + 1, step):
        block = tokens[at : at + step]
        key = child_key(tip, block)
        row = rows.get(key)
        if row is None or row.tokens != block or row.start * TOKEN_BYTES != at:
            break
        path.append(row)
        tip = key
    return path, tip


def best_child(table: RowTable, parent: bytes, start: int, rest: bytes) -> tuple[Row | None, int]:
    """The child of ``parent`` that shares the most tokens with ``rest``, and how many."""
    siblings = table.children.get(parent)
    if not siblings or not rest:
        return None, 0
    at = bisect_left(siblings, rest, key=by_tokens)
    best, longest = None, 0
    for row in siblings[max(0, at - 1) : at + 1]:
        shared = common_prefix(row.tokens, rest)
        if shared > longest and row.start == start:
            best, longest = row, shared
    return best, longest


def whole_child(table: RowTable, parent: bytes, start: int, rest: bytes) -> tuple[Row | None, int]:
    """The longest child of ``parent`` that ``rest`` begins with: probes each length by key."""
    for stop in range(count(rest), 0, -1):
        row = table.rows.get(child_key(parent, cut(rest, 0, stop)))
        if row is not None and row.start == start:
            return row, stop
    return None, 0


def ancestors(table: RowTable, key: bytes) -> list[Row] | None:
    """The whole chain that ends in ``key``, first block first; None if a row of it is missing."""
    row = table.rows.get(key)
    if row is None:
        return None
    path = [row]
    while row.parent != row.root:
        before = table.rows.get(row.parent)
        if before is None or before.start + before.n_tokens != row.start:
            return None
        path.append(before)
        row = before
    path.reverse()
    return path


def explain(
    table: RowTable, root: bytes, tip: bytes, child: Row | None, shared: int, at: int
) -> Miss:
    """Why a match ends at ``at``: ``child`` is the nearest row there, ``shared`` what it shares."""
    if not table.rows:
        return Miss(MissReason.EMPTY_CACHE, at)
    if root not in table.roots:
        return Miss(MissReason.NO_SUCH_NAMESPACE, at)
    if child is None:
        reason = MissReason.DIVERGES if table.children.get(tip) else MissReason.NOT_STORED
        return Miss(reason, at)
    if shared > at - child.start:
        return Miss(MissReason.NOT_CUTTABLE, at)
    is_whole = shared == child.n_tokens
    return Miss(MissReason.NOT_STORED if is_whole else MissReason.DIVERGES, at)
