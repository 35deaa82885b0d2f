"""One tier's accounts: its rows, the bytes claimed, and the queue of rows that may be evicted.

A tier never exceeds its budget because bytes are claimed *before* they are written: a reservation
counts as used. The ram tier's accounts are the arena's allocation map itself; a file tier counts
row sizes. Decisions that need more than one tier are in ``cache.table``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cache.allocation import ArenaMap
from cache.answers import RAM, RowRequest, TierUse
from cache.errors import InvariantBroken
from cache.nodes import Nodes
from cache.ranking import EvictionQueue

RAM_FILE: Final = "ram_file"
DISK_DURABILITY: Final = 2
_DURABILITY: Final = {RAM: 0, RAM_FILE: 1}


@dataclass(slots=True)
class Write:
    """A reservation: bytes are claimed, the row is not visible yet."""

    holder: str
    request: RowRequest
    tier: Tier
    location: int | None
    nbytes: int
    deadline: float
    source: int  # the slot of the row being copied, pinned until this ends; NIL: none
    is_promotion: bool = False


class Tier:
    """Budget, contents and eviction queue of one tier. Rows are slots of ``nodes``."""

    def __init__(
        self, name: str, budget_bytes: int, arena: ArenaMap | None, nodes: Nodes, bit: int
    ) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self.arena = arena
        # What its rows survive; a row is copied from less to more durable tiers only.
        self.durability = _DURABILITY.get(name, DISK_DURABILITY)
        self.is_open = True  # False while its disk refuses writes; rows held stay readable
        self.fillings = 0  # running passes that queue rows for it, see ``cache.maintenance``
        self.bit = bit  # of the column ``copies``
        self.rows = 0
        self.evicted_for_room = self.evicted_on_request = 0  # copies, since the start
        self.n_children = nodes.column("I")  # by parent: rows held or being written here
        self.pinned_bytes = 0  # leased rows and reservations: bytes that cannot be evicted
        self.unpersisted: dict[int, None] = {}  # rows queued for it, in order
        self.late: dict[int, float] = {}  # tails to be queued later, and when; in order
        self.queue = EvictionQueue(nodes)
        self._nodes = nodes
        self._pages = nodes.column("I") if arena is not None else None  # arena offset / page size
        self._odd: dict[int, int] = {}  # bytes of copies whose size is not that of their row
        self._used = 0

    @property
    def used_bytes(self) -> int:
        return self._used if self.arena is None else self.arena.used_bytes

    @property
    def capacity_bytes(self) -> int:
        return self.budget_bytes if self.arena is None else self.arena.capacity_bytes

    # ── its rows ─────────────────────────────────────────────────────────────────────────────

    def holds(self, at: int) -> bool:
        """Whether a copy of this row is here."""
        return bool(self._nodes.copies[at] & self.bit)

    def location(self, at: int) -> int | None:
        """The arena offset of a copy that is here; None in a file tier."""
        if self.arena is None or self._pages is None:
            return None
        return self._pages[at] * self.arena.page_bytes

    def nbytes(self, at: int) -> int:
        """The bytes that the copy here takes."""
        return self._odd.get(at) or self.size_of(self._nodes.row_bytes[at])

    def add(self, at: int, location: int | None, nbytes: int) -> None:
        """Record a copy whose bytes are claimed."""
        self._nodes.copies[at] |= self.bit
        self.rows += 1
        if nbytes != self.size_of(self._nodes.row_bytes[at]):
            self._odd[at] = nbytes
        if self.arena is not None and self._pages is not None and location is not None:
            self._pages[at] = location // self.arena.page_bytes

    def take(self, at: int) -> tuple[int | None, int]:
        """Remove a copy; returns its location and bytes, which stay claimed."""
        gone = self.location(at), self.nbytes(at)
        self._nodes.copies[at] &= ~self.bit
        self._odd.pop(at, None)
        self.rows -= 1
        return gone

    # ── rows queued for it ───────────────────────────────────────────────────────────────────

    def is_queued(self, at: int) -> bool:
        """Whether a copy is to be written here, now or later."""
        return at in self.unpersisted or at in self.late

    def unqueue(self, at: int) -> None:
        """Remove a row from both queues."""
        self.unpersisted.pop(at, None)
        self.late.pop(at, None)

    def take_due(self, now: float) -> None:
        """Queue the tails whose delay has passed; all delays are equal, so those are the first."""
        for at in list(self.late):
            if self.late[at] > now:
                return
            del self.late[at]
            self.unpersisted[at] = None

    # ── bytes ────────────────────────────────────────────────────────────────────────────────

    def size_of(self, row_bytes: int) -> int:
        """The bytes that a row of this size takes here."""
        return row_bytes if self.arena is None else self.arena.rounded(row_bytes)

    def could_fit(self, nbytes: int) -> bool:
        """False if not even evicting everything evictable would make room."""
        return nbytes + self.pinned_bytes <= self.capacity_bytes

    def claim(self, nbytes: int) -> tuple[bool, int | None]:
        """Claim bytes of the budget: (done, arena offset or None)."""
        if self.arena is not None:
            offset = self.arena.allocate(nbytes)
            return offset is not None, offset
        if self._used + nbytes > self.budget_bytes:
            return False, None
        self._used += nbytes
        return True, None

    def claim_at(self, location: int | None, nbytes: int) -> bool:
        """Claim the bytes of a copy that exists already."""
        if self.arena is None:
            return self.claim(nbytes)[0]
        return location is not None and self.arena.adopt(location, nbytes)

    def unclaim(self, location: int | None, nbytes: int) -> None:
        """Return bytes to the budget."""
        if self.arena is None:
            self._used -= nbytes
        elif location is None:
            raise InvariantBroken("a ram row without an offset")
        else:
            self.arena.free(location)

    def use(self) -> TierUse:
        return TierUse(
            self.capacity_bytes,
            self.used_bytes,
            self.pinned_bytes,
            self.rows,
            len(self.unpersisted) + len(self.late),
            self.evicted_for_room,
            self.evicted_on_request,
        )


def place(key: bytes, tiers: Sequence[Tier]) -> Tier:
    """The tier of several of one kind for a row: by its key, in proportion to their budgets."""
    at = int.from_bytes(key[:8], "little") * sum(tier.budget_bytes for tier in tiers) >> 64
    for tier in tiers:
        if at < tier.budget_bytes:
            return tier
        at -= tier.budget_bytes
    return tiers[-1]
