"""What a file tier does on its thread: scan its directory, remove files, wait for a failing disk.

No actor in here: orders come in, reports go out through ``report``, and the clock is passed in, so
that every fault can be tried in a test.

While rows cannot be written the directory is tried again and again, at growing pauses, by writing
a file of a row's size. When that works the directory is scanned again, because its files may have
changed meanwhile, and the tier takes rows again. A root directory that is gone is made again only
on the file system it was on: a disk that was taken out leaves an empty mount point behind, and rows
written there would fill another disk.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


class DirectoryLock:
    """The node's lock of a cache directory, taken again where the directory was replaced.

    Descriptors stay open until ``close``: a file that is open keeps its inode number.
    """

    def __init__(self, root: str, inode: int) -> None:
        """``inode`` of the file that the launcher locked in the directory above; 0: it did not."""
        self._root = root
        self._inodes = {inode}
        self._fds: list[int] = []

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def hold(self) -> None:
        """Take the directory again if the lock went with the one that was there before."""
        if self._inodes == {0}:
            return
        above = os.path.dirname(self._root)
        try:
            inode = os.stat(os.path.join(above, LOCK_FILE)).st_ino
        except FileNotFoundError:
            inode = None
        if inode in self._inodes:
            return
        try:
            fd = lock_directory(above)
        except BlockingIOError:
            cause = OSError(errno.EBUSY, "another node uses it")
            raise TierUnavailable(self._root, "locking the directory", cause) from None
        self._fds.append(fd)
        self._inodes.add(os.fstat(fd).st_ino)


class ProbeSchedule:
    """When a directory that failed is tried again: at pauses that double, up to a minute."""

    def __init__(self, now: float) -> None:
        self._probe_at: float | None = None
        self._open_since = now
        self.pause_s = FIRST_PAUSE_S / 2

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be tried: the directory works, as far as is known."""
        return self._probe_at is None

    def wait_s(self, now: float) -> float | None:
        """Seconds until it is time to try; None: nothing is to be tried."""
        return None if self._probe_at is None else max(0.0, self._probe_at - now)

    def begin(self, now: float) -> None:
        """The directory failed; sooner trouble again means a longer pause."""
        if self._probe_at is None:
            is_calm = now - self._open_since > QUIET_S
            self.pause_s = FIRST_PAUSE_S if is_calm else min(LONGEST_PAUSE_S, 2 * self.pause_s)
            self._probe_at = now + self.pause_s

    def failed(self, now: float) -> None:
        """It was tried, and failed again."""
        self.pause_s = min(LONGEST_PAUSE_S, 2 * self.pause_s)
        self._probe_at = now + self.pause_s

    def end(self, now: float) -> None:
        """It works again."""
        self._probe_at, self._open_since = None, now


@dataclass(slots=True)
class TierCounts:
    """Of one process; milliseconds are of the last scan and the last removal."""

    rows: int = 0
    bytes: int = 0
    quarantined: int = 0
    removed: int = 0
    temps: int = 0
    probes: int = 0
    scan_ms: float = 0.0
    removal_ms: float = 0.0


class TierDirectory:
    """Keeps one directory. All calls come from one thread; ``status`` may come from others."""

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
        self._clock = clock
        self._lock = DirectoryLock(root, lock_inode)
        self._schedule = ProbeSchedule(clock())
        self._counts = TierCounts()
        self._is_there = True
        self._trouble: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the directory takes rows, as far as is known."""
        return self._schedule.is_idle

    def close(self) -> None:
        """Release the directory."""
        self._lock.close()

    def start(self) -> None:
        """Scan. The end of a scan is reported even if nothing could be read."""
        try:
            self._scan()
        except (CacheError, OSError) as error:
            self._lose(str(error))
            self._report(self._found((), last=True))

    def take(self, order: m.DropFiles | m.QuarantineFile | m.WatchTier) -> None:
        """Carry out an order of cache_meta."""
        match order:
            case m.DropFiles(ref, keys):
                self._drop(keys)
                self._report(m.FilesDropped(self._tier, ref))
            case m.QuarantineFile(key):
                try:
                    self._counts.quarantined += quarantine_row(self._files, self._root, key)
                except (CacheError, OSError) as error:
                    self._lose(str(error))
            case m.WatchTier(detail):
                self._lose(detail)

    def wait_s(self) -> float | None:
        """Seconds until ``tick`` has something to do; None: not before the next order."""
        return self._schedule.wait_s(self._clock())

    def tick(self) -> None:
        """Try the directory again, when it is time."""
        if self.wait_s() != 0:
            return
        self._counts.probes += 1
        try:
            self._restore_root()
            probe(self._files, self._root)
            self._scan()
        except (CacheError, OSError) as error:
            self._schedule.failed(self._clock())
            self._lose(str(error))
            return
        self._schedule.end(self._clock())
        self._trouble, self._is_there = None, True
        self._report(m.TierChanged(self._tier, True, True, ""))

    def _lose(self, detail: str) -> None:
        """No rows until a probe has worked."""
        self._schedule.begin(self._clock())
        self._trouble = detail
        self._is_there = self._can_list()
        self._report(m.TierChanged(self._tier, False, self._is_there, detail))

    def _can_list(self) -> bool:
        try:
            self._files.list_dir(self._root)
        except OSError:
            return False
        return True

    def _restore_root(self) -> None:
        """Make the directory again where it is gone, and hold its lock."""
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
        self._lock.hold()

    def _exists(self, path: str) -> bool:
        try:
            self._files.device(path)
        except FileNotFoundError:
            return False
        return True

    def _scan(self) -> None:
        started = time.perf_counter()
        self._restore_root()
        self._counts.rows = self._counts.bytes = 0
        scan = DirectoryScan(self._files, self._root)
        for rows, last in batches(self._stored(scan)):
            self._report(self._found(rows, last, len(scan.quarantined) if last else 0))
        self._counts.quarantined += len(scan.quarantined)
        self._counts.temps += scan.temps_removed
        self._counts.scan_ms = 1e3 * (time.perf_counter() - started)

    def _found(
        self, rows: tuple[m.StoredRow, ...], last: bool, quarantined: int = 0
    ) -> m.RowsFound:
        return m.RowsFound(self._tier, rows, last, quarantined, self._incarnation)

    def _stored(self, scan: DirectoryScan) -> Iterator[m.StoredRow]:
        now = time.time()
        for row in scan:
            header = row.header
            self._counts.rows += 1
            self._counts.bytes += row.nbytes
            yield m.StoredRow.of(
                header.id,
                header.row_bytes,
                None,
                max(0.0, now - header.created_unix_s),
                marks=marks_in(row.meta),
                ends=ends_in(row.meta),
            )

    def _drop(self, keys: tuple[bytes, ...]) -> None:
        started = time.perf_counter()
        for key in keys:
            try:
                self._counts.removed += delete_row(self._files, self._root, key)
            except (CacheError, OSError) as error:
                # Its bytes are still there. No more are written until a scan has counted them.
                self._lose(str(error))
                break
        self._counts.removal_ms = 1e3 * (time.perf_counter() - started)

    def status(self) -> dict[str, object]:
        """Counts since this process started."""
        counts = self._counts
        return {
            "state": "open" if self.is_open else "closed" if self._is_there else "gone",
            "trouble": None if self.is_open else self._trouble,
            "probes": counts.probes,
            "pause_s": 0.0 if self.is_open else self._schedule.pause_s,
            "rows_found_at_start": counts.rows,
            "bytes_found_at_start": counts.bytes,
            "scan_ms": round(counts.scan_ms, 3),
            "quarantined": counts.quarantined,
            "removed": counts.removed,
            "last_removal_ms": round(counts.removal_ms, 3),
            "temps_removed": counts.temps,
        }
