"""Promotion: which rows that were found in file tiers are copied into the arena, and when.

Part of ``cache_meta``'s process; ``ram_tier`` makes the copies, few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.storage.copy_ports import CopyPorts, copy_order
from cache.answers import RAM, BlockRef, Refusal
from cache.index import CacheIndex

PROMOTIONS_IN_FLIGHT = 8  # few: a prompt that is being restored now needs the memory bandwidth too
PROMOTIONS_WAITING = 4096  # rows; of more hits than that the oldest are not promoted
RAM_TIER = "ram_tier"


class Promotion:
    """Hits outside of the arena, and the copies of them that are being made."""

    def __init__(self, index: CacheIndex, ports: CopyPorts) -> None:
        self._index = index
        self._ports = ports
        self._hits: dict[bytes, None] = {}
        """Keys in order of the hits."""
        self._under_way: set[bytes] = set()
        self._promoted = self._not_promoted = 0

    def hit(self, blocks: Sequence[BlockRef]) -> None:
        """These rows were found, parents first."""
        for block in blocks:
            if block.tier != RAM and block.key not in self._under_way:
                self._hits[block.key] = None
        while len(self._hits) > PROMOTIONS_WAITING:
            del self._hits[next(iter(self._hits))]
            self._not_promoted += 1

    def pump(self, now: float) -> None:
        """Order copies, as many as may be under way."""
        holder = self._ports.holder(RAM_TIER)
        room = PROMOTIONS_IN_FLIGHT - len(self._under_way)
        if not self._hits or holder is None or room <= 0:
            return
        keys = [key for key, _ in zip(self._hits, range(room), strict=False)]
        for key in keys:
            del self._hits[key]
        answers, evicted = self._index.promote(now, holder, keys)
        self._ports.dispose(evicted)  # before the memory is given to the copies
        for answer in answers:
            if isinstance(answer, Refusal):
                self._not_promoted += 1
            else:
                self._under_way.add(answer.key)
                self._ports.send(RAM_TIER, copy_order(answer))

    def copied(self, now: float, key: bytes) -> None:
        """The row lies in the arena."""
        self._under_way.discard(key)
        holder = self._ports.holder(RAM_TIER)
        if holder is not None:
            published = self._index.publish(now, holder, key, RAM)
            self._ports.dispose(published.evicted)
            self._promoted += published.accepted

    def failed(self, key: bytes) -> None:
        """The row was not copied."""
        self._under_way.discard(key)
        self._not_promoted += 1
        holder = self._ports.holder(RAM_TIER)
        if holder is not None:
            self._ports.dispose(self._index.abandon(holder, key, RAM))

    def copier_ended(self) -> None:
        """The process that made the copies has ended."""
        self._under_way.clear()

    def status(self) -> dict[str, object]:
        """Counters since this process started."""
        return {
            "promoted": self._promoted,
            "not_promoted": self._not_promoted,
            "being_promoted": len(self._under_way),
        }
