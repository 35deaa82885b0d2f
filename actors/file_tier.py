"""A file tier: one directory of row files, on disk or on tmpfs.

Owns: the directory. Answers: ``DropFiles``, ``QuarantineFile``. Tells cache_meta what it found when
it starts. A process of its own because a rescan and unlinking may block on a slow or dead disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from actors import messages as m
from actors.cache_reporter import CacheReporter, batches
from cache.errors import CacheError
from cache.filesystem import PosixFilesystem
from cache.publish import Rescan, delete_row, quarantine_row, rescan


@dataclass(frozen=True, slots=True)
class FileTierArgs:
    """The tier's name in the index, and its directory."""

    tier: str
    root_dir: str


class FileTierActor(CacheReporter):
    """Rescans, then removes what it is told to remove, all on its own thread."""

    def init(self, args: object) -> None:
        if not isinstance(args, FileTierArgs):
            raise TypeError(f"a file tier is started with FileTierArgs, not {args!r}")
        self._tier, self._root = args.tier, args.root_dir
        self._rows = self._quarantined = self._removed = 0
        self._trouble: str | None = None
        self.start_engine(self._run)

    def _run(self) -> None:
        files = PosixFilesystem()
        try:
            found = rescan(files, self._root)
        except (CacheError, OSError) as error:
            self._trouble = str(error)
            self.post(m.RowsFound(self._tier, (), last=True))
        else:
            self._rows, self._quarantined = len(found.rows), len(found.quarantined)
            for rows, last in batches(_stored(found)):
                quarantined = len(found.quarantined) if last else 0
                self.post(m.RowsFound(self._tier, rows, last, quarantined))
        while True:
            order = self.commands.get()
            try:
                if isinstance(order, m.QuarantineFile):
                    quarantine_row(files, self._root, order.key)
                    self._quarantined += 1
                elif isinstance(order, m.DropFiles):
                    for key in order.keys:
                        delete_row(files, self._root, key)
                        self._removed += 1
            except (CacheError, OSError) as error:
                self._trouble = str(error)

    def handle(self, message: object, sender: object) -> None:
        del sender
        if isinstance(message, m.DropFiles | m.QuarantineFile):
            self.commands.put(message)

    def status(self) -> dict[str, object]:
        return {
            "tier": self._tier,
            "directory": self._root,
            "rows_found_at_start": self._rows,
            "quarantined": self._quarantined,
            "removed": self._removed,
            "trouble": self._trouble,
        }


def _stored(found: Rescan) -> Iterator[m.StoredRow]:
    for row in found.rows:
        header = row.header
        yield m.StoredRow(
            header.key,
            header.parent,
            header.root,
            header.start,
            row.tokens,
            header.row_bytes,
            None,
        )
