"""The memory that this process may still take, and its limits, for the whole project.

Limits are the machine's memory, every control group of version 1 or 2 above this process
(``memory.max``, ``memory.high``, ``memory.limit_in_bytes``), and the process's own RLIMIT_AS and
RLIMIT_DATA. "Available" is the least that any of them leaves. All functions read below ``root``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from native.control_groups import ROOT, Group, groups

MACHINE: Final = "machine"
_IDLE_CACHE: Final = ("inactive_file",)
"""Page cache that the kernel can drop without writing, and has marked as little used."""
_ALL_CACHE: Final = ("inactive_file", "active_file")
_NO_LIMIT: Final = 1 << 60
"""Version 1 writes the largest number of pages where there is no limit."""
_RLIMITS: Final = (("Max address space", "RLIMIT_AS", 0), ("Max data size", "RLIMIT_DATA", 5))
"""The line of /proc/self/limits, its name, and the field of /proc/self/statm that counts."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """One limit, and what counts against it now, in bytes."""

    where: str
    """``machine``, ``control group /a/b``, ``RLIMIT_AS`` or ``RLIMIT_DATA``."""
    limit: int
    used: int
    folder: Path | None = None
    """Of a control group."""

    @property
    def available(self) -> int:
        return max(0, self.limit - self.used)


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process may still take: the least that any limit leaves; None: unknown."""
    tightest = tightest_limit(root)
    return None if tightest is None else tightest.available


def tightest_limit(root: Path = ROOT) -> MemoryLimit | None:
    """The limit that leaves the least; None where nothing can be read.

    All page cache counts as available, whatever the kernel would keep longest: the pages of a model
    file that was just read are those that loading it needs.
    """
    machine = machine_memory(root)
    known = [] if machine is None else [machine]
    known += [*group_limits(root, all_cache=True), *process_limits(root)]
    return min(known, key=lambda one: one.available, default=None)


def machine_memory(root: Path = ROOT) -> MemoryLimit | None:
    """The machine's memory by /proc/meminfo; None where it cannot be read."""
    facts: dict[str, int] = {}
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, rest = line.partition(":")
            facts[key] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return None
    total = facts.get("MemTotal")
    available = facts.get("MemAvailable")
    if total is None or available is None:
        return None
    return MemoryLimit(MACHINE, total, max(0, total - available))


def group_limits(root: Path = ROOT, *, all_cache: bool = False) -> list[MemoryLimit]:
    """One for each control group above this process that has a limit, its own first.

    What the kernel can drop at once does not count as used; with ``all_cache``, no page of a file
    does.
    """
    droppable = _ALL_CACHE if all_cache else _IDLE_CACHE
    found = []
    for group in groups("memory", root):
        one = _limit_of(group, droppable)
        if one is not None:
            found.append(one)
        if group.version == 1 and group.number("memory.use_hierarchy") == 0:
            break  # what it uses does not count in its parents
    return found


def limit_bytes(group: Group) -> int | None:
    """The memory that a group may take before the kernel kills in it; None: no limit of its own."""
    file = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
    limit = group.number(file)
    return None if limit is None or limit >= _NO_LIMIT else limit


def process_limits(root: Path = ROOT) -> list[MemoryLimit]:
    """RLIMIT_AS and RLIMIT_DATA of this process, where they are set."""
    found = []
    try:
        lines = (root / "proc/self/limits").read_text(encoding="ascii").splitlines()
        pages = (root / "proc/self/statm").read_text(encoding="ascii").split()
        for line in lines:
            for title, name, field in _RLIMITS:
                soft = line.removeprefix(title).split() if line.startswith(title) else []
                if soft and soft[0].isdigit():
                    used = int(pages[field]) * os.sysconf("SC_PAGE_SIZE")
                    found.append(MemoryLimit(name, int(soft[0]), used))
    except (OSError, ValueError, IndexError):
        return []
    return found


def _limit_of(group: Group, droppable: tuple[str, ...]) -> MemoryLimit | None:
    """The lower of a group's limits; None if it has none, or is not readable."""
    stat = group.counters("memory.stat")
    if group.version == 2:
        limits, used = [limit_bytes(group), group.number("memory.high")], "memory.current"
        keys = droppable
    else:
        # The second is the least of this group and its parents, also of those outside the mount.
        limits = [limit_bytes(group), stat.get("hierarchical_memory_limit")]
        used, keys = "memory.usage_in_bytes", tuple(f"total_{key}" for key in droppable)
    limit = min((one for one in limits if one is not None and one < _NO_LIMIT), default=None)
    current = group.number(used)
    if limit is None or current is None:
        return None
    cache = sum(stat.get(key, 0) for key in keys)
    return MemoryLimit(f"control group {group.name}", limit, max(0, current - cache), group.folder)
