"""The children of a node, sorted by their token bytes: a treap in three columns.

Most nodes have one child, a few have thousands; both cost twelve bytes a row here, and no node has
a list of its own. The keys serve as the heap order: they are hashes, so the tree is as balanced as
one built from random numbers, and the same rows always make the same tree.
"""

from __future__ import annotations

from collections.abc import Iterator

from cache.nodes import NIL, Nodes
from cache.tokens import common_prefix, cut


def insert(nodes: Nodes, parent: int, new: int) -> tuple[int, int]:
    """Add a child; the siblings just before and after it, NIL where there is none."""
    tokens, key = nodes.tokens(new), nodes.key(new)
    left, right = nodes.left, nodes.right
    before = after = NIL
    links, link = nodes.child, parent
    at = links[link]
    while at and nodes.key(at) > key:
        if tokens < nodes.tokens(at):
            after, links = at, left
        else:
            before, links = at, right
        link = at
        at = links[link]
    links[link] = new
    # The subtree here is split at the new tokens: smaller ones to the left, larger to the right.
    lows, low = left, new
    highs, high = right, new
    while at:
        if tokens < nodes.tokens(at):
            after = highs[high] = at
            highs, high = left, at
            at = left[at]
        else:
            before = lows[low] = at
            lows, low = right, at
            at = right[at]
    lows[low] = highs[high] = NIL
    return before, after


def remove(nodes: Nodes, parent: int, old: int) -> None:
    """Remove a child and join its two subtrees."""
    tokens = nodes.tokens(old)
    left, right = nodes.left, nodes.right
    links, link = nodes.child, parent
    while (at := links[link]) != old:
        links = left if tokens < nodes.tokens(at) else right
        link = at
    low, high = left[old], right[old]
    while low and high:  # the larger key becomes the root of both: that is the heap order
        if nodes.key(low) > nodes.key(high):
            links[link] = low
            links, link = right, low
            low = right[low]
        else:
            links[link] = high
            links, link = left, high
            high = left[high]
    links[link] = low or high
    left[old] = right[old] = NIL


def around(nodes: Nodes, parent: int, tokens: bytes) -> tuple[int, int]:
    """The last child below ``tokens`` and the first one not below; NIL where there is none."""
    before = after = NIL
    at = nodes.child[parent]
    while at:
        if nodes.tokens(at) < tokens:
            before = at
            at = nodes.right[at]
        else:
            after = at
            at = nodes.left[at]
    return before, after


def of(nodes: Nodes, parent: int) -> Iterator[int]:
    """All children in the order of their tokens; the tree must not change meanwhile."""
    path: list[int] = []
    at = nodes.child[parent]
    while path or at:
        while at:
            path.append(at)
            at = nodes.left[at]
        at = path.pop()
        yield at
        at = nodes.right[at]


def beginnings(nodes: Nodes, parent: int, tokens: bytes) -> Iterator[int]:
    """The shorter children with whose tokens ``tokens`` begins, the longest first.

    Each step is one search and shortens ``tokens``, so that children in between are skipped. The
    tree must not change meanwhile.
    """
    before, _ = around(nodes, parent, tokens)
    while before:
        shared = common_prefix(nodes.tokens(before), tokens)
        if shared == nodes.n_tokens[before]:
            yield before
            tokens = nodes.tokens(before)
            before, _ = around(nodes, parent, tokens)
            continue
        # A longer beginning would lie between that child and these tokens.
        tokens = cut(tokens, 0, shared)
        before, after = around(nodes, parent, tokens)
        if after and tokens and nodes.tokens(after) == tokens:
            before = after


def extensions(nodes: Nodes, parent: int, tokens: bytes) -> Iterator[int]:
    """The longer children that begin with these tokens; they are neighbours in the order."""
    at = tokens
    while True:
        _, after = around(nodes, parent, at + b"\0")  # the first one that is above ``at``
        if not after:
            return
        at = nodes.tokens(after)
        if not at.startswith(tokens):
            return
        yield after
