"""Kill anything, at any level: the tree heals, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time

import pytest

from supervision.errors import NodeNotRunning, NoReply
from supervision.exits import ExitKind
from supervision.messages import Entry, ReportStatus, StartChild, new_ref
from supervision.spec import ChildKind, ChildSpec, Strategy, SupervisorSpec
from supervision.supervisor import ACTOR as SUPERVISOR
from tests.support.children import Do, Echo, Echoed, Plan
from tests.support.nodes import (
    RunningNode,
    alive,
    group_pids,
    port_is_free,
    running_node,
    start_node,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

GOOD = "tests.support.children.GoodChild"


def good(child_id: str, plan: Plan | None = None, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, GOOD, args=plan, **changes)  # type: ignore[arg-type]


def below(child_id: str, spec: SupervisorSpec, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, SUPERVISOR, args=spec, kind=ChildKind.SUPERVISOR, **changes)  # type: ignore[arg-type]


def tree(strategy: Strategy, *children: ChildSpec, **changes: object) -> SupervisorSpec:
    return SupervisorSpec(strategy, children, **changes)  # type: ignore[arg-type]


def flat(*ids: str, **changes: object) -> SupervisorSpec:
    return tree(Strategy.ONE_FOR_ONE, *(good(one) for one in ids), **changes)


def echo(node: RunningNode, child_id: str) -> Echoed:
    answer = node.connect().ask(child_id, Echo(new_ref()), timeout_s=30)
    assert isinstance(answer, Echoed)
    return answer


def kill_child(node: RunningNode, child_id: str, sig: int = signal.SIGKILL) -> Entry:
    entry = node.up(child_id)
    assert entry.pid is not None
    os.kill(entry.pid, sig)
    return entry


def children_are_all(node: RunningNode, up: bool) -> bool:
    return all(entry.is_up is up for entry in node.connect().directory())


@pytest.mark.parametrize(
    ("how", "kind", "word"),
    [
        ("kill", ExitKind.KILLED, "SIGKILL"),
        ("segv", ExitKind.KILLED, "SIGSEGV"),
        ("abort", ExitKind.KILLED, "SIGABRT"),
        ("exit", ExitKind.ABNORMAL, "status 3"),
        ("raise", ExitKind.ABNORMAL, "RuntimeError: raised by the test"),
    ],
)
def test_a_worker_that_ends_is_restarted_and_its_reason_is_kept(tmp_path, how, kind, word):
    with running_node(flat("a", "b"), tmp_path) as node:
        b = node.entry("b")
        node.connect().tell("a", Do(how))
        entry = node.up("a", after_incarnation=1)
        assert entry.last_exit is not None
        assert entry.last_exit.kind is kind
        assert word in entry.last_exit.text
        assert echo(node, "a").incarnation == 2
        assert node.entry("b") == b


def test_an_exception_runs_its_handler_once(tmp_path):
    path = tmp_path / "journal"
    spec = tree(Strategy.ONE_FOR_ONE, good("a", Plan(journal=str(path))))
    with running_node(spec, tmp_path) as node:
        node.connect().tell("a", Do("raise"))
        node.up("a", after_incarnation=1)
        lines = path.read_text().splitlines()
        assert lines == ["a 1 init", "a 1 ready", "a 1 do raise 1", "a 2 init", "a 2 ready"]
        assert node.log.count("RuntimeError: raised by the test") >= 1
        assert node.log.count("Traceback") == 1


def test_a_segmentation_fault_leaves_its_python_stack_in_the_log(tmp_path):
    with running_node(flat("a"), tmp_path) as node:
        node.connect().tell("a", Do("segv"))
        node.up("a", after_incarnation=1)
        assert "Segmentation fault" in node.log
        assert "children.py" in node.log


@pytest.mark.parametrize(
    ("strategy", "restarted"),
    [
        (Strategy.ONE_FOR_ONE, "b"),
        (Strategy.REST_FOR_ONE, "bc"),
        (Strategy.ONE_FOR_ALL, "abc"),
    ],
)
def test_the_strategy_decides_which_children_restart_and_in_which_order(
    tmp_path, strategy, restarted
):
    path = tmp_path / "journal"
    plan = Plan(journal=str(path))
    with running_node(tree(strategy, *(good(i, plan) for i in "abc")), tmp_path) as node:
        kill_child(node, "b")
        for one in restarted:
            node.up(one, after_incarnation=1)
        for one in set("abc") - set(restarted):
            assert node.entry(one).incarnation == 1
        lines = path.read_text().splitlines()
        stops = [line[0] for line in lines if "terminate" in line]
        starts = [line[0] for line in lines if line[2:] == "2 init"]
        assert stops == [one for one in reversed(restarted) if one != "b"]
        assert starts == list(restarted)


def test_too_many_restarts_escalate_and_the_supervisors_subtree_is_rebuilt(tmp_path):
    inner = tree(Strategy.ONE_FOR_ONE, good("x"), good("y"), intensity=1, period_s=30)
    with running_node(tree(Strategy.ONE_FOR_ONE, below("sub", inner), good("b")), tmp_path) as node:
        b, sub = node.entry("b"), node.entry("sub")
        kill_child(node, "x")
        node.up("x", after_incarnation=1)
        kill_child(node, "x")
        back = node.up("sub", after_incarnation=1)
        assert back.last_exit is not None
        assert "more than 1 restarts" in back.last_exit.text
        assert not alive(sub.pid or 0)
        assert node.up("x", after_incarnation=2).incarnation == 3
        assert node.up("y", after_incarnation=1).incarnation == 2
        assert node.entry("b") == b


def test_a_root_that_gives_up_restarts_the_whole_node(tmp_path):
    with running_node(flat("a", intensity=0), tmp_path) as node:
        connection = node.connect()
        first = echo(node, "a")
        kill_child(node, "a")
        eventually(lambda: (r := node.folder.read()) and r.boot == 2, what="boot 2")
        node.note_group()
        second = connection.ask("a", Echo(new_ref()), timeout_s=30)
        assert isinstance(second, Echoed)
        assert second.pid != first.pid


def test_the_children_of_a_killed_supervisor_end_with_it_and_are_restarted(tmp_path):
    inner = flat("x", "y")
    with running_node(tree(Strategy.ONE_FOR_ONE, below("sub", inner), good("b")), tmp_path) as node:
        old = [node.entry(one).pid or 0 for one in ("x", "y")]
        kill_child(node, "sub")
        eventually(lambda: not any(alive(one) for one in old), what="orphans gone", within_s=30)
        for one in ("x", "y"):
            entry = node.up(one, after_incarnation=1)
            assert entry.incarnation == 2
            assert echo(node, one).pid == entry.pid
        assert node.entry("b").incarnation == 1


def test_a_killed_supervisors_dynamic_children_leave_the_directory(tmp_path):
    inner = SupervisorSpec(Strategy.SIMPLE_ONE_FOR_ONE, template=ChildSpec("t", GOOD))
    with running_node(tree(Strategy.ONE_FOR_ONE, below("dyn", inner)), tmp_path) as node:
        connection = node.connect()
        connection.ask("dyn", StartChild(new_ref(), "m"), timeout_s=30)
        node.up("m")
        kill_child(node, "dyn")
        node.up("dyn", after_incarnation=1)
        eventually(lambda: connection.where("m") is None, what="m out of the directory")
        connection.ask("dyn", StartChild(new_ref(), "m"), timeout_s=30)
        assert node.up("m").incarnation == 2


def test_ten_children_killed_at_once_are_all_restarted(tmp_path):
    ids = tuple(f"c{number}" for number in range(10))
    inner = flat(*ids, intensity=100)
    with running_node(tree(Strategy.ONE_FOR_ONE, below("sub", inner)), tmp_path) as node:
        for round_number in range(1, 4):
            for one in [node.up(i) for i in ids]:
                os.kill(one.pid or 0, signal.SIGKILL)
            for one in ids:
                node.up(one, after_incarnation=round_number)
        assert node.entry("sub").incarnation == 1


def test_a_stuck_child_holds_up_neither_its_siblings_nor_the_directory(tmp_path):
    ids = tuple(f"c{number}" for number in range(8))
    with running_node(flat(*ids, intensity=100), tmp_path) as node:
        stuck = [node.entry(one) for one in ids[:5]]
        for one in stuck:
            os.kill(one.pid or 0, signal.SIGSTOP)
        try:
            for incarnation in range(1, 6):
                began = time.monotonic()
                kill_child(node, "c7")
                node.up("c7", after_incarnation=incarnation)
                assert time.monotonic() - began < 4.0
            assert echo(node, "c6").id == "c6"
        finally:
            for one in stuck:
                os.kill(one.pid or 0, signal.SIGCONT)
        for one in stuck:
            assert echo(node, one.id).pid == one.pid


@pytest.mark.parametrize("victim", ["admin", "root"])
def test_a_killed_admin_or_root_brings_the_node_back_on_the_same_port(tmp_path, victim):
    with running_node(flat("a", "b"), tmp_path) as node:
        connection = node.connect()
        before = node.record
        old = group_pids(os.getpgid(before.admin_pid))
        os.kill(before.admin_pid if victim == "admin" else before.root_pid, signal.SIGKILL)
        eventually(lambda: (r := node.folder.read()) and r.boot == 2, what="boot 2")
        node.note_group()
        assert not any(alive(one) for one in old)
        after = node.record
        assert (after.pid, after.port) == (before.pid, before.port)
        answer = connection.ask("a", Echo(new_ref()), timeout_s=30)
        assert isinstance(answer, Echoed)


def test_a_node_that_keeps_crashing_gives_up_with_an_exit_code(tmp_path):
    node = start_node(flat("a"), tmp_path)
    killed: set[int] = set()

    def has_ended() -> bool:
        record = node.folder.read()
        if record is not None and record.boot not in killed and alive(record.admin_pid):
            killed.add(record.boot)
            node.note_group()
            os.kill(record.admin_pid, signal.SIGKILL)
        return node.process.poll() is not None

    eventually(has_ended, within_s=60)
    assert node.process.returncode == 1
    assert killed == {1, 2, 3, 4, 5, 6}
    node.check_nothing_left()
    assert node.files() == []


def test_a_killed_launcher_takes_every_process_with_it_and_frees_the_port(tmp_path):
    inner = flat("x", "y")
    node = start_node(tree(Strategy.ONE_FOR_ONE, good("a"), below("sub", inner)), tmp_path)
    pids = group_pids(os.getpgid(node.record.admin_pid))
    assert len(pids) == 6
    connection = node.connect()
    node.process.kill()
    node.process.wait(60)
    eventually(lambda: not any(alive(one) for one in pids), what="all gone", within_s=30)
    eventually(lambda: port_is_free(node.config.port), what="the port is free")
    with pytest.raises((NodeNotRunning, NoReply)):
        connection.ask("a", Echo(new_ref()), timeout_s=2)
    connection.close()
    with running_node(flat("a"), tmp_path, port=node.config.port) as again:
        assert echo(again, "a").id == "a"


def test_sigterm_to_one_worker_is_an_orderly_end_and_it_is_restarted(tmp_path):
    path = tmp_path / "journal"
    spec = tree(Strategy.ONE_FOR_ONE, good("a", Plan(journal=str(path))))
    with running_node(spec, tmp_path) as node:
        kill_child(node, "a", signal.SIGTERM)
        entry = node.up("a", after_incarnation=1)
        assert entry.incarnation == 2
        assert "a 1 terminate shutdown" in path.read_text()


def test_a_message_for_an_earlier_incarnation_is_not_handled(tmp_path):
    from supervision.messages import Addressed

    with running_node(flat("a"), tmp_path) as node:
        entry = node.entry("a")
        assert entry.address is not None
        stale = Addressed("a", 7, Do("exit"))
        node.connect().tell(entry.address, stale)
        other = Addressed("b", 1, Do("exit"))
        node.connect().tell(entry.address, other)
        assert echo(node, "a").incarnation == 1
        status = node.connect().ask("a", ReportStatus(new_ref()), timeout_s=30)
        assert status.status == {"handled": 1}  # type: ignore[attr-defined]


def test_the_node_listens_on_loopback_only_and_keeps_its_files_private(tmp_path):
    with running_node(flat("a"), tmp_path) as node:
        run = node.config.runtime_dir
        assert run.stat().st_mode & 0o777 == 0o700
        for name in ("cookie", "node.json"):
            assert (run / name).stat().st_mode & 0o777 == 0o600
        inodes = set()
        for pid in [*group_pids(os.getpgid(node.record.admin_pid)), node.process.pid]:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                try:
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                except OSError:
                    continue
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        with open("/proc/net/tcp", encoding="ascii") as table:
            rows = [line.split() for line in table.readlines()[1:]]
        listening = [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
        assert len(listening) >= 3
        assert all(address.startswith("0100007F:") for address in listening)


def test_of_launchers_that_claim_one_folder_at_once_exactly_one_gets_it(tmp_path):
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        nodes = [start_node(flat("a"), folder, ready=False) for _ in range(4)]
        try:
            eventually(
                lambda: sum(one.process.poll() is None for one in nodes) == 1,  # noqa: B023
                what="all but one were refused",
            )
            (winner,) = [one for one in nodes if one.process.poll() is None]
            eventually(
                lambda: (r := winner.folder.read()) and r.pid == winner.process.pid,  # noqa: B023
                what="the one that is left comes up",
            )
            assert echo(winner, "a").id == "a"
        finally:
            for one in nodes:
                if one.connection is not None:
                    one.connection.close()
                if one.process.poll() is None:
                    one.stop()
        assert winner.files() == []
        winner.check_nothing_left()
