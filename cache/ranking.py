"""The eviction queue: slots by rank, each at most once, in 16 bytes a row.

Ranks mostly rise (a row is used again). The queue is not updated then: the caller of ``pop``
compares with the present rank and may offer the slot again. A rank that falls is lowered in place.
"""

from __future__ import annotations

from array import array

from cache.errors import InvariantBroken
from cache.nodes import Nodes


class EvictionQueue:
    """A binary heap of slots, lowest rank first; ``float('-inf')`` is allowed."""

    def __init__(self, nodes: Nodes) -> None:
        self._heap: array[int] = array("I")
        self._place = nodes.column("I")  # 1 + position in the heap; 0: not queued
        self._rank = nodes.float_column()

    def __len__(self) -> int:
        return len(self._heap)

    def has(self, at: int) -> bool:
        """Whether a slot is queued."""
        return bool(self._place[at])

    def offer(self, at: int, rank: float) -> None:
        """Queue a slot; of two offers the lower rank counts."""
        place = self._place[at]
        if place:
            if rank < self._rank[at]:
                self._rank[at] = rank
                self._rise(place - 1, at, rank)
            return
        self._rank[at] = rank
        self._heap.append(at)
        self._rise(len(self._heap) - 1, at, rank)

    def discard(self, at: int) -> None:
        """Remove a slot, if it is queued."""
        place = self._place[at]
        if not place:
            return
        self._place[at] = 0
        last = self._heap.pop()
        if last != at:
            rank = self._rank[last]
            self._sink(place - 1, last, rank)
            self._rise(self._place[last] - 1, last, rank)

    def pop(self) -> tuple[float, int] | None:
        """The queued slot of lowest rank. It may have been freed, reused or used meanwhile."""
        heap = self._heap
        if not heap:
            return None
        first = heap[0]
        self._place[first] = 0
        last = heap.pop()
        if heap:
            self._sink(0, last, self._rank[last])
        return self._rank[first], first

    def check_integrity(self) -> None:
        """Every place is right and no slot ranks below the one above it; else InvariantBroken."""
        for place, at in enumerate(self._heap):
            above = self._heap[place - 1 >> 1] if place else at
            if self._place[at] != place + 1 or self._rank[above] > self._rank[at]:
                raise InvariantBroken("an eviction queue is out of order")
        if sum(map(bool, self._place)) != len(self._heap):
            raise InvariantBroken("an eviction queue lost a slot")

    def _rise(self, place: int, at: int, rank: float) -> None:
        heap, places, ranks = self._heap, self._place, self._rank
        while place:
            above = place - 1 >> 1
            other = heap[above]
            if ranks[other] <= rank:
                break
            heap[place] = other
            places[other] = place + 1
            place = above
        heap[place] = at
        places[at] = place + 1

    def _sink(self, place: int, at: int, rank: float) -> None:
        heap, places, ranks = self._heap, self._place, self._rank
        size = len(heap)
        while (below := 2 * place + 1) < size:
            other = heap[below]
            if below + 1 < size and ranks[heap[below + 1]] < ranks[other]:
                below += 1
                other = heap[below]
            if ranks[other] >= rank:
                break
            heap[place] = other
            places[other] = place + 1
            place = below
        heap[place] = at
        places[at] = place + 1
