"""A real tree: starting, stopping, asking, finding, adding children."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from supervision.address import Address
from supervision.connection import Connection
from supervision.errors import (
    NodeAlreadyRunning,
    NodeNotRunning,
    NodeStartFailed,
    NoReply,
    PortInUse,
    SpecError,
)
from supervision.exits import ExitKind
from supervision.launcher import NodeConfig, run_node
from supervision.messages import (
    ChildNotFound,
    ChildrenCounted,
    ChildrenListed,
    ChildStarted,
    ChildStartFailed,
    ChildStartProgress,
    ChildTerminated,
    CountChildren,
    ReportStatus,
    StartChild,
    StartFailure,
    StatusReported,
    TerminateChild,
    WhichChildren,
    new_ref,
)
from supervision.spec import (
    BRUTAL_KILL,
    ChildKind,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)
from supervision.supervisor import ACTOR as SUPERVISOR
from tests.support.children import (
    Do,
    Echo,
    Echoed,
    LoadError,
    Plan,
    ReportSeen,
    Seen,
    TellOther,
)
from tests.support.nodes import RunningNode, alive, free_port, running_node, start_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

GOOD = "tests.support.children.GoodChild"


def good(child_id: str, plan: Plan | None = None, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, GOOD, args=plan, **changes)  # type: ignore[arg-type]


def below(child_id: str, spec: SupervisorSpec, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, SUPERVISOR, args=spec, kind=ChildKind.SUPERVISOR, **changes)  # type: ignore[arg-type]


def one_for_one(*children: ChildSpec, **changes: object) -> SupervisorSpec:
    return SupervisorSpec(Strategy.ONE_FOR_ONE, children, **changes)  # type: ignore[arg-type]


def dynamic(**changes: object) -> SupervisorSpec:
    return SupervisorSpec(
        Strategy.SIMPLE_ONE_FOR_ONE,
        template=ChildSpec("template", GOOD, **changes),  # type: ignore[arg-type]
    )


def echo(node: RunningNode, child_id: str, timeout_s: float = 5.0) -> Echoed:
    answer = node.connect().ask(child_id, Echo(new_ref(), "hello"), timeout_s=timeout_s)
    assert isinstance(answer, Echoed)
    return answer


def seen(node: RunningNode, child_id: str) -> tuple[object, ...]:
    answer = node.connect().ask(child_id, ReportSeen(new_ref()), timeout_s=30)
    assert isinstance(answer, Seen)
    return answer.values


def start(node: RunningNode, child_id: str, args: object = None, **options: object) -> object:
    request = StartChild(new_ref(), child_id, args, **options)  # type: ignore[arg-type]
    return node.connect().ask("dyn", request, timeout_s=30)


def journal(path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_tree_starts_in_order_answers_and_stops_in_reverse_order(tmp_path):
    path = tmp_path / "journal"
    plan = Plan(journal=str(path))
    inner = SupervisorSpec(Strategy.REST_FOR_ONE, (good("x", plan), good("y", plan)))
    with running_node(one_for_one(good("a", plan), below("sub", inner), good("b", plan)), tmp_path):
        pass
    events = [(line.split()[0], line.split()[2]) for line in journal(path)]
    assert [i for i, what in events if what == "ready"] == ["a", "x", "y", "b"]
    assert [i for i, what in events if what == "terminate"] == ["b", "y", "x", "a"]


def test_ask_tell_and_directory_reach_every_level(tmp_path):
    inner = one_for_one(good("x"))
    with running_node(one_for_one(good("a"), below("sub", inner)), tmp_path) as node:
        connection = node.connect()
        assert echo(node, "x").id == "x"
        entries = {entry.id: entry for entry in connection.directory()}
        assert set(entries) == {"root", "a", "sub", "x"}
        assert entries["x"].parent == "sub"
        assert all(entry.is_up for entry in entries.values())
        assert entries["x"].pid == echo(node, "x").pid
        assert connection.where("nobody") is None
        status = connection.ask("a", ReportStatus(new_ref()), timeout_s=30)
        assert isinstance(status, StatusReported)
        assert (status.id, status.pid) == ("a", entries["a"].pid)
        listed = connection.ask("root", WhichChildren(new_ref()), timeout_s=30)
        assert isinstance(listed, ChildrenListed)
        assert [one.id for one in listed.children] == ["a", "sub"]
        counted = connection.ask("sub", CountChildren(new_ref()), timeout_s=30)
        assert isinstance(counted, ChildrenCounted)
        assert (counted.specs, counted.active, counted.workers) == (1, 1, 1)


def test_a_worker_finds_its_siblings_by_name_and_is_notified_of_their_restarts(tmp_path):
    with running_node(one_for_one(good("a"), good("b")), tmp_path) as node:
        connection = node.connect()

        def sends_to(other: str) -> bool:
            answer = connection.ask("a", TellOther(new_ref(), other), timeout_s=30)
            assert isinstance(answer, Seen)
            return answer.values == (True,)

        eventually(lambda: sends_to("b"), what="the news at a that b is up")
        eventually(lambda: "b" in seen(node, "a"), what="b's answer at a")
        assert not sends_to("nobody")
        os.kill(node.entry("b").pid or 0, 9)
        eventually(lambda: ("b", "up", 2) in seen(node, "a"), what="news of b's restart at a")
        ups = [one for one in seen(node, "a") if isinstance(one, tuple) and one[0] == "b"]
        assert [one[2] for one in ups] == sorted(one[2] for one in ups)


def test_dynamic_children_start_stop_and_refuse(tmp_path):
    with running_node(one_for_one(below("dyn", dynamic())), tmp_path) as node:
        started = start(node, "m1")
        assert isinstance(started, ChildStarted)
        assert echo(node, "m1").pid == started.entry.pid
        again = start(node, "m1")
        assert isinstance(again, ChildStartFailed)
        assert again.reason is StartFailure.ALREADY_STARTED
        failed = start(node, "m2", Plan(init="fail", error=LoadError(5, "no such file")))
        assert isinstance(failed, ChildStartFailed)
        assert (failed.reason, failed.detail) == (StartFailure.INIT_FAILED, "cannot load")
        assert failed.error == LoadError(5, "no such file")
        raised = start(node, "m2", Plan(init="raise"))
        assert isinstance(raised, ChildStartFailed)
        assert (raised.reason, raised.detail) == (StartFailure.INIT_FAILED, "ValueError: no luck")
        died = start(node, "m2", Plan(init="exit"))
        assert isinstance(died, ChildStartFailed)
        assert died.reason is StartFailure.DIED_IN_INIT
        eventually(lambda: node.connect().where("m2") is None, what="m2 out of the directory")
        gone = node.connect().ask("dyn", TerminateChild(new_ref(), "m1"), timeout_s=30)
        assert isinstance(gone, ChildTerminated)
        assert not alive(started.entry.pid or 0)
        eventually(lambda: node.connect().where("m1") is None, what="m1 out of the directory")
        nobody = node.connect().ask("dyn", TerminateChild(new_ref(), "m1"), timeout_s=30)
        assert isinstance(nobody, ChildNotFound)
        anew = start(node, "m1")
        assert isinstance(anew, ChildStarted)
        assert anew.entry.incarnation == 2


def test_a_slow_start_holds_up_no_other_dynamic_child(tmp_path):
    go = tmp_path / "go"
    with running_node(one_for_one(below("dyn", dynamic())), tmp_path) as node:
        slow = node.connect().stream(
            "dyn",
            StartChild(new_ref(), "slow", Plan(init="defer until", fail_once_file=str(go))),
            idle_timeout_s=5,
        )
        assert isinstance(start(node, "quick"), ChildStarted)
        assert echo(node, "quick").id == "quick"
        assert node.entry("slow").state == "starting"
        go.touch()
        assert isinstance(next(slow), ChildStarted)


def test_a_deferred_start_reports_progress_and_its_failure(tmp_path):
    with running_node(one_for_one(below("dyn", dynamic())), tmp_path) as node:
        plan = Plan(init="defer_fail", init_s=0.2, error=LoadError(1, "x"))
        request = StartChild(new_ref(), "m", plan, progress=True)
        replies = node.connect().stream("dyn", request, idle_timeout_s=30)
        assert next(replies) == ChildStartProgress(request.ref, "m", "half way")
        failed = next(replies)
        assert isinstance(failed, ChildStartFailed)
        assert (failed.detail, failed.error) == ("loading was abandoned", LoadError(1, "x"))


def test_a_start_that_hangs_is_killed_at_its_timeout(tmp_path):
    with running_node(one_for_one(below("dyn", dynamic(init_timeout_s=0.5))), tmp_path) as node:
        failed = start(node, "m", Plan(init="hang"))
        assert isinstance(failed, ChildStartFailed)
        assert failed.reason is StartFailure.INIT_TIMEOUT


def test_a_tree_whose_child_cannot_start_does_not_start(tmp_path):
    tree = one_for_one(good("a"), good("b", Plan(init="raise")))
    config = NodeConfig(free_port(), tmp_path / "run", tree, packages=("tests",))
    with pytest.raises(NodeStartFailed, match=r"start of b failed.*no luck"):
        run_in_child(config)
    assert list((tmp_path / "run").iterdir()) == []


def run_in_child(config: NodeConfig) -> int:
    """``run_node`` in a forked process, its error brought back."""
    import pickle

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            outcome: object = run_node(config)
        except Exception as error:  # noqa: BLE001
            outcome = (type(error), error.args, getattr(error, "__dict__", {}))
        os.write(writer, pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    if isinstance(outcome, tuple):
        error = outcome[0].__new__(outcome[0])
        error.args = outcome[1]
        error.__dict__.update(outcome[2])
        raise error
    return outcome


def test_a_wrong_class_path_is_an_error_before_anything_runs(tmp_path):
    for path in ("tests.support.children.Missing", "tests.support.children.Unimportable", "no.X"):
        tree = one_for_one(ChildSpec("a", path))
        with pytest.raises(SpecError, match=r"ChildSpec\.actor"):
            run_node(NodeConfig(free_port(), tmp_path / "run", tree))
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_named_and_no_other_node_is_joined(tmp_path):
    with running_node(one_for_one(good("a")), tmp_path) as node:
        port = node.config.port
        with pytest.raises(PortInUse, match=str(port)):
            run_node(NodeConfig(port, tmp_path / "other", one_for_one(good("a"))))
        with pytest.raises(NodeAlreadyRunning, match=str(node.record.pid)):
            run_node(NodeConfig(free_port(), node.config.runtime_dir, one_for_one(good("a"))))
        assert echo(node, "a").id == "a"


def test_attach_refuses_where_no_node_runs(tmp_path):
    with pytest.raises(NodeNotRunning, match=r"node\.json"):
        Connection.attach(tmp_path)
    node = start_node(one_for_one(good("a")), tmp_path)
    record = node.record
    node.stop()
    node.check_nothing_left()
    node.folder.claim()
    node.folder.write(record)
    with pytest.raises(NodeNotRunning, match="dead"):
        Connection.attach(node.config.runtime_dir)


def test_the_end_of_the_host_stops_the_node_in_order(tmp_path):
    path = tmp_path / "journal"
    reader, writer = os.pipe()
    tree = one_for_one(good("a", Plan(journal=str(path))))
    node = start_node(tree, tmp_path, parent_fd=reader)
    os.close(reader)
    os.close(writer)
    assert node.process.wait(60) == 0
    node.check_nothing_left()
    assert journal(path)[-1] == "a 1 terminate shutdown"
    assert node.files() == []


def test_a_stop_request_during_a_slow_start_is_carried_out_at_once(tmp_path):
    path = tmp_path / "journal"
    slow = Plan(journal=str(path), init="defer", init_s=60)
    tree = one_for_one(good("a", Plan(journal=str(path))), good("slow", slow, init_timeout_s=60))
    node = start_node(tree, tmp_path, ready=False)
    eventually(lambda: "slow 1 init" in journal(path), what="the slow start")
    began = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(30) == 0
    assert time.monotonic() - began < 30  # it starts for 60 s
    assert journal(path)[-1] == "a 1 terminate shutdown"
    assert node.files() == []


def test_children_stop_as_in_their_specs(tmp_path):
    path = tmp_path / "journal"
    slow = Plan(journal=str(path), terminate_s=60)
    tree = one_for_one(
        good("patient", Plan(journal=str(path))),
        good("stuck", slow, shutdown=0.3),
        good("brutal", slow, shutdown=BRUTAL_KILL),
    )
    node = start_node(tree, tmp_path)
    began = time.monotonic()
    assert node.stop() == 0
    took = time.monotonic() - began
    node.check_nothing_left()
    events = [line for line in journal(path) if "terminate" in line]
    assert events == ["stuck 1 terminate shutdown", "patient 1 terminate shutdown"]
    assert 0.3 <= took < 30  # the stuck one would take 60 s


def test_a_second_signal_ends_the_wait_for_an_orderly_stop(tmp_path):
    path = tmp_path / "journal"
    slow = Plan(journal=str(path), terminate_s=60)
    node = start_node(one_for_one(good("slow", slow, shutdown=60.0)), tmp_path)
    began = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    node.process.send_signal(signal.SIGINT)  # a wrapper may pass one request on twice
    eventually(lambda: "slow 1 terminate shutdown" in journal(path), what="it is stopping")

    # Signals within half a second of the first are the same request.
    eventually(lambda: time.monotonic() > began + 0.6, what="another signal is another request")
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(25) == 0
    node.check_nothing_left()
    assert node.files() == []
    assert "asked again to stop" in node.log


@pytest.mark.parametrize(
    ("restart", "what", "comes_back"),
    [
        (Restart.PERMANENT, "stop", True),
        (Restart.TRANSIENT, "stop", False),
        (Restart.TRANSIENT, "shutdown", False),
        (Restart.TRANSIENT, "abnormal", True),
        (Restart.TRANSIENT, "kill", True),
        (Restart.TEMPORARY, "raise", False),
    ],
)
def test_restart_types_hold_for_real_exits(tmp_path, restart, what, comes_back):
    with running_node(one_for_one(good("a", restart=restart)), tmp_path) as node:
        node.connect().tell("a", Do(what))
        if comes_back:
            assert node.up("a", after_incarnation=1).restarts == 1
        elif restart is Restart.TEMPORARY:  # its spec goes with it
            eventually(lambda: node.connect().where("a") is None, what="a out of the tree")
        else:
            down = eventually(
                lambda: (e := node.entry("a")) and e.state == "down" and e, what="a down"
            )
            assert down.incarnation == 1
            expected = {"stop": ExitKind.NORMAL, "shutdown": ExitKind.SHUTDOWN}
            assert down.last_exit.kind is expected.get(what, ExitKind.ABNORMAL)


def test_timers_that_end_together_come_in_order(tmp_path):
    with running_node(one_for_one(good("a")), tmp_path) as node:
        node.connect().tell("a", Do("timers"))
        eventually(lambda: len(seen(node, "a")) >= 3, what="three timers")
        assert [one for one in seen(node, "a") if isinstance(one, int)] == [0, 1, 2]


def test_a_late_reply_does_not_answer_the_next_request(tmp_path):
    with running_node(one_for_one(good("a")), tmp_path) as node:
        connection = node.connect()
        connection.tell("a", Do("busy", 0.6))
        with pytest.raises(NoReply):
            connection.ask("a", Echo(new_ref(), "first"), timeout_s=0.1)
        second = connection.ask("a", Echo(new_ref(), "second"), timeout_s=5)
        assert isinstance(second, Echoed)
        assert second.payload == "second"


def test_threads_of_a_host_never_get_each_others_replies(tmp_path):
    with running_node(one_for_one(good("a"), good("b")), tmp_path) as node:
        connection = node.connect()
        wrong: list[object] = []

        def asker(name: str) -> None:
            for number in range(40):
                answer = connection.ask(
                    "ab"[number % 2], Echo(new_ref(), (name, number)), timeout_s=10
                )
                if answer.payload != (name, number):  # type: ignore[attr-defined]
                    wrong.append(answer)

        threads = [threading.Thread(target=asker, args=(f"t{n}",)) for n in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert wrong == []


def test_endpoints_of_threads_that_ended_are_closed(tmp_path):
    with running_node(one_for_one(good("a")), tmp_path) as node:
        echo(node, "a")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(12):
            thread = threading.Thread(target=echo, args=(node, "a"))
            thread.start()
            thread.join()
        assert len(os.listdir("/proc/self/fd")) <= before + 6


def test_ctrl_c_stops_the_node_in_order(tmp_path):
    path = tmp_path / "journal"
    node = start_node(one_for_one(good("a", Plan(journal=str(path)))), tmp_path)
    node.process.send_signal(signal.SIGINT)
    assert node.process.wait(60) == 0
    node.check_nothing_left()
    assert journal(path)[-1] == "a 1 terminate shutdown"
    assert node.files() == []


def test_a_stream_and_requests_share_a_thread(tmp_path):
    with running_node(one_for_one(good("a"), good("b")), tmp_path) as node:
        connection = node.connect()
        stream = connection.stream("a", Echo(new_ref(), 1), idle_timeout_s=0.5)
        assert echo(node, "b").id == "b"
        assert next(stream).payload == 1  # type: ignore[attr-defined]
        with pytest.raises(NoReply, match="quiet"):
            next(stream)


def test_two_nodes_live_side_by_side_in_one_host(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with (
        running_node(one_for_one(good("a")), tmp_path / "1") as first,
        running_node(one_for_one(good("a")), tmp_path / "2") as second,
    ):
        for _ in range(3):
            assert echo(first, "a").pid == first.entry("a").pid
            assert echo(second, "a").pid == second.entry("a").pid
        other = second.entry("a").address
        with pytest.raises(NoReply):
            first.connect().ask(other or Address("", 0), Echo(new_ref()), timeout_s=0.5)


def test_an_unknown_target_is_no_reply_with_a_reason(tmp_path):
    with running_node(one_for_one(good("a")), tmp_path) as node:
        with pytest.raises(NoReply, match="no such id"):
            node.connect().ask("nobody", Echo(new_ref()), timeout_s=0.2)
        with pytest.raises(TypeError, match="ref"):
            node.connect().ask("a", Do("busy"), timeout_s=1)


def test_large_and_many_messages_arrive_whole_and_in_order(tmp_path):
    with running_node(one_for_one(good("a")), tmp_path) as node:
        blob = os.urandom(3_000_000)
        answer = node.connect().ask("a", Echo(new_ref(), blob), timeout_s=30)
        assert answer.payload == blob  # type: ignore[attr-defined]
