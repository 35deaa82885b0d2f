"""How much a process may still take: the least that the machine and its control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.pressure_sources import available_memory

pytestmark = pytest.mark.pure

GIB = 1 << 30


def machine(root: Path, available: int, group: str = "/a/b") -> tuple[Path, Path]:
    proc, cgroups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroups / "a" / "b").mkdir(parents=True)
    (proc / "meminfo").write_text(
        f"MemTotal: {64 * GIB >> 10} kB\nMemAvailable: {available >> 10} kB\n"
    )
    (proc / "self" / "cgroup").write_text(f"0::{group}\n")
    return proc, cgroups


def limit(folder: Path, most: int, used: int, idle: int = 0, busy: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {idle}\nactive_file {busy}\n")


def test_without_limits_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert available_memory(*machine(tmp_path, 20 * GIB)) == 20 * GIB


def test_the_tightest_limit_counts_not_the_fullest(tmp_path: Path) -> None:
    """A small group that is half empty leaves less than a big machine that is two thirds full."""
    proc, cgroups = machine(tmp_path, 20 * GIB)
    limit(cgroups / "a", 2 * GIB, GIB)
    limit(cgroups / "a" / "b", 10 * GIB, GIB)
    assert available_memory(proc, cgroups) == GIB


def test_a_model_file_in_the_page_cache_is_no_reason_to_refuse_it(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, 20 * GIB)
    limit(cgroups / "a" / "b", 8 * GIB, 7 * GIB, idle=GIB, busy=5 * GIB)
    assert available_memory(proc, cgroups) == 7 * GIB


def test_nothing_is_known_where_nothing_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psutil", None)
    assert available_memory(tmp_path, tmp_path) is None
