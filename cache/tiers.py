"""One tier's accounts: what it holds, how many bytes are promised, and who may be evicted next.

A tier never exceeds its budget because bytes are claimed *before* they are written: a reservation
counts as used. The ram tier's accounts are the arena's allocation map itself; a file tier counts
row sizes. Decisions that need more than one tier live in ``cache.index``.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from cache import eviction
from cache.allocation import ArenaMap
from cache.answers import BlockRef, RowRequest, TierUse
from cache.errors import InvariantBroken
from cache.rows import SaveReason
from cache.tokens import TOKEN_BYTES


class Row:
    """A stored row. Mutable and private to the index; ``copies`` counts the tiers holding it."""

    __slots__ = (
        "copies",
        "doomed",
        "heat",
        "key",
        "leases",
        "n_tokens",
        "parent",
        "reason",
        "root",
        "row_bytes",
        "start",
        "superseded",
        "tokens",
        "weight",
    )

    def __init__(self, request: RowRequest, now: float) -> None:
        self.key = request.key
        self.parent = request.parent
        self.root = request.root
        self.start = request.start
        self.tokens = request.tokens
        self.n_tokens = len(request.tokens) // TOKEN_BYTES
        self.row_bytes = request.row_bytes
        self.reason: SaveReason = request.reason
        self.heat = eviction.first_heat(now)
        self.weight = eviction.rank(0.0, self.start, self.n_tokens, self.row_bytes)
        self.leases = 0
        self.copies = 0
        self.superseded = False  # a longer sibling contains all of its tokens
        self.doomed: list[tuple[Tier, int | None, int]] | None = None  # freed with the last lease

    def request(self) -> RowRequest:
        """The row as it would be asked for again."""
        return RowRequest(
            self.key, self.parent, self.root, self.start, self.tokens, self.row_bytes, self.reason
        )

    def ref(self, tier: str, location: int | None, n_used: int) -> BlockRef:
        """The row as an answer to a lookup."""
        return BlockRef(self.key, tier, location, self.row_bytes, self.start, n_used, self.n_tokens)


@dataclass(slots=True)
class Write:
    """A reservation: bytes are claimed, the row is not visible yet."""

    holder: str
    request: RowRequest
    tier: Tier
    location: int | None
    nbytes: int
    deadline: float
    source: Row | None  # the row being copied, leased until this ends


class Tier:
    """Budget, contents and eviction queue of one tier."""

    def __init__(self, name: str, budget_bytes: int, arena: ArenaMap | None) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self.arena = arena
        self.held: dict[bytes, tuple[int | None, int]] = {}  # key -> location, bytes
        self.kids: dict[bytes, int] = {}  # parent key -> rows held or being written here
        self.pinned_bytes = 0  # leased rows and reservations: bytes no eviction can win back
        self.unpersisted: dict[bytes, None] = {}  # keys in ram that this file tier lacks, in order
        self._used = 0
        self._heap: list[tuple[float, bytes]] = []
        self._queued: set[bytes] = set()

    @property
    def used_bytes(self) -> int:
        return self._used if self.arena is None else self.arena.used_bytes

    @property
    def capacity_bytes(self) -> int:
        return self.budget_bytes if self.arena is None else self.arena.capacity_bytes

    def size_of(self, row_bytes: int) -> int:
        """What a row of this size takes here."""
        return row_bytes if self.arena is None else self.arena.rounded(row_bytes)

    def could_fit(self, nbytes: int) -> bool:
        """False if not even evicting everything evictable would make room."""
        return nbytes + self.pinned_bytes <= self.capacity_bytes

    def claim(self, nbytes: int) -> tuple[bool, int | None]:
        """Take bytes out of the budget: (done, arena offset or None)."""
        if self.arena is not None:
            offset = self.arena.allocate(nbytes)
            return offset is not None, offset
        if self._used + nbytes > self.budget_bytes:
            return False, None
        self._used += nbytes
        return True, None

    def claim_at(self, location: int | None, nbytes: int) -> bool:
        """Take the bytes of something that exists already."""
        if self.arena is None:
            return self.claim(nbytes)[0]
        return location is not None and self.arena.adopt(location, nbytes)

    def unclaim(self, location: int | None, nbytes: int) -> None:
        """Give bytes back to the budget."""
        if self.arena is None:
            self._used -= nbytes
        elif location is None:
            raise InvariantBroken("a ram row without an offset")
        else:
            self.arena.free(location)

    def add_kid(self, parent: bytes) -> None:
        self.kids[parent] = self.kids.get(parent, 0) + 1

    def remove_kid(self, parent: bytes) -> None:
        left = self.kids[parent] - 1
        if left:
            self.kids[parent] = left
        else:
            del self.kids[parent]

    def offer(self, key: bytes, rank: float, *, again: bool = False) -> None:
        """Queue a row for eviction; ``again`` when its rank has fallen since it was queued."""
        if key not in self._queued or again:
            self._queued.add(key)
            heapq.heappush(self._heap, (rank, key))

    def pop_cheapest(self) -> tuple[float, bytes] | None:
        """The queued row of lowest rank; the caller checks it and may offer it again."""
        while self._heap:
            rank, key = heapq.heappop(self._heap)
            if key in self._queued:
                self._queued.discard(key)
                return rank, key
        return None

    def use(self) -> TierUse:
        return TierUse(self.capacity_bytes, self.used_bytes, self.pinned_bytes, len(self.held))
