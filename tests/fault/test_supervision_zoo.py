"""Every way to break, crossed with every strategy and every restart type, in real processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from supervision.exits import ExitKind
from supervision.messages import new_ref
from supervision.spec import ChildKind, ChildSpec, Restart, Strategy, SupervisorSpec
from supervision.supervisor import ACTOR as SUPERVISOR
from tests.support.children import Echo, Echoed
from tests.support.nodes import RunningNode, alive, running_node
from tests.support.waiting import eventually
from tests.support.zoo import Break

pytestmark = pytest.mark.fault

STATIC = (Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE)
BEFORE, BAD, AFTER = "before", "bad", "after"

RESTARTED: dict[Strategy, tuple[int, int, int]] = {
    Strategy.ONE_FOR_ONE: (1, 2, 1),
    Strategy.ONE_FOR_ALL: (2, 2, 2),
    Strategy.REST_FOR_ONE: (1, 2, 2),
}
"""The incarnations of the child before, the one that broke, and the one after it."""
GONE = (1, 0, 1)
"""A temporary child that ends is forgotten, and no sibling restarts with it."""

FAILED, KILLED = ExitKind.ABNORMAL, ExitKind.KILLED
WAYS: dict[str, tuple[int, tuple[ExitKind, ...], str]] = {
    "raises_in_a_handler": (1, (FAILED,), "failed by the test"),
    "raises_on_the_third_message": (3, (FAILED,), "third"),
    "raises_while_stopping": (1, (FAILED,), "while stopping"),
    "forks_and_is_killed": (1, (KILLED,), "SIGKILL"),
    "exits_0_silently": (1, (FAILED,), "status 0"),
    "spins": (1, (KILLED,), "hung"),
    "sleeps": (1, (KILLED,), "hung"),
    "grows_memory": (1, (FAILED,), "MemoryError"),
    "closes_its_sockets": (1, (FAILED, KILLED), ""),
}
"""How many messages it takes, what kind of exit the supervisor sees, and a word of its reason."""


def animal(name: str, restart: Restart = Restart.PERMANENT, heartbeat_s: float = 10.0) -> ChildSpec:
    actor = "tests.support.zoo.ZooChild"
    return ChildSpec(name, actor, restart=restart, shutdown=0.5, heartbeat_s=heartbeat_s)


CAGES = {
    (strategy, restart): f"{strategy.value}:{restart.value}"
    for strategy in STATIC
    for restart in Restart
}


def cage(strategy: Strategy, restart: Restart, heartbeat_s: float = 10.0) -> ChildSpec:
    """A supervisor with three children, of which the middle one breaks."""
    name = CAGES[strategy, restart]
    children = (
        animal(f"{name}:{BEFORE}"),
        animal(f"{name}:{BAD}", restart, heartbeat_s),
        animal(f"{name}:{AFTER}"),
    )
    spec = SupervisorSpec(strategy, children)
    return ChildSpec(name, SUPERVISOR, spec, kind=ChildKind.SUPERVISOR)


def incarnations(node: RunningNode) -> dict[str, tuple[int, ...]]:
    """Of each cage: the incarnations of its three children that are up; 0 for one that is not."""
    up = {one.id: one.incarnation for one in node.connect().directory() if one.is_up}
    places = (BEFORE, BAD, AFTER)
    return {name: tuple(up.get(f"{name}:{p}", 0) for p in places) for name in CAGES.values()}


@pytest.mark.parametrize("how", WAYS)
def test_whatever_a_child_does_its_strategy_and_restart_type_decide(how: str, tmp_path: Path):
    messages, kinds, word = WAYS[how]
    wanted = {
        name: GONE if restart is Restart.TEMPORARY else RESTARTED[strategy]
        for (strategy, restart), name in CAGES.items()
    }
    heartbeat_s = 0.5 if word == "hung" else 10.0
    zoo = tuple(cage(*which, heartbeat_s) for which in CAGES)
    with running_node(SupervisorSpec(Strategy.ONE_FOR_ONE, zoo), tmp_path) as node:
        monitors = {}
        for name in CAGES.values():
            bad = f"{name}:{BAD}"
            monitors[bad] = node.connect().monitor(bad)
            for _ in range(messages):
                node.connect().tell(bad, Break(how, str(tmp_path / "grandchild")))
        for bad, ref in monitors.items():
            # Nine that spin have little of a core each, and waiting for one is no hanging.
            down = node.connect().wait_down(ref, timeout_s=40)
            assert down is not None, bad
            assert down.reason.kind in kinds, (bad, down.reason)
            assert word in down.reason.text, (bad, down.reason)
        eventually(lambda: incarnations(node) == wanted, what="the tree is whole", within_s=30)
        for name, three in wanted.items():
            for place, incarnation in zip((BEFORE, BAD, AFTER), three, strict=True):
                if incarnation:
                    answer = node.connect().ask(f"{name}:{place}", Echo(new_ref()), timeout_s=30)
                    assert isinstance(answer, Echoed)
                    assert answer.incarnation == incarnation
        grandchildren = [int(one.read_text()) for one in tmp_path.glob("grandchild.*")]
        assert len(grandchildren) == (9 if how == "forks_and_is_killed" else 0)
        eventually(
            lambda: not any(alive(pid) for pid in grandchildren),
            what="nothing is left that they forked",
            within_s=30,
        )
        assert incarnations(node) == wanted


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        (Strategy.ONE_FOR_ONE, (1, 3, 1)),
        # The one after it is not started before it: its turn comes once.
        (Strategy.ONE_FOR_ALL, (3, 3, 2)),
        (Strategy.REST_FOR_ONE, (1, 3, 2)),
    ],
)
def test_a_child_that_raises_in_init_when_restarted_is_tried_again(
    strategy: Strategy, wanted: tuple[int, ...], tmp_path: Path
):
    trap = tmp_path / "trap"
    children = (animal(BEFORE), replace(animal(BAD), args=str(trap)), animal(AFTER))
    with running_node(SupervisorSpec(strategy, children), tmp_path) as node:
        node.up(AFTER)
        trap.touch()
        node.connect().tell(BAD, Break("raises_in_a_handler"))

        def whole() -> bool:
            up = [node.entry(name) for name in (BEFORE, BAD, AFTER)]
            return all(one.is_up for one in up) and up[1].incarnation == 3

        eventually(whole, what="all are up", within_s=30)
        assert tuple(node.entry(name).incarnation for name in (BEFORE, BAD, AFTER)) == wanted
        assert node.record.boot == 1


def test_a_child_that_ignores_shutdown_is_killed_and_delays_nothing_for_long(tmp_path: Path):
    which = (Strategy.ONE_FOR_ALL, Restart.PERMANENT)
    name, spec = CAGES[which], cage(*which)
    with running_node(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec,)), tmp_path) as node:
        for place in (BEFORE, AFTER):
            node.connect().tell(f"{name}:{place}", Break("ignores_shutdown"))
        node.connect().tell(f"{name}:{BAD}", Break("raises_in_a_handler"))
        eventually(
            lambda: incarnations(node)[name] == (2, 2, 2), what="all three anew", within_s=30
        )
        for place in (BEFORE, AFTER):
            entry = node.entry(f"{name}:{place}")
            assert entry.last_exit is not None
            assert entry.last_exit.kind is ExitKind.KILLED
        node.connect().tell(f"{name}:{BAD}", Break("ignores_shutdown"))


def test_a_process_that_cannot_be_forked_is_a_start_that_failed(tmp_path: Path):
    spec = SupervisorSpec(Strategy.ONE_FOR_ONE, (animal("a"),))
    starved = ChildSpec(
        "starved", "tests.support.zoo.StarvedSupervisor", spec, kind=ChildKind.SUPERVISOR
    )
    with running_node(SupervisorSpec(Strategy.ONE_FOR_ONE, (starved,)), tmp_path) as node:
        first = node.up("a")
        node.connect().tell("a", Break("exits_0_silently"))
        entry = node.up("a", after_incarnation=first.incarnation)
        assert entry.incarnation == 4, "two starts failed, the third one came up"
        assert node.record.boot == 1
        assert node.entry("starved").incarnation == 1
        assert "could not be forked" in node.log
