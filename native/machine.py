"""The number of threads to compute with: physical cores, not more than this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from native.control_groups import ROOT, Group, groups

_CPU = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Count the distinct cores behind the CPUs of this process, capped by its CPU quota.

    Two hyper-threads of one core share its vector units, so a second thread there slows decoding.
    """
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), math.ceil(cpu_quota() or len(cores))))


def usable_cpus() -> int:
    """The CPUs of this process (its affinity, which cpusets limit too), capped by its CPU quota."""
    cpus = len(os.sched_getaffinity(0))
    return max(1, min(cpus, math.ceil(cpu_quota() or cpus)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs that the control groups above this process allow in the mean; None: no limit."""
    quotas = [quota for group in groups("cpu", root) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def _quota(group: Group) -> float | None:
    try:
        if group.version == 2:
            limit, period = group.read("cpu.max").split()
        else:
            limit, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
        quota = int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such controller here
        return None
    return quota if quota > 0 else None  # version 1 writes -1 for no limit


def _siblings(cpu: int) -> str:
    try:
        return (_CPU / f"cpu{cpu}" / "topology" / "core_cpus_list").read_text().strip()
    except OSError:
        return str(cpu)  # no topology known: every CPU is a core
