"""A folder that stands for a machine: its /proc, and its control groups mounted anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

NO_LIMIT_V1: Final = 9223372036854771712


class Machine:
    """``root`` holds proc/ and whatever is mounted."""

    def __init__(self, root: Path, total: int = 64 << 30, available: int = 20 << 30) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        meminfo = f"MemTotal: {total >> 10} kB\nMemFree: 9 kB\nMemAvailable: {available >> 10} kB\n"
        self.write("proc/meminfo", meminfo)

    def write(self, path: str, text: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def cgroup(self, *lines: str) -> None:
        """/proc/self/cgroup."""
        self.write("proc/self/cgroup", "".join(f"{line}\n" for line in lines))

    def mounts(self, *mounts: tuple[str, str, str]) -> None:
        """/proc/self/mountinfo: (controllers or "cgroup2", top, mount point) each."""
        lines = ["22 1 0:21 / /proc rw,nosuid - proc proc rw"]
        for kind, top, point in mounts:
            name = "cgroup2" if kind == "cgroup2" else "cgroup"
            place = point.replace(" ", "\\040")
            lines.append(f"31 23 0:28 {top} {place} rw,relatime shared:9 - {name} {name} rw,{kind}")
        self.write("proc/self/mountinfo", "\n".join(lines) + "\n")

    def v2(self, folder: str, limit: object, used: int, high: object = "max", **stat: int) -> None:
        """The memory files of a group of version 2."""
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.high", f"{high}\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        self.write(f"{folder}/memory.stat", _lines({"anon": 5, **stat}))

    def v1(self, folder: str, limit: int, used: int, **stat: int) -> None:
        """The memory files of a group of version 1."""
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{folder}/memory.use_hierarchy", "1\n")
        self.write(f"{folder}/memory.stat", _lines({"cache": 5, **stat}))


def _lines(pairs: dict[str, int]) -> str:
    return "".join(f"{key} {value}\n" for key, value in pairs.items())
