"""A file tier: one directory of row files, on disk or on tmpfs.

Owns: the directory. Answers: ``DropFiles``, ``QuarantineFile``, ``WatchTier``. Reports to
cache_meta what it finds there, and whether the directory takes rows. A process of its own because a
rescan and unlinking may block on a slow or failed disk.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass

from actors import messages as m
from actors.storage.tier_directory import TierDirectory
from actors.storage.tier_worker import TierWorker
from cache.filesystem import PosixFilesystem
from supervision import Address


@dataclass(frozen=True, slots=True)
class FileTierArgs:
    """The tier's name in the index, its directory, its budget and the file system it is on."""

    tier: str
    root_dir: str
    budget_bytes: int = 0
    device: int = 0
    """``st_dev`` of the directory when the node started; 0: not known."""
    lock_inode: int = 0
    """Of the file by whose lock the launcher holds the directory; 0: it does not."""


class FileTierActor(TierWorker):
    """Scans, removes files and waits for disks, all on its own thread."""

    def init(self, args: object) -> None:
        if not isinstance(args, FileTierArgs):
            raise TypeError(f"a file tier is started with FileTierArgs, not {args!r}")
        self._args = args
        self._keeper = TierDirectory(
            args.tier,
            args.root_dir,
            args.device,
            PosixFilesystem(),
            self.post_paced,
            incarnation=self.incarnation,
            lock_inode=args.lock_inode,
        )
        self.start_engine(self._run)

    def _run(self) -> None:
        keeper = self._keeper
        keeper.start()
        while True:
            try:
                order = self.commands.get(timeout=keeper.wait_s())
            except queue.Empty:
                keeper.tick()
            else:
                if isinstance(order, m.DropFiles | m.QuarantineFile | m.WatchTier):
                    keeper.take(order)

    def handle(self, message: object, sender: Address) -> None:
        if isinstance(message, m.DropFiles | m.QuarantineFile | m.WatchTier):
            self.commands.put(message)
        elif isinstance(message, m.DescribeTier):
            where = self._args
            self.tell(sender, m.TierDescribed(message.ref, where.tier, where.root_dir, None))

    def status(self) -> dict[str, object]:
        return {
            "tier": self._args.tier,
            "directory": self._args.root_dir,
            "budget_bytes": self._args.budget_bytes,
            **self._keeper.status(),
        }
