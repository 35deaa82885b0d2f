"""Finds the longest stored prefix, and the reason why it ends there. Only reads the table.

The rows form a radix tree: a node is a key, its children are the rows naming it as parent. Only
full blocks have children. The search descends full blocks by chain key, comparing the tokens too,
and then takes among all children of the deepest node the one with the longest common token prefix.
The children of a node are sorted by their token bytes; in a sorted list the longest common prefix
with any query is at one of the two neighbours of its insertion point, so 10,000 children cost one
search down a tree.
"""

from __future__ import annotations

from typing import Final

from cache import siblings
from cache.answers import Miss, MissReason
from cache.keys import child_key
from cache.nodes import NIL
from cache.table import RowTable
from cache.tokens import TIP, TOKEN_BYTES, common_prefix, count, cut, pack

TIP_MARK: Final = pack([TIP])


def descend(table: RowTable, root: bytes, tokens: bytes) -> tuple[list[int], bytes]:
    """The stored full blocks that ``tokens`` begins with, and the key of the last (or the root)."""
    nodes, step = table.nodes, table.block_tokens * TOKEN_BYTES
    path: list[int] = []
    tip, end = root, len(tokens) - step
    for at in range(0, end + 1, step):
        block = tokens[at : at + step]
        key = child_key(tip, block)
        row = table.find(key)
        if not row or nodes.tokens(row) != block or nodes.start[row] * TOKEN_BYTES != at:
            break
        path.append(row)
        tip = key
    return path, tip


def longest(table: RowTable, root: bytes, tokens: bytes) -> tuple[list[int], int]:
    """The rows that hold the longest stored prefix, first block first, and its tokens."""
    path, _ = descend(table, root, tokens)
    at = len(path) * table.block_tokens
    node = path[-1] if path else table.nodes.find(root)
    rest = cut(tokens, at, at + table.block_tokens)
    tip = tip_child(table, node, at, rest)
    if tip:
        return [*path, tip], at + n_used_of_tip(table, tip, rest)
    child, shared = best_child(table, node, at, rest)
    return ([*path, child], at + shared) if child else (path, at)


def n_used_of_tip(table: RowTable, tip: int, rest: bytes) -> int:
    """Tokens of ``rest`` that a tip stands for, its mark among them if ``rest`` begins with it."""
    return table.nodes.n_tokens[tip] - (not rest.startswith(TIP_MARK))


def best_child(table: RowTable, parent: int, start: int, rest: bytes) -> tuple[int, int]:
    """The child of ``parent`` that shares the most tokens with ``rest``, and how many."""
    best, longest = NIL, 0
    if not rest:
        return best, longest
    for row in siblings.around(table.nodes, parent, rest):
        if row and table.nodes.start[row] == start:
            shared = common_prefix(table.nodes.tokens(row), rest)
            size = table.nodes.row_bytes
            # On a tie the larger row: it may also carry the logits of the prompt's last position.
            if shared > longest or (best and shared == longest and size[row] > size[best]):
                best, longest = row, shared
    return best, longest


def tip_child(table: RowTable, parent: int, start: int, rest: bytes) -> int:
    """The longest child that is a tip, and whose tokens behind its mark ``rest`` begins with.

    ``rest`` may begin with the mark itself; NIL if there is none.
    """
    nodes = table.nodes
    asked = rest if rest.startswith(TIP_MARK) else TIP_MARK + rest
    _, equal = siblings.around(nodes, parent, asked)
    if equal and nodes.tokens(equal) == asked and nodes.start[equal] == start:
        return equal
    shorter = siblings.beginnings(nodes, parent, asked)
    return next((row for row in shorter if nodes.start[row] == start), NIL)


def whole_child(table: RowTable, parent: bytes, start: int, rest: bytes) -> tuple[int, int]:
    """The longest child of ``parent`` that ``rest`` begins with: probes each length by key."""
    for stop in range(count(rest), 0, -1):
        row = table.find(child_key(parent, cut(rest, 0, stop)))
        if row and table.nodes.start[row] == start:
            return row, stop
    return NIL, 0


def ancestors(table: RowTable, key: bytes) -> list[int] | None:
    """The whole chain that ends in ``key``, first block first; None if a row of it is missing."""
    nodes = table.nodes
    row = table.find(key)
    if not row:
        return None
    path = [row]
    while (before := nodes.parent[row]) != nodes.root[row]:
        follows = nodes.start[before] + nodes.n_tokens[before] == nodes.start[row]
        if not nodes.copies[before] or not follows:
            return None
        path.append(before)
        row = before
    path.reverse()
    return path


def explain(table: RowTable, root: bytes, tip: int, child: int, shared: int, at: int) -> Miss:
    """Why a match ends at ``at``: ``child`` is the nearest row there, ``shared`` what it shares."""
    nodes = table.nodes
    if not table.n_rows:
        return Miss(MissReason.EMPTY_CACHE, at)
    if nodes.find(root) not in table.roots:
        return Miss(MissReason.NO_SUCH_NAMESPACE, at)
    if not child:
        reason = MissReason.DIVERGES if nodes.child[tip] else MissReason.NOT_STORED
        return Miss(reason, at)
    if shared > at - nodes.start[child]:
        return Miss(MissReason.NOT_CUTTABLE, at)
    is_whole = shared == nodes.n_tokens[child]
    return Miss(MissReason.NOT_STORED if is_whole else MissReason.DIVERGES, at)


def chain_of(table: RowTable, key: bytes) -> tuple[list[int], int] | None:
    """The stored chain whose first tokens end with this key, and how many; None: not stored.

    A key that no row has may be that of a tail which a longer row contains (``cache.finish_keys``).
    """
    path = ancestors(table, key)
    if path is not None:
        return path, table.nodes.start[path[-1]] + table.nodes.n_tokens[path[-1]]
    tail = table.finish_keys.get(key)
    if tail is None:
        return None
    before = [] if not tail.start else ancestors(table, tail.parent)
    if before is None:
        return None
    child, shared = best_child(table, table.nodes.find(tail.parent), tail.start, tail.tokens)
    return ([*before, child], tail.end) if shared == tail.n_tokens else None
