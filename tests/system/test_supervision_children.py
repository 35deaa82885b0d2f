"""Children that come, go and end their supervisor at run time, as real processes."""

from __future__ import annotations

import os
import time

import pytest

from supervision.exits import ExitKind
from supervision.messages import (
    ChildDeleted,
    ChildDeleteFailed,
    ChildNotFound,
    ChildrenListed,
    ChildStarted,
    ChildStartFailed,
    ChildTerminated,
    DeleteChild,
    DeleteFailure,
    RestartChild,
    StartChild,
    StartFailure,
    TerminateChild,
    WhichChildren,
    new_ref,
)
from supervision.spec import (
    AutoShutdown,
    Backoff,
    ChildKind,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)
from supervision.supervisor import ACTOR as SUPERVISOR
from tests.support.children import Do, Echo, Echoed, Plan
from tests.support.nodes import RunningNode, alive, running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

GOOD = "tests.support.children.GoodChild"
ANY, ALL = AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT


def good(child_id: str, plan: Plan | None = None, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, GOOD, args=plan, **changes)  # type: ignore[arg-type]


def below(child_id: str, spec: SupervisorSpec, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, SUPERVISOR, args=spec, kind=ChildKind.SUPERVISOR, **changes)  # type: ignore[arg-type]


def tree(*children: ChildSpec) -> SupervisorSpec:
    return SupervisorSpec(Strategy.ONE_FOR_ONE, children)


def ask(node: RunningNode, supervisor: str, request: object) -> object:
    return node.connect().ask(supervisor, request, timeout_s=30)


def start(node: RunningNode, supervisor: str, spec: ChildSpec) -> object:
    return ask(node, supervisor, StartChild(new_ref(), spec.id, spec=spec))


def restart(node: RunningNode, supervisor: str, child_id: str) -> object:
    return ask(node, supervisor, RestartChild(new_ref(), child_id))


def terminate(node: RunningNode, supervisor: str, child_id: str) -> object:
    return ask(node, supervisor, TerminateChild(new_ref(), child_id))


def delete(node: RunningNode, supervisor: str, child_id: str) -> object:
    return ask(node, supervisor, DeleteChild(new_ref(), child_id))


def listed(node: RunningNode, supervisor: str) -> list[str]:
    answer = ask(node, supervisor, WhichChildren(new_ref()))
    assert isinstance(answer, ChildrenListed)
    return [one.id for one in answer.children]


def echo(node: RunningNode, child_id: str) -> Echoed:
    answer = ask(node, child_id, Echo(new_ref()))
    assert isinstance(answer, Echoed)
    return answer


def gone(node: RunningNode, child_id: str) -> None:
    eventually(lambda: node.connect().where(child_id) is None, what=f"{child_id} forgotten")


def down(node: RunningNode, child_id: str, kind: ExitKind) -> None:
    entry = eventually(
        lambda: (e := node.entry(child_id)) and e.state == "down" and e, what=f"{child_id} down"
    )
    assert entry.last_exit.kind is kind


def test_a_terminated_child_is_restarted_on_request_and_forgotten_when_deleted(tmp_path):
    with running_node(tree(below("sub", tree(good("a"), good("b")))), tmp_path) as node:
        running = restart(node, "sub", "b")
        assert isinstance(running, ChildStartFailed)
        assert running.reason is StartFailure.RUNNING
        kept = delete(node, "sub", "b")
        assert isinstance(kept, ChildDeleteFailed)
        assert kept.reason is DeleteFailure.RUNNING
        pid = node.entry("b").pid or 0
        assert isinstance(terminate(node, "sub", "b"), ChildTerminated)
        assert not alive(pid)
        assert listed(node, "sub") == ["a", "b"]
        started = restart(node, "sub", "b")
        assert isinstance(started, ChildStarted)
        assert started.entry.incarnation == 2
        assert echo(node, "b").pid == started.entry.pid
        assert isinstance(terminate(node, "sub", "b"), ChildTerminated)
        assert isinstance(delete(node, "sub", "b"), ChildDeleted)
        gone(node, "b")
        assert listed(node, "sub") == ["a"]
        unknown = restart(node, "sub", "b")
        assert isinstance(unknown, ChildStartFailed)
        assert unknown.reason is StartFailure.UNKNOWN_CHILD
        again = delete(node, "sub", "b")
        assert isinstance(again, ChildDeleteFailed)
        assert again.reason is DeleteFailure.UNKNOWN_CHILD
        assert isinstance(terminate(node, "sub", "b"), ChildNotFound)


def test_a_restart_on_request_that_fails_leaves_the_child_down_and_its_siblings_alone(tmp_path):
    plan = Plan(init="fail_once", fail_once_file=str(tmp_path / "failed"))
    (tmp_path / "failed").touch()
    with running_node(tree(below("sub", tree(good("a"), good("b", plan)))), tmp_path) as node:
        assert isinstance(terminate(node, "sub", "b"), ChildTerminated)
        (tmp_path / "failed").unlink()
        failed = restart(node, "sub", "b")
        assert isinstance(failed, ChildStartFailed)
        assert (failed.reason, failed.detail) == (
            StartFailure.INIT_FAILED,
            "RuntimeError: failed once",
        )
        down(node, "b", ExitKind.ABNORMAL)
        assert isinstance(restart(node, "sub", "b"), ChildStarted)
        assert (echo(node, "b").incarnation, echo(node, "a").incarnation) == (3, 1)


def test_a_child_with_its_own_spec_joins_at_the_end_and_shares_its_siblings_fate(tmp_path):
    inner = SupervisorSpec(Strategy.REST_FOR_ONE, (good("a"), good("b")))
    with running_node(tree(good("top"), below("sub", inner)), tmp_path) as node:
        started = start(node, "sub", good("new"))
        assert isinstance(started, ChildStarted)
        assert echo(node, "new").pid == started.entry.pid
        assert listed(node, "sub") == ["a", "b", "new"]
        os.kill(node.entry("b").pid or 0, 9)
        node.up("new", after_incarnation=1)
        assert echo(node, "a").incarnation == 1
        os.kill(node.entry("sub").pid or 0, 9)
        node.up("b", after_incarnation=2)
        assert listed(node, "sub") == ["a", "b"], "a new supervisor knows its spec only"
        gone(node, "new")
        once_more = start(node, "sub", good("new"))
        assert isinstance(once_more, ChildStarted)
        assert once_more.entry.incarnation == 3


def test_a_new_child_that_cannot_be_is_refused_and_leaves_no_trace(tmp_path):
    pair = tree(good("x"), good("top2"))
    with running_node(tree(good("top"), below("sub", tree(good("a")))), tmp_path) as node:

        def why(spec: ChildSpec) -> StartFailure:
            answer = start(node, "sub", spec)
            assert isinstance(answer, ChildStartFailed)
            return answer.reason

        assert why(good("a")) is StartFailure.ALREADY_STARTED
        assert why(good("top")) is StartFailure.ID_TAKEN
        assert why(below("more", tree(good("x"), good("a")))) is StartFailure.ID_TAKEN
        assert why(good("new", Plan(init="raise"))) is StartFailure.INIT_FAILED
        assert why(ChildSpec("new", "tests.support.children.Unimportable")) is (
            StartFailure.INIT_FAILED
        )
        assert why(good("new", Plan(init="exit"))) is StartFailure.DIED_IN_INIT
        significant = good("new", restart=Restart.TEMPORARY, significant=True)
        assert why(significant) is StartFailure.BAD_SPEC
        assert isinstance(terminate(node, "sub", "a"), ChildTerminated)
        assert why(good("a")) is StartFailure.ALREADY_PRESENT
        assert listed(node, "sub") == ["a"]
        gone(node, "new")
        assert isinstance(start(node, "root", below("more", pair)), ChildStarted)
        assert echo(node, "x").incarnation == 1


def test_a_whole_supervisor_comes_and_goes_at_run_time(tmp_path):
    with running_node(tree(good("a")), tmp_path) as node:
        more = below("more", tree(good("x"), good("y")))
        assert isinstance(start(node, "root", more), ChildStarted)
        pids = [node.up(i).pid or 0 for i in ("more", "x", "y")]
        assert isinstance(terminate(node, "root", "more"), ChildTerminated)
        eventually(lambda: not any(map(alive, pids)), what="its processes gone")
        gone(node, "x")
        assert isinstance(restart(node, "root", "more"), ChildStarted)
        assert node.up("y").incarnation == 2
        assert isinstance(terminate(node, "root", "more"), ChildTerminated)
        assert isinstance(delete(node, "root", "more"), ChildDeleted)
        gone(node, "more")


def test_a_temporary_child_is_forgotten_however_it_ends(tmp_path):
    once = {"restart": Restart.TEMPORARY}
    children = tree(good("a", **once), good("b", **once), good("c", **once), good("d"))
    with running_node(tree(below("sub", children)), tmp_path) as node:
        node.connect().tell("a", Do("raise"))
        gone(node, "a")
        node.connect().tell("b", Do("stop"))
        gone(node, "b")
        assert isinstance(terminate(node, "sub", "c"), ChildTerminated)
        gone(node, "c")
        assert listed(node, "sub") == ["d"]
        assert isinstance(start(node, "sub", good("a", **once)), ChildStarted)
        assert echo(node, "a").incarnation == 2


def test_the_end_of_a_significant_child_ends_its_supervisor_in_reverse_order(tmp_path):
    path = tmp_path / "journal"
    plan = Plan(journal=str(path))
    job = SupervisorSpec(
        Strategy.ONE_FOR_ONE,
        (
            good("a", plan),
            good("main", plan, restart=Restart.TRANSIENT, significant=True),
            good("b", plan),
        ),
        auto_shutdown=ANY,
    )
    with running_node(tree(below("job", job, restart=Restart.TRANSIENT), good("c")), tmp_path) as n:
        n.connect().tell("main", Do("raise"))
        n.up("main", after_incarnation=1)
        assert isinstance(terminate(n, "job", "main"), ChildTerminated)
        assert isinstance(restart(n, "job", "main"), ChildStarted)
        n.connect().tell("main", Do("stop"))
        down(n, "job", ExitKind.SHUTDOWN)
        assert "main ended: normal" in n.entry("job").last_exit.text
        gone(n, "a")
        assert (echo(n, "c").incarnation, n.entry("job").incarnation) == (1, 1)
        ends = [line for line in path.read_text().splitlines() if "terminate" in line]
        assert ends == [
            "main 2 terminate shutdown",
            "main 3 terminate normal",
            "b 1 terminate shutdown",
            "a 1 terminate shutdown",
        ]
        assert isinstance(restart(n, "root", "job"), ChildStarted)
        assert n.up("main").incarnation == 4


def test_an_automatic_shutdown_climbs_through_significant_supervisors_and_stops_at_a_permanent(
    tmp_path,
):
    main = good("main", restart=Restart.TEMPORARY, significant=True)
    inner = SupervisorSpec(Strategy.ONE_FOR_ONE, (main,), auto_shutdown=ALL)
    significant = below("inner", inner, restart=Restart.TRANSIENT, significant=True)
    outer = SupervisorSpec(Strategy.ONE_FOR_ONE, (significant,), auto_shutdown=ANY)
    with running_node(tree(below("outer", outer)), tmp_path) as node:
        node.connect().tell("main", Do("abnormal"))
        entry = node.up("outer", after_incarnation=1)
        assert entry.last_exit is not None
        assert entry.last_exit.kind is ExitKind.SHUTDOWN
        assert "inner ended: shutdown" in entry.last_exit.text
        assert node.up("main").incarnation == 2


def test_dynamic_children_that_all_ended_end_their_supervisor(tmp_path):
    pool = SupervisorSpec(
        Strategy.SIMPLE_ONE_FOR_ONE,
        template=good("template", restart=Restart.TRANSIENT, significant=True),
        auto_shutdown=ALL,
    )
    with running_node(tree(below("pool", pool, restart=Restart.TRANSIENT)), tmp_path) as node:
        for child_id in ("m1", "m2", "m3"):
            started = ask(node, "pool", StartChild(new_ref(), child_id))
            assert isinstance(started, ChildStarted)
        refused = restart(node, "pool", "m1")
        assert isinstance(refused, ChildStartFailed)
        assert refused.reason is StartFailure.SIMPLE_ONE_FOR_ONE
        kept = delete(node, "pool", "m1")
        assert isinstance(kept, ChildDeleteFailed)
        assert kept.reason is DeleteFailure.SIMPLE_ONE_FOR_ONE
        assert isinstance(terminate(node, "pool", "m1"), ChildTerminated)
        node.connect().tell("m2", Do("shutdown"))
        gone(node, "m2")
        assert echo(node, "m3").incarnation == 1
        node.connect().tell("m3", Do("stop"))
        down(node, "pool", ExitKind.SHUTDOWN)


def test_a_pause_before_a_restart_is_drawn_from_its_range(tmp_path):
    backoff = Backoff(first_s=0.4, jitter=0.25)
    with running_node(tree(good("a", backoff=backoff), good("b")), tmp_path) as node:
        died_at = time.time()
        os.kill(node.entry("a").pid or 0, 9)
        eventually(lambda: "in 0.30 to 0.50 s" in node.log, what="a in its pause")
        entry = node.up("a", after_incarnation=1)
        assert entry.started_at - died_at > 0.29
        assert echo(node, "b").incarnation == 1
