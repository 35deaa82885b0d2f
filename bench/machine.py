"""Names this machine by its CPU, and the code by its commit; never a host name."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

from native.machine import physical_cores

ROOT = Path(__file__).parents[1]
_NOISE = re.compile(r"\((?:r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\d+-core", re.IGNORECASE)


def machine_name() -> str:
    """For instance ``amd-epyc-2c``: the CPU model and the physical cores this process may use."""
    return slug(_cpu_model(Path("/proc/cpuinfo")), physical_cores())


def slug(cpu_model: str, cores: int) -> str:
    """A file name of a CPU model: lower case, hyphens, no marketing signs or clock rates."""
    words = re.findall(r"[a-z0-9]+", _NOISE.sub(" ", cpu_model).lower())
    return "-".join([*words, f"{cores}c"])


def commit() -> str:
    """The commit that is measured, with ``-dirty`` when the checkout differs from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()


def load_average() -> float:
    """Runnable processes during the last minute; before a run it should be near 0."""
    return float(Path("/proc/loadavg").read_text(encoding="ascii").split()[0])


def _cpu_model(cpuinfo: Path) -> str:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()
