"""A child that hangs is killed and restarted; one that is busy is not. Every crash is reported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from supervision.exits import ExitKind
from supervision.kill_watch import PERHAPS
from supervision.messages import ReportVitals, Vitals, VitalsReported, new_ref
from supervision.spec import ChildKind, ChildSpec, Strategy, SupervisorSpec
from supervision.supervisor import ACTOR as SUPERVISOR
from tests.support.children import Do, Echo, Echoed, ReportSeen, Seen, Work, Worked
from tests.support.nodes import RunningNode, alive, running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

HEARTBEAT_S = 0.5
HANG_S = 60.0
"""How long a child would hang if nothing was done about it."""
ENGINE = "tests.support.children.EngineChild"


def good(child_id: str, **changes: object) -> ChildSpec:
    options = {"heartbeat_s": HEARTBEAT_S} | changes
    return ChildSpec(child_id, "tests.support.children.GoodChild", **options)  # type: ignore[arg-type]


def engine(**changes: object) -> ChildSpec:
    options = {"heartbeat_s": HEARTBEAT_S} | changes
    return ChildSpec("engine", ENGINE, **options)  # type: ignore[arg-type]


def tree(*children: ChildSpec) -> SupervisorSpec:
    return SupervisorSpec(Strategy.ONE_FOR_ONE, children)


def pid_of(node: RunningNode, child_id: str) -> int:
    pid = node.up(child_id).pid
    assert pid is not None
    return pid


def pause(seconds: float) -> None:
    """Let time pass that is itself what is tested."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, within_s=seconds + 5)


def vitals(node: RunningNode, supervisor: str = "root") -> dict[str, Vitals]:
    answer = node.connect().ask(supervisor, ReportVitals(new_ref()), timeout_s=30)
    assert isinstance(answer, VitalsReported)
    return {one.id: one for one in answer.vitals}


def restarts(node: RunningNode) -> dict[str, int]:
    return {entry.id: entry.incarnation for entry in node.connect().directory()}


def json_lines(node: RunningNode, event: str = "") -> list[dict[str, object]]:
    found = [json.loads(line) for line in node.log.splitlines()]
    return [one for one in found if not event or one["event"] == event]


# ── hung ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["spin", "busy", "SIGSTOP"])
def test_a_child_that_hangs_is_killed_in_time_and_restarted(tmp_path, how):
    with running_node(tree(good("a"), good("b")), tmp_path) as node:
        node.up("b")
        began = time.monotonic()
        if how == "SIGSTOP":
            os.kill(pid_of(node, "a"), signal.SIGSTOP)
        else:
            node.connect().tell("a", Do(how, HANG_S))
        entry = node.up("a", after_incarnation=1)
        # On a busy machine it waits for a CPU, and that time is not held against it.
        assert HEARTBEAT_S * 0.7 < time.monotonic() - began < HANG_S / 2
        assert entry.last_exit is not None
        assert entry.last_exit.kind is ExitKind.KILLED
        assert entry.last_exit.text.startswith("hung: no sign of life for ")
        where = "between messages" if how == "SIGSTOP" else "in Do for "
        assert where in entry.last_exit.text
        assert isinstance(node.connect().ask("a", Echo(new_ref()), timeout_s=30), Echoed)
        assert node.entry("b").incarnation == 1


def test_a_supervisor_that_hangs_is_killed_and_its_subtree_is_restarted(tmp_path):
    sub = ChildSpec(
        "sub", SUPERVISOR, tree(good("x")), kind=ChildKind.SUPERVISOR, heartbeat_s=HEARTBEAT_S
    )
    with running_node(tree(sub, good("b")), tmp_path) as node:
        x = pid_of(node, "x")
        os.kill(pid_of(node, "sub"), signal.SIGSTOP)
        entry = node.up("sub", after_incarnation=1, within_s=30)
        assert entry.last_exit is not None
        assert "no sign of life" in entry.last_exit.text
        assert node.up("x", after_incarnation=1).pid != x
        assert not alive(x)
        assert node.entry("b").incarnation == 1


def test_a_root_that_hangs_restarts_the_node(tmp_path):
    with running_node(tree(good("a")), tmp_path, root_heartbeat_s=HEARTBEAT_S) as node:
        before = node.record
        os.kill(before.root_pid, signal.SIGSTOP)
        eventually(lambda: node.record.boot == 2, within_s=30, what="a second boot")
        node.note_group()
        assert node.up("a").pid
        assert "the root supervisor hangs: no sign of life for " in node.log


def test_an_engine_that_does_not_beat_in_its_step_is_killed(tmp_path):
    with running_node(tree(engine(engine_heartbeat_s=0.4)), tmp_path) as node:
        began = time.monotonic()
        node.connect().tell("engine", Work(new_ref(), "step", HANG_S))
        entry = node.up("engine", after_incarnation=1)
        assert time.monotonic() - began < HANG_S / 2
        assert entry.last_exit is not None
        assert "its engine is in a step and has not beaten for " in entry.last_exit.text


def test_a_child_without_a_heartbeat_may_hang(tmp_path):
    with running_node(tree(good("a", heartbeat_s=None), good("b")), tmp_path) as node:
        node.connect().tell("a", Do("busy", 1.5))
        assert isinstance(node.connect().ask("a", Echo(new_ref()), timeout_s=30), Echoed)
        assert restarts(node) == {"root": 1, "a": 1, "b": 1}


# ── busy ─────────────────────────────────────────────────────────────────────


def test_an_idle_child_lives_on_and_hardly_wakes_up(tmp_path):
    with running_node(tree(good("a", heartbeat_s=1.0)), tmp_path) as node:
        status = Path(f"/proc/{pid_of(node, 'a')}/status")

        def wake_ups() -> int:
            line = next(x for x in status.read_text().splitlines() if x.startswith("voluntary"))
            return int(line.split()[1])

        before = wake_ups()
        pause(2.5)
        assert wake_ups() - before < 40
        assert restarts(node) == {"root": 1, "a": 1}


def test_a_child_with_a_long_queue_of_short_messages_is_not_killed(tmp_path):
    with running_node(tree(good("a")), tmp_path) as node:
        connection = node.connect()
        began = time.monotonic()
        for _ in range(1000):
            connection.tell("a", Do("busy", 0.002))
        assert isinstance(connection.ask("a", Echo(new_ref()), timeout_s=30), Echoed)
        assert time.monotonic() - began > 3 * HEARTBEAT_S
        assert restarts(node) == {"root": 1, "a": 1}


@pytest.mark.parametrize("work", ["sleep", "beats"])
def test_an_engine_at_work_for_long_is_not_killed(tmp_path, work):
    with running_node(tree(engine(engine_heartbeat_s=0.4)), tmp_path) as node:
        done = node.connect().ask("engine", Work(new_ref(), work, 3.0), timeout_s=30)
        assert isinstance(done, Worked)
        pause(1.0)  # between steps it may be silent
        assert restarts(node) == {"root": 1, "engine": 1}


@pytest.mark.parametrize("whole_node", [False, True])
def test_a_supervisor_that_was_stopped_itself_kills_no_child(tmp_path, whole_node):
    with running_node(tree(good("a"), good("b"), good("c")), tmp_path) as node:
        root = node.record.root_pid
        stop = (os.killpg, os.getpgid(root)) if whole_node else (os.kill, root)
        node.up("c")
        stop[0](stop[1], signal.SIGSTOP)
        try:
            pause(3 * HEARTBEAT_S)
        finally:
            stop[0](stop[1], signal.SIGCONT)
        pause(2 * HEARTBEAT_S)
        assert restarts(node) == {"root": 1, "a": 1, "b": 1, "c": 1}
        os.kill(pid_of(node, "a"), signal.SIGSTOP)  # and it still looks
        assert node.up("a", after_incarnation=1)


# ── reported ─────────────────────────────────────────────────────────────────


def test_a_supervisor_reports_the_vitals_of_its_children_also_of_one_that_hangs(tmp_path):
    with running_node(tree(good("a", heartbeat_s=None), good("b")), tmp_path) as node:
        connection = node.connect()
        assert isinstance(connection.ask("a", Echo(new_ref()), timeout_s=30), Echoed)
        idle = vitals(node)["a"]
        assert (idle.busy_s, idle.busy_with, idle.incarnation) == (None, "", 1)
        assert idle.pid == node.entry("a").pid
        connection.tell("a", Do("busy", 3.0))
        busy = eventually(lambda: (v := vitals(node)["a"]).busy_s and v, what="a is busy")
        assert busy.busy_with == "Do"
        assert busy.turns >= idle.turns
        later = eventually(lambda: (v := vitals(node)["a"]).busy_s > 0.5 and v, what="still busy")
        assert later.silent_s > 0.5
        root = vitals(node)["root"]
        assert root.pid == node.record.root_pid
        assert root.busy_s is None


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("SIGKILL", PERHAPS),
        ("segv", "killed by SIGSEGV"),
        ("exit", "exited with status 3 without a reason"),
        ("raise", "RuntimeError: raised by the test"),
    ],
)
def test_every_crash_has_a_report_with_the_last_messages(tmp_path, how, reason):
    with running_node(tree(good("a")), tmp_path, log_format="json") as node:
        connection = node.connect()
        for _ in range(3):
            connection.ask("a", Echo(new_ref(), "a secret of the caller"), timeout_s=30)
        seen = connection.ask("a", ReportSeen(new_ref()), timeout_s=30)
        assert isinstance(seen, Seen)
        pid = pid_of(node, "a")
        if how == "SIGKILL":
            os.kill(pid, signal.SIGKILL)
        else:
            connection.tell("a", Do(how))
        node.up("a", after_incarnation=1)
        (report,) = json_lines(node, "crash_report")
        assert (report["child"], report["incarnation"], report["child_pid"]) == ("a", 1, pid)
        assert report["reason"] == reason
        assert report["action"] == "restart"
        assert report["turns"] >= 4
        assert report["uptime_s"] > 0
        last = [(one["message"], one["took_s"] is None) for one in report["last"]]
        told = [("Echo", False)] * 3 + [("ReportSeen", False)]
        assert [one for one in last if one[0] in ("Echo", "ReportSeen", "Do")] == (
            told if how == "SIGKILL" else [*told, ("Do", True)]
        )
        assert ("stack" in report) is (how == "segv")
        if how == "segv":
            assert "children.py" in report["stack"]
        assert "secret" not in node.log


def test_in_text_a_report_names_the_message_that_was_handled(tmp_path):
    with running_node(tree(good("a")), tmp_path) as node:
        node.connect().ask("a", Echo(new_ref()), timeout_s=30)
        node.connect().tell("a", Do("kill"))
        node.up("a", after_incarnation=1)
        report = node.log.partition("crash report of a incarnation 1 pid")[2].splitlines()
        assert report[0].endswith(f"killed: {PERHAPS}; action: restart")
        assert report[1].startswith("up for ")
        lines = [line for line in report[2:] if line.startswith("  ")]
        assert any(line.startswith("  Echo, ") and "took" in line for line in lines)
        assert any(line.startswith("  Do, ") and "it was in this one" in line for line in lines)


def test_the_json_log_of_a_whole_life_is_lines_of_objects(tmp_path):
    with running_node(tree(good("a")), tmp_path, log_format="json") as node:
        node.connect().tell("a", Do("raise"))
        node.up("a", after_incarnation=1)
        os.kill(node.record.admin_pid, signal.SIGKILL)
        eventually(lambda: node.record.boot == 2, what="a second boot")
        node.note_group()
        node.up("a")
    objects = json_lines(node)
    assert all({"ts", "level", "pid", "logger", "event", "message"} <= set(o) for o in objects)
    events = [one["event"] for one in objects]
    for event in ("up", "down", "restart", "crashed", "crash_report", "node_up", "node_down",
                  "node_stopping", "node_stopped", "stopped"):  # fmt: skip
        assert event in events, event
    crashed = next(one for one in objects if one["event"] == "crashed")
    assert "Traceback" in crashed["message"]
    assert (crashed["child"], crashed["reason"]) == ("a", "RuntimeError: raised by the test")
    down = next(one for one in objects if one["event"] == "down")
    assert (down["child"], down["incarnation"], down["action"]) == ("a", 1, "restart")
    assert down["reason_kind"] == "abnormal"


def test_nothing_is_written_into_the_temporary_folder(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with running_node(tree(good("a")), tmp_path) as node:
        node.connect().tell("a", Do("segv"))
        node.up("a", after_incarnation=1)
        os.kill(node.record.admin_pid, signal.SIGKILL)
        eventually(lambda: node.record.boot == 2, what="a second boot")
        node.note_group()
        node.up("a")
    assert list(temporary.iterdir()) == []


def test_pages_of_ended_children_are_released(tmp_path):
    spec = SupervisorSpec(Strategy.ONE_FOR_ONE, (good("a"),), intensity=1000)
    with running_node(spec, tmp_path) as node:
        maps = Path(f"/proc/{node.record.root_pid}/maps")

        def pages() -> int:
            return maps.read_text(encoding="utf-8").count("/dev/zero (deleted)")

        node.up("a")
        before = pages()
        for number in range(1, 21):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid_of(node, "a"), signal.SIGKILL)
            node.up("a", after_incarnation=number)
        assert pages() == before
