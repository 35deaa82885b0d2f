"""Opening the directories of file tiers: make them, take them for this node alone, size them.

Runs in the launcher before the tree starts, so that a wrong setting is an error that names it.
Later failures are handled by the tiers (``actors.storage.tier_directory``).
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cache.filesystem import LOCK_FILE, ROWS_DIR, lock_directory, make_private_dirs
from cache.tiers import RAM_FILE
from native.system_memory import available_memory
from runtime.errors import ConfigError
from runtime.settings.config import DirectoryPlan, RuntimeConfig
from runtime.settings.sizes import Share, format_size

if TYPE_CHECKING:
    from runtime.launch.tree import FileTier

__all__ = ["LOCK_FILE", "ROWS_DIR", "open_directories", "stored_bytes"]

_TRIES_ANOTHER: Final = "name another directory, or turn the tier off"


def open_directories(
    config: RuntimeConfig,
) -> tuple[tuple[int, ...], tuple[FileTier, ...], tuple[tuple[str, str], ...]]:
    """Descriptors that hold the locks; the tiers, fastest first; missing tiers and why.

    A directory that was named must be usable. A default one that is not is left out, because a
    second node, or a user without a home, can do without the tier.
    """
    locks: list[int] = []
    tiers: list[FileTier] = []
    absent: list[tuple[str, str]] = []
    if config.no_disk_because:
        absent.append(("disk", config.no_disk_because))
    with contextlib.ExitStack() as on_error:
        for plan in config.directories():
            try:
                lock_fd, tier = _open(plan)
            except OSError as error:
                taken = error.errno == errno.EWOULDBLOCK
                trouble = "another node uses it" if taken else error.strerror
                if plan.is_asked_for:
                    raise ConfigError(
                        plan.key, f"{plan.root} cannot be used: {trouble}; {_fix(plan)}"
                    ) from error
                absent.append((plan.name, f"{plan.root} cannot be used: {trouble}"))
                continue
            on_error.callback(os.close, lock_fd)
            locks.append(lock_fd)
            tiers.append(tier)
        on_error.pop_all()
    return tuple(locks), tuple(tiers), tuple(absent)


def _fix(plan: DirectoryPlan) -> str:
    if plan.name == RAM_FILE:
        return f"{_TRIES_ANOTHER} with --cache-ram-file 0"
    if plan.key == "cache_dir":
        return "name another --cache-dir, or turn the disk tier off with --cache-disk 0"
    return f"{_TRIES_ANOTHER} by leaving out its --cache-disk"


def _open(plan: DirectoryPlan) -> tuple[int, FileTier]:
    from runtime.launch.tree import FileTier  # here: it imports every actor

    rows = plan.root / ROWS_DIR
    make_private_dirs(str(rows))
    lock_fd = lock_directory(str(plan.root))
    try:
        budget = _budget(plan, rows)
        lock_inode = os.fstat(lock_fd).st_ino
        return lock_fd, FileTier(plan.name, str(rows), budget, os.stat(rows).st_dev, lock_inode)
    except BaseException:
        os.close(lock_fd)
        raise


def _budget(plan: DirectoryPlan, rows: Path) -> int:
    """In bytes. What the tier holds already counts as free, or shares would shrink each time."""
    is_memory = plan.name == RAM_FILE
    if not isinstance(plan.budget, Share) and not is_memory:
        return plan.budget  # a disk that fills up earlier closes the tier for as long as it is full
    room = os.statvfs(rows)
    free = room.f_bavail * room.f_frsize
    if is_memory:
        available = available_memory()
        free = free if available is None else min(free, available)
    free += stored_bytes(rows)
    if isinstance(plan.budget, Share):
        return plan.budget.of(free)
    if plan.budget > free:
        raise ConfigError(
            plan.key,
            f"{format_size(plan.budget)} needed, {format_size(free)} free in {plan.root}; "
            "choose a smaller --cache-ram-file, mount a larger tmpfs there, or name another "
            "directory with cache_ram_file_dir",
        )
    return plan.budget


def stored_bytes(rows: Path) -> int:
    """Bytes of the row files in a tier's directory."""
    total = 0
    for shard in os.scandir(rows):
        if shard.is_dir(follow_symlinks=False):
            for file in os.scandir(shard.path):
                with contextlib.suppress(FileNotFoundError):
                    total += file.stat(follow_symlinks=False).st_size
    return total
