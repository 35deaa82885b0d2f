"""The engine pattern: a thread that blocks, a mailbox that does not."""

from __future__ import annotations

import time

import pytest

from supervision.exits import ExitKind
from supervision.messages import new_ref
from supervision.spec import ChildSpec, Restart, Strategy, SupervisorSpec
from tests.support.children import Echo, ReportSeen, Seen, Work, Worked
from tests.support.nodes import running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

TREE = SupervisorSpec(
    Strategy.ONE_FOR_ONE,
    (ChildSpec("engine", "tests.support.children.EngineChild", restart=Restart.TRANSIENT),),
)


def test_the_mailbox_answers_while_the_thread_blocks(tmp_path):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        work = connection.stream("engine", Work(new_ref(), "sleep", 1.0), idle_timeout_s=30)
        began = time.monotonic()
        answered = 0
        while time.monotonic() - began < 0.7:
            connection.ask("engine", Echo(new_ref()), timeout_s=30)
            answered += 1
        assert answered > 3  # hundreds on a quiet machine; one at most if it waited for the thread
        assert next(work).values == ("slept",)  # type: ignore[attr-defined]
        assert time.monotonic() - began > 0.95


def test_no_post_is_lost_or_reordered_and_bursts_are_drained_together(tmp_path):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        for count in (1, 2, 20_000, 3):
            done = connection.ask("engine", Work(new_ref(), "post", count), timeout_s=30)
            assert isinstance(done, Worked)
            assert done.values == tuple(range(count))
        seen = connection.ask("engine", ReportSeen(new_ref()), timeout_s=30)
        assert isinstance(seen, Seen)
        assert seen.values[1] < 10_000  # type: ignore[operator]


def test_single_posts_wake_the_mailbox_every_time(tmp_path):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        for _ in range(300):
            done = connection.ask("engine", Work(new_ref(), "post", 1), timeout_s=30)
            assert isinstance(done, Worked)


def test_an_exception_on_the_thread_ends_the_actor_with_that_reason(tmp_path):
    with running_node(TREE, tmp_path) as node:
        node.connect().tell("engine", Work(new_ref(), "raise"))
        entry = node.up("engine", after_incarnation=1)
        assert entry.last_exit is not None
        assert entry.last_exit.kind is ExitKind.ABNORMAL
        assert "engine broke" in entry.last_exit.text
        assert "RuntimeError: engine broke" in node.log


def test_a_thread_that_returns_can_end_the_actor_in_order(tmp_path):
    with running_node(TREE, tmp_path) as node:
        node.connect().tell("engine", Work(new_ref(), "return"))
        down = eventually(
            lambda: (e := node.entry("engine")) and e.state == "down" and e, what="engine down"
        )
        assert down.last_exit.kind is ExitKind.NORMAL


def test_a_blocked_thread_does_not_delay_a_stop(tmp_path):
    with running_node(TREE, tmp_path) as node:
        node.connect().tell("engine", Work(new_ref(), "sleep", 30.0))
        began = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began < 25  # the thread sleeps for 30 s
