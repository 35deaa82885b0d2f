"""Thespian from its own side: actor classes, plain actors as children, its ActorSystem."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from thespian.actors import (
    Actor,
    ActorAddress,
    ActorExitRequest,
    ActorSystem,
    ActorSystemFailure,
    InvalidActorAddress,
    Thespian_ActorStatus,
    Thespian_StatusReq,
)

from supervision import Connection, NodeActorSystem
from supervision._processes import _ChildrenByPid
from supervision._shell import Shell, shell_class
from supervision.errors import NoReply, NotOffered, SpecError, TargetDown
from supervision.exits import ExitKind
from supervision.messages import ChildStarted, StartChild, new_ref
from supervision.node_config import load_actors
from supervision.spec import ChildKind, ChildSpec, Restart, Strategy, SupervisorSpec
from supervision.supervisor import ACTOR as SUPERVISOR
from tests.support.children import Echo, Echoed, Seen, TellOther
from tests.support.nodes import RunningNode, running_node
from tests.support.plain_actors import Answer, Ask, Greeting
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

GOOD = "tests.support.children.GoodChild"
PLAIN = "tests.support.plain_actors.PlainActor"
DISPATCHING = "tests.support.plain_actors.Dispatching"


def plain(child_id: str, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, PLAIN, **{"args": "hello", **changes})  # type: ignore[arg-type]


TREE = SupervisorSpec(
    Strategy.ONE_FOR_ONE,
    (
        ChildSpec("worker", GOOD),
        ChildSpec(
            "below",
            SUPERVISOR,
            SupervisorSpec(
                Strategy.ONE_FOR_ONE,
                (
                    plain("permanent"),
                    plain("transient", restart=Restart.TRANSIENT),
                    plain("temporary", restart=Restart.TEMPORARY),
                    ChildSpec("dispatching", DISPATCHING),
                ),
                intensity=100,
            ),
            kind=ChildKind.SUPERVISOR,
        ),
    ),
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(TREE, tmp_path) as running:
        yield running


@pytest.fixture
def system(node: RunningNode) -> Iterator[NodeActorSystem]:
    with NodeActorSystem(node.config.runtime_dir) as found:
        yield found


def asked(node: RunningNode, child_id: str, what: str, value: object = None) -> tuple[object, ...]:
    answer = node.connect().ask(child_id, Ask(new_ref(), what, value), timeout_s=30)
    assert isinstance(answer, Answer)
    return answer.values


# ── what Thespian shows ──────────────────────────────────────────────────────


def test_each_worker_has_an_actor_class_of_its_own_name():
    found = shell_class("actors.model.model.ModelActor")
    assert found.__name__ == "ModelActor"
    assert issubclass(found, Shell)
    assert issubclass(found, Actor)
    assert found is shell_class("actors.model.model.ModelActor")
    assert found is not shell_class("somewhere.else.ModelActor")


def test_thespians_own_status_shows_the_tree_with_the_name_of_each_actor(node, system):
    names = {str(one.address): one.id for one in node.connect().directory()}
    root = system.find("root")
    found: dict[str, str] = {}

    def visit(address: ActorAddress, parent: ActorAddress | None) -> None:
        status = system.ask(address, Thespian_StatusReq(), timeout=30)
        assert isinstance(status, Thespian_ActorStatus)
        assert parent is None or status.parentAddress == parent
        where = status.actorAddress.actorAddressString
        found[names[where]] = status.actorClass.rpartition(".")[2]
        for child in status.childActors:
            visit(child, status.actorAddress)

    visit(root, None)
    assert found == {
        "root": "Supervisor", "below": "Supervisor", "worker": "GoodChild",
        "permanent": "PlainActor", "transient": "PlainActor", "temporary": "PlainActor",
        "dispatching": "Dispatching",
    }  # fmt: skip


def test_thespians_status_forgets_children_that_ended_and_shows_the_next_ones(node, system):
    below = system.find("below")
    for _ in range(3):
        entry = node.up("permanent")
        os.kill(entry.pid or 0, signal.SIGKILL)
        node.up("permanent", after_incarnation=entry.incarnation)
    status = system.ask(below, Thespian_StatusReq(), timeout=30)
    shown = {one.actorAddressString for one in status.childActors}
    ids = ("permanent", "transient", "temporary", "dispatching")
    assert shown == {str(node.entry(one).address) for one in ids}


def test_children_that_ended_leave_neither_a_zombie_nor_a_descriptor(node):
    below = node.up("below").pid
    descriptors = set()
    for _ in range(5):
        entry = node.up("permanent")
        os.kill(entry.pid or 0, signal.SIGKILL)
        node.up("permanent", after_incarnation=entry.incarnation)
        descriptors.add(len(os.listdir(f"/proc/{below}/fd")))
    children = Path(f"/proc/{below}/task/{below}/children").read_text(encoding="ascii").split()
    ids = ("permanent", "transient", "temporary", "dispatching")
    assert sorted(map(int, children)) == sorted(node.entry(one).pid for one in ids)
    assert len(descriptors) == 1, descriptors


class Forking:
    """Forks children as Thespian does."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        self._child_procs: list[SimpleNamespace] = []
        self.transport = SimpleNamespace(endpoint=SimpleNamespace(watch_process=watch))

    def _startChildActor(self) -> None:  # noqa: N802
        process = multiprocessing.get_context("fork").Process(target=signal.pause)
        process.start()
        self._child_procs.append(SimpleNamespace(childProc=process))


class Watching(_ChildrenByPid, Forking):
    pass


def test_a_child_that_cannot_be_watched_does_not_run():
    seen: list[int] = []

    def refuse(pid: int) -> None:
        seen.append(pid)
        raise OSError(errno.EMFILE, "too many open files")

    parent = Watching(refuse)
    with pytest.raises(OSError, match="too many"):
        parent._startChildActor()
    assert parent._child_procs == []
    with pytest.raises(ProcessLookupError):  # not even a zombie is left
        os.kill(seen[0], 0)


def test_the_process_list_shows_the_name_of_each_actor(node):
    names = {
        one.id: Path(f"/proc/{one.pid}/comm").read_text(encoding="utf-8").strip()
        for one in node.connect().directory()
    }
    assert names["root"] == names["below"] == "Supervisor"
    assert (names["worker"], names["permanent"]) == ("GoodChild", "PlainActor")
    admin = Path(f"/proc/{node.record.admin_pid}/comm").read_text(encoding="utf-8").strip()
    assert admin == "NodeAdmin"


# ── plain actors as children ─────────────────────────────────────────────────


def test_a_plain_actor_gets_its_args_as_the_first_message_and_is_asked_and_told(node):
    pid, name, address, kind = asked(node, "permanent", "who")
    entry = node.entry("permanent")
    assert (pid, name, kind) == (entry.pid, "permanent", "PlainActor")
    assert address == f"ActorAddr-{entry.address}"
    node.connect().tell("permanent", {"plain": ["values", 1]})
    assert asked(node, "permanent", "seen") == ("hello", {"plain": ["values", 1]})


def test_thespians_type_dispatcher_is_an_actor_too(node):
    answer = node.connect().ask("dispatching", Greeting(new_ref()), timeout_s=30)
    assert answer == Answer(answer.ref, ("hello",))


@pytest.mark.parametrize("how", ["raise", "kill", "exit"])
def test_each_restart_type_holds_for_plain_actors(node, how):
    restarts = {"permanent": True, "transient": how != "exit", "temporary": False}
    for child_id, comes_back in restarts.items():
        before = node.up(child_id)
        monitor = node.connect().monitor(child_id)
        with pytest.raises(TargetDown) as down:
            asked(node, child_id, how)
        kinds = {"raise": ExitKind.ABNORMAL, "kill": ExitKind.KILLED, "exit": ExitKind.NORMAL}
        assert down.value.reason.kind is kinds[how]
        notice = node.connect().wait_down(monitor, 30)
        assert notice is not None
        assert (notice.id, notice.incarnation) == (child_id, before.incarnation)
        assert notice.reason.kind is kinds[how]
        if how == "raise":
            assert notice.reason.text == "LookupError: told to raise"
        if comes_back:
            node.up(child_id, after_incarnation=before.incarnation)
            assert asked(node, child_id, "seen") == ("hello",)
        else:
            found = node.connect().where(child_id)
            assert found is None or not found.is_up


def test_a_handler_that_raises_runs_once_and_no_poison_message_is_sent(node, system):
    address = system.find("permanent")
    assert system.ask(address, Ask("r", "raise"), timeout=30) is None
    assert system.listen(0.2) is None
    eventually(lambda: node.log.count("LookupError: told to raise"), what="the crash is logged")
    assert node.log.count("self.seen.append") <= 1


def test_timers_and_watched_descriptors_reach_a_plain_actor(node):
    asked(node, "permanent", "wake", "payload")
    eventually(lambda: ("wakeup", "payload", 0.01) in asked(node, "permanent", "seen"))
    asked(node, "permanent", "watch")
    eventually(lambda: ("watch", 1, b"ready") in asked(node, "permanent", "seen"))


def test_plain_actors_and_workers_talk_to_each_other_by_name(node):
    asked(node, "permanent", "other", "transient")
    pid = node.entry("transient").pid

    def answered() -> bool:
        return any(one[:2] == ("answer", pid) for one in asked(node, "permanent", "seen")[1:])

    eventually(answered, what="the other one's answer")
    told = node.connect().ask("worker", TellOther(new_ref(), "permanent"), timeout_s=30)
    assert told == Seen(told.ref, (True,))
    eventually(lambda: any(isinstance(one, Echo) for one in asked(node, "permanent", "seen")))


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("createActor", (Actor,)),
        ("handleDeadLetters", ()),
        ("updateCapability", ("a",)),
        ("loadActorSource", ("a.zip",)),
        ("actorSystemShutdown", ()),
        ("notifyOnSystemRegistrationChanges", ()),
    ],
)
def test_what_is_not_offered_is_an_error_that_says_what_is(node, method, values):
    value = tuple(one if isinstance(one, str) else "x" for one in values)
    with pytest.raises(TargetDown, match=f"NotOffered: {method} is not offered"):
        asked(node, "permanent", method, value)
    node.up("permanent", after_incarnation=1)


def test_what_cannot_travel_is_an_error_of_its_sender(node):
    with pytest.raises(TargetDown, match="TransportRefused: a object cannot travel"):
        asked(node, "permanent", "object")


def test_a_plain_actor_whose_first_message_fails_does_not_start(node):
    spec = ChildSpec("bad", "tests.support.plain_actors.NeverReady", args="this")
    failed = node.connect().ask("root", StartChild(new_ref(), "bad", spec=spec), timeout_s=30)
    assert failed.detail == "ValueError: no use for 'this'"
    started = node.connect().ask(
        "root", StartChild(new_ref(), "late", spec=plain("late")), timeout_s=30
    )
    assert isinstance(started, ChildStarted)
    assert asked(node, "late", "seen") == ("hello",)


def test_an_orderly_stop_is_an_exit_request(tmp_path):
    journal = tmp_path / "journal"
    journal.touch()
    tree = SupervisorSpec(Strategy.ONE_FOR_ONE, (plain("a", args=str(journal)),))
    with running_node(tree, tmp_path / "node") as node:
        node.up("a")
    assert journal.read_text(encoding="utf-8") == "exit request\n"


def test_a_class_that_is_neither_worker_nor_actor_is_refused():
    tree = SupervisorSpec(
        Strategy.ONE_FOR_ONE, (ChildSpec("a", "tests.support.children.Unimportable"),)
    )
    with pytest.raises(SpecError, match=r"neither a Worker nor a thespian\.actors\.Actor"):
        load_actors(tree)


# ── Thespian's ActorSystem for hosts ─────────────────────────────────────────


def test_it_is_thespians_own_class(system):
    assert isinstance(system, ActorSystem)
    assert type(system).ask is ActorSystem.ask
    assert not hasattr(ActorSystem, "systemBase"), "another ActorSystem() would find this one"


def test_ask_tell_and_listen(system):
    address = system.find("permanent")
    assert isinstance(address, ActorAddress)
    assert system.ask(address, "echo", 30) == "echoed"
    system.tell(address, "echo")
    assert system.listen(30) == "echoed"
    assert system.listen(0.05) is None
    assert system.ask(address, "no answer comes", timedelta(seconds=0.1)) is None
    with pytest.raises(ValueError, match="not a valid ActorAddress"):
        system.ask("permanent", "echo")


def test_workers_are_spoken_to_as_well(node, system):
    answer = system.ask(system.createActor(None, globalName="worker"), Echo("r", [1, 2]), 30)
    assert isinstance(answer, Echoed)
    assert (answer.id, answer.payload) == ("worker", [1, 2])


def test_an_ask_with_a_ref_leaves_what_came_before_to_listen(system):
    address = system.find("permanent")
    system.tell(address, "echo")
    answer = system.ask(address, Ask("r", "seen"), 30)
    assert isinstance(answer, Answer)
    assert system.listen(30) == "echoed"


def test_a_name_stays_right_when_the_actor_restarts(node, system):
    address = system.find("permanent")
    entry = node.up("permanent")
    os.kill(entry.pid or 0, signal.SIGKILL)
    assert system.ask(address, "echo", 30) == "echoed"
    assert node.up("permanent").incarnation == entry.incarnation + 1


def test_an_ask_returns_none_as_soon_as_the_actor_has_ended(system):
    began = time.monotonic()
    assert system.ask(system.find("permanent"), Ask("r", "kill"), 60) is None
    assert time.monotonic() - began < 30


def test_an_address_in_a_message_can_be_sent_to(system):
    (address,) = system.ask(system.find("permanent"), Ask("r", "address"), 30).values
    assert isinstance(address, ActorAddress)
    assert system.ask(address, "echo", 30) == "echoed"


def test_an_exit_request_stops_an_actor_in_order(node, system):
    before = node.up("permanent")
    system.tell(system.find("permanent"), ActorExitRequest())
    after = node.up("permanent", after_incarnation=before.incarnation)
    assert after.last_exit is not None
    assert after.last_exit.kind is ExitKind.NORMAL


def test_each_thread_and_each_private_context_has_an_inbox_of_its_own(system):
    address = system.find("permanent")
    system.tell(address, "echo")
    heard: list[object] = []
    thread = threading.Thread(target=lambda: heard.append(system.listen(0.2)))
    thread.start()
    thread.join(30)
    with system.private() as inner:
        assert inner.listen(0.2) is None
        assert inner.ask(address, "echo", 30) == "echoed"
    assert heard == [None]
    assert system.listen(30) == "echoed"


def test_what_hosts_are_not_offered_is_an_error_that_says_what_is(system):
    for call in (
        lambda: system.createActor(Actor),
        system.shutdown,
        lambda: system.updateCapability("a", 1),
        lambda: system.loadActorSource("a.zip"),
        lambda: system.unloadActorSource("hash"),
    ):
        with pytest.raises(NotOffered, match="is not offered by a supervised node: "):
            call()
    with pytest.raises(InvalidActorAddress):
        system.find("nothing")
    assert system.ask(system.find("permanent"), "echo", 30) == "echoed"


def test_after_the_node_has_stopped_nothing_is_answered(tmp_path):
    tree = SupervisorSpec(Strategy.ONE_FOR_ONE, (plain("a"),))
    with running_node(tree, tmp_path) as node:
        system = NodeActorSystem(node.config.runtime_dir)
        address = system.find("a")
        node.stop()
        assert system.ask(address, "echo", 5) is None
        assert system.listen(5) is None
        with pytest.raises(ActorSystemFailure):
            system.tell(address, "echo")
        system.close()


def test_a_host_without_thespian_speaks_to_plain_actors(node):
    connection = Connection.attach(node.config.runtime_dir)
    with connection:
        assert isinstance(connection.ask("permanent", Ask("r", "who"), timeout_s=30), Answer)
        with pytest.raises(NoReply):
            connection.ask("nothing", Ask("r", "who"), timeout_s=0.1)
