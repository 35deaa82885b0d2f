"""How many threads to compute with: physical cores, not more than this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores() -> int:
    """Count the distinct cores behind the CPUs of this process, capped by its cgroup quota.

    Two hyper-threads of one core share its vector units, so a second thread there slows decoding.
    """
    allowed = sorted(os.sched_getaffinity(0))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    try:
        return (_CPU / f"cpu{cpu}" / "topology" / "core_cpus_list").read_text().strip()
    except OSError:
        return str(cpu)  # no topology known: every CPU is a core


def _quota() -> int:
    try:
        limit, period = _QUOTA.read_text().split()
        return math.ceil(int(limit) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return 1 << 16  # "max", or no cgroup v2
