"""What a file tier does on its thread: scan its directory, remove files, wait for a sick disk.

No actor in here: orders come in, reports go out through ``report``, and the clock is handed in, so
that every fault can be played through in a test.

While rows cannot be written the directory is tried again and again, at growing pauses, by writing
a file of a row's size. When that works the directory is scanned anew, because nobody knows what
happened to it meanwhile, and the tier takes rows again. A root directory that is gone is made anew
only on the file system it was on: a disk that was taken out leaves an empty mount point behind, and
rows written there would fill another disk.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator

from actors import messages as m
from actors.storage.tier_worker import batches
from cache.errors import CacheError, TierUnavailable
from cache.filesystem import LOCK_FILE, Filesystem, lock_directory
from cache.finish_keys import ends_in
from cache.publish import delete_row, probe, quarantine_row
from cache.scan import DirectoryScan
from cache.text_marks import marks_in

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
QUIET_S = 120.0  # without trouble for so long, the next trouble begins with the first pause again


class TierKeeper:
    """Keeps one directory. All calls come from one thread; counters may be read from others."""

    def __init__(
        self,
        tier: str,
        root: str,
        device: int,
        files: Filesystem,
        report: Callable[[object], None],
        *,
        incarnation: int = 1,
        lock_inode: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier, self._root, self._device = tier, root, device
        self._files = files
        self._report = report
        self._incarnation = incarnation
        self._lock_inodes = {lock_inode}
        self._lock_fds: list[int] = []
        self._clock = clock
        self._probe_at: float | None = None
        self._pause_s = FIRST_PAUSE_S / 2
        self._open_since = clock()
        self._is_there = True
        self.trouble: str | None = None
        self.rows = self.bytes = self.quarantined = self.removed = self.temps = self.probes = 0
        self.scan_ms = self.drop_ms = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the directory takes rows, as far as is known."""
        return self._probe_at is None

    def close(self) -> None:
        """Let go of the directory."""
        while self._lock_fds:
            os.close(self._lock_fds.pop())

    def start(self) -> None:
        """Scan. The end of a scan is reported even if nothing could be read."""
        try:
            self._scan()
        except (CacheError, OSError) as error:
            self._lose(str(error))
            self._report(self._found((), last=True))

    def take(self, order: m.DropFiles | m.QuarantineFile | m.WatchTier) -> None:
        """Do what cache_meta wants done."""
        match order:
            case m.DropFiles(ref, keys):
                self._drop(keys)
                self._report(m.FilesDropped(self._tier, ref))
            case m.QuarantineFile(key):
                try:
                    if quarantine_row(self._files, self._root, key):
                        self.quarantined += 1
                except (CacheError, OSError) as error:
                    self._lose(str(error))
            case m.WatchTier(detail):
                self._lose(detail)

    def wait_s(self) -> float | None:
        """Seconds until ``tick`` has something to do; None: not before the next order."""
        return None if self._probe_at is None else max(0.0, self._probe_at - self._clock())

    def tick(self) -> None:
        """Try the directory again, when it is time."""
        if self._probe_at is None or self._clock() < self._probe_at:
            return
        self.probes += 1
        try:
            self._restore_root()
            probe(self._files, self._root)
            self._scan()
        except (CacheError, OSError) as error:
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._probe_at = self._clock() + self._pause_s
            self._lose(str(error))
            return
        self._probe_at, self.trouble, self._is_there = None, None, True
        self._open_since = self._clock()
        self._report(m.TierChanged(self._tier, True, True, ""))

    def _lose(self, detail: str) -> None:
        """No rows until a probe has worked; sooner trouble again means a longer pause."""
        now = self._clock()
        if self._probe_at is None:
            is_calm = now - self._open_since > QUIET_S
            self._pause_s = FIRST_PAUSE_S if is_calm else min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._probe_at = now + self._pause_s
        self.trouble = detail
        self._is_there = self._can_list()
        self._report(m.TierChanged(self._tier, False, self._is_there, detail))

    def _can_list(self) -> bool:
        try:
            self._files.list_dir(self._root)
        except OSError:
            return False
        return True

    def _restore_root(self) -> None:
        try:
            self._files.list_dir(self._root)
        except FileNotFoundError:
            above = os.path.dirname(self._root)
            while not self._exists(above) and above != os.path.dirname(above):
                above = os.path.dirname(above)
            if self._device and self._files.device(above) != self._device:
                cause = OSError(errno.ENODEV, "its file system is not mounted")
                raise TierUnavailable(self._root, "finding the directory", cause) from None
            self._files.make_dir(self._root)
        self._hold_lock()

    def _hold_lock(self) -> None:
        """Take the directory again if the launcher's lock went with the one that was there before.

        Descriptors stay open until ``close``: a file that is open keeps its inode number.
        """
        if self._lock_inodes == {0}:
            return
        above = os.path.dirname(self._root)
        try:
            inode = os.stat(os.path.join(above, LOCK_FILE)).st_ino
        except FileNotFoundError:
            inode = None
        if inode not in self._lock_inodes:
            try:
                fd = lock_directory(above)
            except BlockingIOError:
                cause = OSError(errno.EBUSY, "another node uses it")
                raise TierUnavailable(self._root, "locking the directory", cause) from None
            self._lock_fds.append(fd)
            self._lock_inodes.add(os.fstat(fd).st_ino)

    def _exists(self, path: str) -> bool:
        try:
            self._files.device(path)
        except FileNotFoundError:
            return False
        return True

    def _scan(self) -> None:
        started = time.perf_counter()
        self._restore_root()
        self.rows = self.bytes = 0
        scan = DirectoryScan(self._files, self._root)
        for rows, last in batches(self._stored(scan)):
            self._report(self._found(rows, last, len(scan.quarantined) if last else 0))
        self.quarantined += len(scan.quarantined)
        self.temps += scan.temps_removed
        self.scan_ms = 1e3 * (time.perf_counter() - started)

    def _found(
        self, rows: tuple[m.StoredRow, ...], last: bool, quarantined: int = 0
    ) -> m.RowsFound:
        return m.RowsFound(self._tier, rows, last, quarantined, self._incarnation)

    def _stored(self, scan: DirectoryScan) -> Iterator[m.StoredRow]:
        now = time.time()
        for row in scan:
            header = row.header
            self.rows += 1
            self.bytes += row.nbytes
            yield m.StoredRow(
                header.key,
                header.parent,
                header.root,
                header.start,
                row.tokens,
                header.row_bytes,
                None,
                max(0.0, now - header.created_unix_s),
                marks_in(row.meta),
                ends_in(row.meta),
            )

    def _drop(self, keys: tuple[bytes, ...]) -> None:
        started = time.perf_counter()
        for key in keys:
            try:
                self.removed += delete_row(self._files, self._root, key)
            except (CacheError, OSError) as error:
                # Its bytes are still there. No more are written until a scan has counted them.
                self._lose(str(error))
                break
        self.drop_ms = 1e3 * (time.perf_counter() - started)

    def status(self) -> dict[str, object]:
        """Counts since this process started."""
        return {
            "state": "open" if self.is_open else "closed" if self._is_there else "gone",
            "trouble": None if self.is_open else self.trouble,
            "probes": self.probes,
            "pause_s": 0.0 if self.is_open else self._pause_s,
            "rows_found_at_start": self.rows,
            "bytes_found_at_start": self.bytes,
            "scan_ms": round(self.scan_ms, 3),
            "quarantined": self.quarantined,
            "removed": self.removed,
            "last_removal_ms": round(self.drop_ms, 3),
            "temps_removed": self.temps,
        }
