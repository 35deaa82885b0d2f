"""The writer: copies rows from the arena into file tiers, behind everybody's back.

Owns: nothing. Answers: ``PersistRow``. Tells: cache_meta. A process of its own so that decoding and
lookups never wait for a disk, and because a disk can hang a thread for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from actors.cache_reporter import CacheReporter
from cache.arena import ArenaReader
from cache.errors import CacheError
from cache.filesystem import PosixFilesystem
from cache.publish import write_row

if TYPE_CHECKING:
    from supervision import Address


@dataclass(frozen=True, slots=True)
class WriterArgs:
    """The arena to read and the directories to write, by tier name."""

    arena_path: str | None
    tier_dirs: tuple[tuple[str, str], ...]


class WriterActor(CacheReporter):
    """Writes one row after the other on its own thread."""

    def init(self, args: object) -> None:
        if not isinstance(args, WriterArgs):
            raise TypeError(f"the writer is started with WriterArgs, not {args!r}")
        self._arena_path = args.arena_path
        self._roots = dict(args.tier_dirs)
        self._rows = self._bytes = self._failures = 0
        self.start_engine(self._run)

    def _run(self) -> None:
        files = PosixFilesystem()
        arena: ArenaReader | None = None
        while True:
            order = self.commands.get()
            if not isinstance(order, m.PersistRow) or self._arena_path is None:
                continue
            arena = arena or ArenaReader(self._arena_path)
            try:
                _, n_bytes = write_row(files, self._roots[order.tier], arena.slab(order.offset))
            except (CacheError, OSError) as error:
                self._failures += 1
                self.post(m.PersistFailed(order.key, order.tier, str(error)))
                continue
            self._rows += 1
            self._bytes += n_bytes
            self.post(m.RowPersisted(order.key, order.tier))

    def handle(self, message: object, sender: Address) -> None:
        del sender
        if isinstance(message, m.PersistRow):
            self.commands.put(message)

    def status(self) -> dict[str, object]:
        return {
            "rows_written": self._rows,
            "bytes_written": self._bytes,
            "failures": self._failures,
            "queued": self.commands.qsize(),
        }
