"""Promotion: which rows of file tiers are copied into the arena, and when.

Part of ``cache_meta``'s process; ``ram_tier`` makes the copies, few at a time. Rows that a request
was given come first; then those that queued requests will need (``storage.prefetch``).
"""

from __future__ import annotations

from collections.abc import Sequence

from actors import messages as m
from actors.storage.copy_ports import CopyPorts, copy_order
from actors.storage.prefetch import SHARE, Prefetch
from cache.answers import RAM, BlockRef, Refusal, Reservation
from cache.index import CacheIndex

PROMOTIONS_IN_FLIGHT = 8  # few: a prompt that is being restored now needs the memory bandwidth too
PREFETCH_ROWS = 32  # at once, and no more bytes than this: hits wait until they are copied
PREFETCH_BYTES = 1 << 20  # a few milliseconds; a row may have more
READ_AHEAD_ROWS = 256  # of a message, 9 KB
PROMOTIONS_WAITING = 4096  # rows; of more hits than that the oldest are not promoted
RAM_TIER = "ram_tier"


class Promotion:
    """Hits outside of the arena, and the copies of them that are being made."""

    def __init__(self, index: CacheIndex, ports: CopyPorts, *, ram_bytes: int) -> None:
        self._index = index
        self._ports = ports
        self.ahead = Prefetch(ram_bytes // SHARE)
        self._hits: dict[bytes, None] = {}
        """Keys in order of the hits."""
        self._under_way: set[bytes] = set()
        self._promoted = self._not_promoted = 0

    def hit(self, blocks: Sequence[BlockRef]) -> None:
        """These rows were found, parents first."""
        self.ahead.found(blocks)
        for block in blocks:
            if block.tier != RAM and not self._is_under_way(block.key):
                self._hits[block.key] = None
        while len(self._hits) > PROMOTIONS_WAITING:
            del self._hits[next(iter(self._hits))]
            self._not_promoted += 1

    def _is_under_way(self, key: bytes) -> bool:
        return key in self._under_way or self.ahead.is_copying(key)

    def pump(self, now: float, *, may_prefetch: bool) -> None:
        """Order copies, as many as may be under way."""
        holder = self._ports.holder(RAM_TIER)
        if holder is None:
            return
        room = PROMOTIONS_IN_FLIGHT - len(self._under_way)
        keys = [key for key, _ in zip(self._hits, range(room), strict=False)]
        for key in keys:
            del self._hits[key]
        if keys:
            self._promote(now, holder, keys)
        if may_prefetch and not self._hits and not self._under_way:
            self._prefetch(now, holder)

    def _promote(self, now: float, holder: str, keys: Sequence[bytes]) -> None:
        answers, evicted = self._index.promote(now, holder, keys)
        self._ports.dispose(evicted)  # before the memory is given to the copies
        granted = [answer for answer in answers if isinstance(answer, Reservation)]
        self._not_promoted += len(answers) - len(granted)
        self._under_way.update(answer.key for answer in granted)
        self._order(granted)

    def _order(self, granted: Sequence[Reservation]) -> None:
        if granted:
            self._ports.send(RAM_TIER, m.PromoteRows(tuple(map(copy_order, granted))))

    def _prefetch(self, now: float, holder: str) -> None:
        """The same for rows of queued requests; those that are refused give way to the next."""
        while not self.ahead.n_copying:
            keys = self.ahead.take(PREFETCH_ROWS, PREFETCH_BYTES)
            if not keys:
                self._read_ahead()
                return
            answers, evicted = self._index.promote(now, holder, keys, is_ahead=True)
            self._ports.dispose(evicted)
            self._order([answer for answer in answers if isinstance(answer, Reservation)])
            for answer in answers:
                if isinstance(answer, Refusal):
                    self.ahead.refused(answer.key)
            for key in {*keys} - {answer.key for answer in answers}:
                self.ahead.needless(key)

    def _read_ahead(self) -> None:
        """Have files read into the page cache, where the arena has no room for their rows."""
        by_tier: dict[str, list[bytes]] = {}
        for row in self.ahead.take_unfitting(READ_AHEAD_ROWS):
            by_tier.setdefault(row.tier, []).append(row.key)
        for tier, keys in by_tier.items():
            self._ports.send(RAM_TIER, m.ReadAhead(tier, tuple(keys)))

    def copied(self, now: float, key: bytes) -> None:
        """The row lies in the arena."""
        holder = self._ports.holder(RAM_TIER)
        is_accepted = False
        if holder is not None:
            published = self._index.publish(now, holder, key, RAM)
            self._ports.dispose(published.evicted)
            is_accepted = published.accepted
        if self.ahead.is_copying(key):
            (self.ahead.copied if is_accepted else self.ahead.refused)(key)
        else:
            self._under_way.discard(key)
            self._promoted += is_accepted

    def failed(self, key: bytes) -> None:
        """The row was not copied."""
        if self.ahead.is_copying(key):
            self.ahead.refused(key)
        else:
            self._under_way.discard(key)
            self._not_promoted += 1
        holder = self._ports.holder(RAM_TIER)
        if holder is not None:
            self._ports.dispose(self._index.abandon(holder, key, RAM))

    def copier_ended(self) -> None:
        """The process that made the copies has ended."""
        self._under_way.clear()
        self.ahead.copier_ended()

    def status(self) -> dict[str, object]:
        """Counters since this process started."""
        return {
            "promoted": self._promoted,
            "not_promoted": self._not_promoted,
            "being_promoted": len(self._under_way),
            **self.ahead.status(),
        }
