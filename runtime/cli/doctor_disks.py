"""``doctor`` on directories of the cache: whose they are, what fits, and how fast a row is safe.

Nothing stays behind: the speed is measured with a file that is removed again, in the directory if
it is there, else in the nearest folder above it.
"""

from __future__ import annotations

import os
import shutil
import stat
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache.filesystem import ROWS_DIR
from runtime.settings.config import DirectoryPlan
from runtime.settings.sizes import Share, format_size

FREE_WANTED_BYTES: Final = 1 << 30
SYNC_TRIES: Final = 5
SYNC_BYTES: Final = 1 << 20
SLOW_SYNC_S: Final = 0.1  # a row then takes longer to write than a block takes to compute
MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """What was found of a directory; ``trouble`` and ``fix`` are empty when all is well."""

    detail: str
    trouble: str = ""
    fix: str = ""


def look_at(plan: DirectoryPlan) -> DirectoryFacts:
    """Check a directory as it would be used by a node of this user."""
    place = plan.root
    while not os.path.exists(place):  # which Path.exists does not answer where it may not look
        place = place.parent
    detail = f"{plan.root}, {format_size(shutil.disk_usage(place).free)} free"
    trouble, fix = _trouble(plan, place)
    if trouble:
        return DirectoryFacts(detail, trouble, fix)
    took_s = sync_time_s(place)
    detail += f", {1e3 * took_s:.1f} ms to write and sync 1 MiB"
    if took_s > SLOW_SYNC_S:
        slow = "rows will wait in RAM; name a faster disk, or leave this one out"
        return DirectoryFacts(detail, "a slow disk", slow)
    return DirectoryFacts(detail)


def _trouble(plan: DirectoryPlan, place: Path) -> tuple[str, str]:
    elsewhere = f"name another directory with {plan.key}"
    if not place.is_dir():
        return f"{place} is no directory", elsewhere
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} is not writable", elsewhere
    for folder in (plan.root, plan.root / ROWS_DIR):
        if os.path.exists(folder):
            facts = folder.stat()
            if facts.st_uid != os.getuid():
                return f"{folder} belongs to user {facts.st_uid}", elsewhere
            if stat.S_IMODE(facts.st_mode) & 0o077:
                return f"other users can look into {folder}", f"chmod 0700 {folder}"
    kind = file_system_of(place)
    is_memory = kind in MEMORY_FILE_SYSTEMS
    if plan.name == "ram_file" and not is_memory:
        return f"{place} is on {kind}, no memory", "name a directory on a tmpfs, like /dev/shm"
    if plan.name != "ram_file" and is_memory:
        return f"{place} is on {kind}: gone after a reboot", "use it as cache_ram_file instead"
    free = shutil.disk_usage(place).free
    wanted = FREE_WANTED_BYTES if isinstance(plan.budget, Share) else plan.budget
    if free < min(wanted, FREE_WANTED_BYTES):
        return f"{format_size(free)} free", f"{elsewhere}, or give it a smaller budget"
    return "", ""


def sync_time_s(folder: Path) -> float:
    """Seconds to write a file of a row's size and to make it durable; the median of some."""
    took: list[float] = []
    chunk = os.urandom(SYNC_BYTES)  # zeros may be stored as nothing
    for _ in range(SYNC_TRIES):
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            file.write(chunk)
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def file_system_of(folder: Path) -> str:
    """The type of the file system that a folder lies on, as the kernel lists it."""
    here = str(folder.resolve())
    best, kind = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, point, found, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            inside = here == point or here.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, found
    return kind
