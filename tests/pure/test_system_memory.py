"""How much a process may still take: the least that the machine and everything above it leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native.control_groups import groups
from native.machine import cpu_quota
from native.system_memory import available_memory, group_limits, tightest_limit
from tests.support.machines import NO_LIMIT_V1, Machine

pytestmark = pytest.mark.pure

GIB = 1 << 30
MIB = 1 << 20
V2 = "/sys/fs/cgroup"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def unified(machine: Machine, own: str, top: str = "/", point: str = V2) -> None:
    machine.cgroup(f"0::{own}")
    machine.mounts(("cgroup2", top, point))


def test_without_limits_it_is_the_value_of_the_kernel(machine: Machine) -> None:
    unified(machine, "/user.slice/me")
    machine.v2(f"{V2}/user.slice/me", "max", 3 * GIB)
    assert available_memory(machine.root) == 20 * GIB


def test_a_units_own_group_counts_not_only_the_root(machine: Machine) -> None:
    """systemd's MemoryMax= of a unit: the root group has no limit at all."""
    unified(machine, "/system.slice/llama.service")
    machine.v2(f"{V2}/system.slice/llama.service", 700 * MIB, 100 * MIB)
    tightest = tightest_limit(machine.root)
    assert tightest is not None
    assert tightest.available == 600 * MIB
    assert tightest.where == "control group /system.slice/llama.service"


def test_the_tightest_limit_counts_not_the_fullest(machine: Machine) -> None:
    """A small slice that is half empty leaves less than a big unit that is nearly full."""
    unified(machine, "/a.slice/a-b.slice/unit")
    machine.v2(f"{V2}/a.slice", 2 * GIB, GIB)
    machine.v2(f"{V2}/a.slice/a-b.slice", "max", GIB)
    machine.v2(f"{V2}/a.slice/a-b.slice/unit", 10 * GIB, 8 * GIB)
    assert available_memory(machine.root) == GIB


def test_memory_high_limits_too(machine: Machine) -> None:
    unified(machine, "/unit")
    machine.v2(f"{V2}/unit", 8 * GIB, GIB, high=2 * GIB)
    assert available_memory(machine.root) == GIB


def test_a_model_file_in_the_page_cache_is_no_reason_to_refuse_it(machine: Machine) -> None:
    unified(machine, "/unit")
    machine.v2(f"{V2}/unit", 8 * GIB, 7 * GIB, inactive_file=GIB, active_file=5 * GIB)
    assert available_memory(machine.root) == 7 * GIB
    assert group_limits(machine.root)[0].used == 6 * GIB


def test_the_root_of_a_namespace_is_the_containers_group(machine: Machine) -> None:
    """With a namespace of its own, a container sees its group as the root, with its limit."""
    unified(machine, "/")
    machine.v2(V2, GIB, 256 * MIB)
    assert available_memory(machine.root) == 768 * MIB


@pytest.mark.parametrize("own", ["/../../docker/abc", "/docker/abc", "/docker/abc (deleted)"])
def test_a_path_outside_of_the_mount_means_its_root(machine: Machine, own: str) -> None:
    """A container without a namespace names the host's path; only its own part is mounted."""
    unified(machine, own, top="/docker/abc")
    machine.v2(V2, GIB, 0)
    assert available_memory(machine.root) == GIB


def test_a_foreign_part_of_the_hierarchy_is_as_close_as_can_be_seen(machine: Machine) -> None:
    unified(machine, "/", top="/kubepods/pod1/ctr")
    machine.v2(V2, GIB, 0)
    assert available_memory(machine.root) == GIB


def test_version_1_counts_with_its_parents(machine: Machine) -> None:
    machine.cgroup("4:memory:/docker/abc", "3:cpu,cpuacct:/docker/abc", "1:name=systemd:/")
    machine.mounts(("memory", "/", "/sys/fs/cgroup/memory"), ("cpu,cpuacct", "/", "/cg/cpu"))
    machine.v1("/sys/fs/cgroup/memory", NO_LIMIT_V1, 9 * GIB)
    machine.v1("/sys/fs/cgroup/memory/docker", 2 * GIB, GIB, total_inactive_file=512 * MIB)
    machine.v1("/sys/fs/cgroup/memory/docker/abc", NO_LIMIT_V1, 100 * MIB)
    assert available_memory(machine.root) == GIB + 512 * MIB


def test_version_1_shows_limits_of_parents_outside_of_the_container(machine: Machine) -> None:
    machine.cgroup("4:memory:/docker/abc")
    machine.mounts(("memory", "/docker/abc", "/sys/fs/cgroup/memory"))
    machine.v1("/sys/fs/cgroup/memory", NO_LIMIT_V1, MIB, hierarchical_memory_limit=GIB)
    assert available_memory(machine.root) == GIB - MIB


def test_version_1_without_a_hierarchy_has_no_parents(machine: Machine) -> None:
    machine.cgroup("4:memory:/a/b")
    machine.mounts(("memory", "/", "/mem"))
    machine.v1("/mem/a", MIB, MIB)
    machine.v1("/mem/a/b", 2 * GIB, GIB)
    machine.write("/mem/a/b/memory.use_hierarchy", "0\n")
    assert available_memory(machine.root) == GIB


def test_hybrid_mounts_are_read_where_the_controller_is(machine: Machine) -> None:
    machine.cgroup("4:memory:/jobs/1", "1:name=systemd:/x", "0::/system.slice/x")
    machine.mounts(
        ("memory", "/", "/sys/fs/cgroup/memory"),
        ("cgroup2", "/", "/sys/fs/cgroup/unified"),
    )
    machine.v1("/sys/fs/cgroup/memory/jobs/1", GIB, 0)
    machine.write("/sys/fs/cgroup/unified/system.slice/x/cgroup.procs", "")
    assert available_memory(machine.root) == GIB


def test_a_mount_elsewhere_is_found_by_the_mount_table(machine: Machine) -> None:
    unified(machine, "/unit", point="/mnt/my groups")
    machine.v2("/mnt/my groups/unit", GIB, 0)
    assert available_memory(machine.root) == GIB


def test_of_several_mounts_the_one_that_shows_most_counts(machine: Machine) -> None:
    machine.cgroup("0::/a/b")
    machine.mounts(("cgroup2", "/a/b", "/small"), ("cgroup2", "/", V2))
    machine.v2(f"{V2}/a", GIB, 0)
    machine.v2(f"{V2}/a/b", 2 * GIB, 0)
    machine.v2("/small", 2 * GIB, 0)
    assert available_memory(machine.root) == GIB


def test_without_a_mount_table_the_usual_places_are_read(machine: Machine) -> None:
    machine.cgroup("0::/unit", "4:memory:/old")
    machine.v2(f"{V2}/unit", 2 * GIB, 0)
    assert available_memory(machine.root) == 2 * GIB
    machine.v1(f"{V2}/memory/old", GIB, 0)
    assert available_memory(machine.root) == GIB


@pytest.mark.parametrize(
    ("line", "field", "available"),
    [
        ("Max address space         2147483648           unlimited            bytes", 0, 2 * GIB),
        ("Max data size             1073741824           2147483648           bytes", 5, GIB),
        ("Max address space         unlimited            unlimited            bytes", 0, 20 * GIB),
    ],
)
def test_limits_of_the_process_count(
    machine: Machine, line: str, field: int, available: int
) -> None:
    pages = ["0"] * 7
    pages[field] = "100"
    machine.write("proc/self/limits", f"Limit  Soft Limit  Hard Limit  Units\n{line}\n")
    machine.write("proc/self/statm", " ".join(pages))
    used = 0 if available == 20 * GIB else 100 * os.sysconf("SC_PAGE_SIZE")
    assert available_memory(machine.root) == available - used


def test_a_group_over_its_limit_leaves_nothing(machine: Machine) -> None:
    unified(machine, "/unit")
    machine.v2(f"{V2}/unit", GIB, 2 * GIB)
    assert available_memory(machine.root) == 0


def test_nothing_is_known_where_nothing_can_be_read(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    assert groups("memory", tmp_path) == ()
    assert cpu_quota(tmp_path) is None


def test_a_limit_is_known_even_where_the_machine_is_not(machine: Machine) -> None:
    (machine.root / "proc/meminfo").unlink()
    unified(machine, "/unit")
    machine.v2(f"{V2}/unit", GIB, 0)
    assert available_memory(machine.root) == GIB


def test_missing_and_unreadable_files_are_no_limit(machine: Machine) -> None:
    unified(machine, "/a/b/c")
    machine.write(f"{V2}/a/memory.max", "1000\n")  # without memory.current
    machine.write(f"{V2}/a/b/memory.max", "what?\n")
    machine.write(f"{V2}/a/b/c/cgroup.procs", "")
    assert available_memory(machine.root) == 20 * GIB


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_in_proc_is_an_error(tmp_path_factory, own: str, mounts: str) -> None:
    machine = Machine(tmp_path_factory.mktemp("any"))
    machine.write("proc/self/cgroup", own)
    machine.write("proc/self/mountinfo", mounts)
    machine.write("proc/self/limits", own)
    machine.write("proc/self/statm", mounts)
    assert available_memory(machine.root) == 20 * GIB
    assert cpu_quota(machine.root) is None


# ── CPUs ───────────────────────────────────────────────────────────────────────────────────────


def test_the_least_quota_on_the_way_up_counts(machine: Machine) -> None:
    unified(machine, "/a.slice/unit")
    machine.write(f"{V2}/a.slice/cpu.max", "150000 100000\n")
    machine.write(f"{V2}/a.slice/unit/cpu.max", "max 100000\n")
    assert cpu_quota(machine.root) == 1.5
    machine.write(f"{V2}/a.slice/unit/cpu.max", "50000 100000\n")
    assert cpu_quota(machine.root) == 0.5


def test_version_1_has_quotas_too(machine: Machine) -> None:
    machine.cgroup("3:cpu,cpuacct:/docker/abc")
    machine.mounts(("cpu,cpuacct", "/docker/abc", "/sys/fs/cgroup/cpu,cpuacct"))
    place = "/sys/fs/cgroup/cpu,cpuacct"
    machine.write(f"{place}/cpu.cfs_quota_us", "-1\n")
    machine.write(f"{place}/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(machine.root) is None
    machine.write(f"{place}/cpu.cfs_quota_us", "300000\n")
    assert cpu_quota(machine.root) == 3.0


def test_threads_keep_to_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    from native import machine as here

    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(here, "_siblings", str)
    for quota, threads in ((None, 8), (0.2, 1), (1.5, 2), (3.0, 3), (100.0, 8)):
        monkeypatch.setattr(here, "cpu_quota", lambda quota=quota: quota)
        assert here.physical_cores() == threads
        assert here.usable_cpus() == threads
