"""Ends of sequences that went on: keys that callers hold although no row has them any more.

The end of a reply is a tail. When the conversation goes on at once, the tail is never written: the
block that contains its tokens is. But its key was given to the caller, who may come back to just
that point. Remembered are the last ``MAX_TIPS`` of them, about 450 bytes each; a node that starts
anew knows none, and then a prompt is matched by its tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cache import prefix
from cache.answers import RowRequest
from cache.table import RowTable
from cache.tokens import count

MAX_TIPS: Final = 4096


class Tips:
    """Tails by key, the latest ones. Private to the index."""

    def __init__(self, limit: int = MAX_TIPS) -> None:
        self._limit = limit
        self._known: OrderedDict[bytes, RowRequest] = OrderedDict()

    def add(self, tail: RowRequest) -> None:
        """Remember a tail that was not written."""
        self._known[tail.key] = tail
        self._known.move_to_end(tail.key)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def resolve(self, table: RowTable, key: bytes) -> tuple[list[int], int] | None:
        """The stored chain whose first tokens end with this key, and how many; None: not stored."""
        path = prefix.ancestors(table, key)
        if path is not None:
            return path, table.nodes.start[path[-1]] + table.nodes.n_tokens[path[-1]]
        tail = self._known.get(key)
        if tail is None:
            return None
        before = [] if not tail.start else prefix.ancestors(table, tail.parent)
        if before is None:
            return None
        child, shared = prefix.best_child(
            table, table.nodes.find(tail.parent), tail.start, tail.tokens
        )
        n_tokens = count(tail.tokens)
        return ([*before, child], tail.start + n_tokens) if shared == n_tokens else None
