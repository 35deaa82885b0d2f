"""The RAM tier: the shared-memory arena that every model process maps.

Owns: the arena's memory (its bytes outlive this process; the launcher holds the file). Answers:
``PromoteRows``, ``ReadAhead``. Reports to cache_meta what it found when either of them starts, and
copies rows of slower tiers into the arena: after a hit, and for queued requests. A process of its
own because a scan of a big arena takes a while, and a file may lie on a slow disk; neither may
delay lookups.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from actors.storage.promoter import Promoter
from actors.storage.tier_worker import TierWorker, batches
from cache.answers import RAM
from cache.arena import ArenaReader, scan_arena
from cache.filesystem import PosixFilesystem
from cache.finish_keys import ends_in
from cache.text_marks import marks_in

if TYPE_CHECKING:
    from supervision import Address


@dataclass(frozen=True, slots=True)
class RamTierArgs:
    """The arena: a path that every process of the node can open; ``None``: no RAM tier.

    And the directories of the slower tiers, by name.
    """

    arena_path: str | None
    tier_dirs: tuple[tuple[str, str], ...] = ()
    budget_bytes: int = 0


class RamTierActor(TierWorker):
    """Scans the arena once, then promotes rows, in its own thread."""

    def init(self, args: object) -> None:
        if not isinstance(args, RamTierArgs):
            raise TypeError(f"ram_tier is started with RamTierArgs, not {args!r}")
        self._args = args
        self._rows = self._bytes = 0
        self._scan_ms = 0.0
        self._promoter = Promoter(args.arena_path or "", dict(args.tier_dirs), PosixFilesystem())
        self.start_engine(self._run)

    def _run(self) -> None:
        if self._args.arena_path is None:
            return
        started = time.perf_counter()
        for rows, last in batches(self._found(self._args.arena_path)):
            self.post_paced(m.RowsFound(RAM, rows, last))
        self._scan_ms = 1e3 * (time.perf_counter() - started)
        while True:
            order = self.commands.get()
            if isinstance(order, m.ReadAhead):
                self._promoter.read_ahead(order)
            elif isinstance(order, m.PromoteRows):
                self.post(self._promoter.promote_all(order))

    def _found(self, path: str) -> Iterator[m.StoredRow]:
        now = time.time()
        with ArenaReader(path) as arena:
            for offset, _, header in scan_arena(path):
                meta = arena.meta(offset, header)
                self._rows += 1
                self._bytes += header.row_bytes
                yield m.StoredRow.of(
                    header.id,
                    header.row_bytes,
                    offset,
                    max(0.0, now - header.created_unix_s),
                    marks=marks_in(meta),
                    ends=ends_in(meta),
                )

    def handle(self, message: object, sender: Address) -> None:
        if isinstance(message, m.PromoteRows | m.ReadAhead):
            self.commands.put(message)
        elif isinstance(message, m.DescribeTier):
            self.tell(sender, m.TierDescribed(message.ref, RAM, None, self._args.arena_path))

    def status(self) -> dict[str, object]:
        return {
            "tier": RAM,
            "arena": self._args.arena_path,
            "budget_bytes": self._args.budget_bytes,
            "rows_found_at_start": self._rows,
            "bytes_found_at_start": self._bytes,
            "scan_ms": round(self._scan_ms, 3),
            **self._promoter.status(),
            "queued": self.commands.qsize(),
        }
