"""The cause of a kill, from the kernel's counters."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from native.oom_watch import RECENT_S, OomWatch
from supervision import kill_watch
from supervision.exits import reason_of_exit_code
from tests.support.machines import NO_LIMIT_V1, Machine

pytestmark = pytest.mark.pure

MIB = 1 << 20
UNIT = "/sys/fs/cgroup/a.slice/unit"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.cgroup("0::/a.slice/unit")
    machine.mounts(("cgroup2", "/", "/sys/fs/cgroup"))
    machine.v2("/sys/fs/cgroup/a.slice", 900 * MIB, 0)
    machine.v2(UNIT, 700 * MIB, 0)
    events(machine, UNIT)
    events(machine, "/sys/fs/cgroup/a.slice")
    return machine


def events(machine: Machine, folder: str, oom: int = 0, kills: int = 0) -> None:
    text = f"low 0\nhigh 0\nmax 5\noom {oom}\noom_kill {kills}\noom_group_kill 0\n"
    machine.write(f"{folder}/memory.events", text)


def test_a_kill_names_the_limit_and_its_group(machine: Machine, clock: Clock) -> None:
    watch = OomWatch(machine.root, clock)
    assert watch.cause() == ""
    events(machine, UNIT, oom=3, kills=1)
    events(machine, "/sys/fs/cgroup/a.slice", oom=3, kills=1)
    assert watch.cause() == (
        "by the kernel for lack of memory (limit 700 MiB of control group /a.slice/unit)"
    )
    assert watch.cause() == ""  # one kill explains one exit


def test_the_parents_limit_is_named_if_it_was_that(machine: Machine, clock: Clock) -> None:
    watch = OomWatch(machine.root, clock)
    events(machine, UNIT, oom=0, kills=2)
    events(machine, "/sys/fs/cgroup/a.slice", oom=1, kills=2)
    for _ in range(2):
        assert "limit 900 MiB of control group /a.slice)" in watch.cause()
    assert watch.cause() == ""


def test_no_limit_was_reached_so_it_was_the_machine(machine: Machine, clock: Clock) -> None:
    watch = OomWatch(machine.root, clock)
    events(machine, UNIT, kills=1)
    assert watch.cause() == "by the kernel for lack of memory (of the whole machine)"


def test_a_kill_of_long_ago_explains_nothing(machine: Machine, clock: Clock) -> None:
    watch = OomWatch(machine.root, clock)
    events(machine, UNIT, oom=1, kills=1)
    watch.look()
    clock.now += RECENT_S / 2
    watch.look()
    clock.now += RECENT_S
    assert watch.cause() == ""


def test_a_kill_seen_by_the_look_before_the_exit_counts(machine: Machine, clock: Clock) -> None:
    watch = OomWatch(machine.root, clock)
    events(machine, UNIT, oom=1, kills=1)
    watch.look()
    clock.now += 1.0
    assert "limit 700 MiB" in watch.cause()


def test_version_1_counts_in_other_files(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(tmp_path)
    machine.cgroup("4:memory:/docker/abc")
    machine.mounts(("memory", "/", "/mem"))
    machine.v1("/mem/docker", NO_LIMIT_V1, 0)
    machine.v1("/mem/docker/abc", 700 * MIB, 0)
    for folder in ("/mem/docker", "/mem/docker/abc"):
        machine.write(f"{folder}/memory.oom_control", "oom_kill_disable 0\noom_kill 0\n")
        machine.write(f"{folder}/memory.failcnt", "7\n")
    watch = OomWatch(machine.root, clock)
    machine.write("/mem/docker/abc/memory.failcnt", "90\n")
    machine.write("/mem/docker/abc/memory.oom_control", "oom_kill_disable 0\noom_kill 1\n")
    assert "limit 700 MiB of control group /docker/abc" in watch.cause()


def test_in_no_group_the_machines_counter_is_read(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(tmp_path)
    machine.write("proc/vmstat", "pgfault 3\noom_kill 4\n")
    watch = OomWatch(machine.root, clock)
    assert watch.cause() == ""
    machine.write("proc/vmstat", "pgfault 3\noom_kill 5\n")
    assert watch.cause() == "by the kernel for lack of memory (of the whole machine)"


def test_without_any_counter_nothing_is_claimed(tmp_path: Path, clock: Clock) -> None:
    watch = OomWatch(tmp_path, clock)
    watch.look()
    assert watch.cause() == ""


# ── the report of a supervisor ──────────────────────────────────────────────────────────────────


class Counts:
    def __init__(self, by: str) -> None:
        self.by = by

    def look(self) -> None:
        if self.by == "broken":
            raise OSError(5, "broken")

    def cause(self) -> str:
        self.look()
        return self.by


@pytest.fixture(autouse=True)
def _no_watch_stays() -> Iterator[None]:
    yield
    kill_watch.set_watch(None)


@pytest.mark.parametrize(
    ("watch", "text"),
    [
        (None, "killed by SIGKILL, perhaps for lack of memory"),
        (Counts(""), "killed by SIGKILL, perhaps for lack of memory"),
        (Counts("broken"), "killed by SIGKILL, perhaps for lack of memory"),
        (Counts("by the kernel (limit 1)"), "killed by the kernel (limit 1)"),
    ],
)
def test_a_sigkill_is_explained(watch: Counts | None, text: str) -> None:
    kill_watch.set_watch(watch)
    reason = kill_watch.explained(reason_of_exit_code(-signal.SIGKILL))
    assert reason.text == text
    assert reason.signal == signal.SIGKILL


def test_a_watch_that_breaks_is_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    kill_watch.set_watch(Counts("broken"))
    for _ in range(3):
        kill_watch.look()
    assert caplog.text.count("not looking again") == 1


def test_other_ends_are_left_as_they_are() -> None:
    kill_watch.set_watch(Counts("by the kernel"))
    for code in (-signal.SIGSEGV, 3, None):
        assert kill_watch.explained(reason_of_exit_code(code)) == reason_of_exit_code(code)
