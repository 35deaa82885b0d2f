"""The RAM tier: the shared-memory arena that every model process maps.

Owns: the arena's memory (its bytes outlive this process; the launcher holds the file). Answers:
``ReportStatus``. Tells cache_meta what it found when either of them starts. A process of its own
because a scan of a big arena takes a while and must not hold up lookups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from actors import messages as m
from actors.cache_reporter import CacheReporter, batches
from cache.answers import RAM
from cache.arena import ArenaReader, scan_arena


@dataclass(frozen=True, slots=True)
class RamTierArgs:
    """The arena: a path that every process of the node can open; ``None``: no RAM tier."""

    arena_path: str | None


class RamTierActor(CacheReporter):
    """Scans the arena once, in its own thread, and reports."""

    def init(self, args: object) -> None:
        if not isinstance(args, RamTierArgs):
            raise TypeError(f"ram_tier is started with RamTierArgs, not {args!r}")
        self._arena_path = args.arena_path
        self._rows = 0
        self.start_engine(self._scan)

    def _scan(self) -> None:
        if self._arena_path is None:
            return
        for rows, last in batches(self._found(self._arena_path)):
            self.post(m.RowsFound(RAM, rows, last))

    def _found(self, path: str) -> Iterator[m.StoredRow]:
        with ArenaReader(path) as arena:
            for offset, _, header in scan_arena(path):
                _, payload, tokens = arena.row(offset)
                payload.release()
                self._rows += 1
                yield m.StoredRow(
                    header.key,
                    header.parent,
                    header.root,
                    header.start,
                    tokens,
                    header.row_bytes,
                    offset,
                )

    def status(self) -> dict[str, object]:
        return {"tier": RAM, "arena": self._arena_path, "rows_found_at_start": self._rows}
