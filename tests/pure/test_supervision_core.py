"""The supervisor's decisions, in a world without processes.

``World`` plays the shell: it carries out effects on imaginary processes and lets a test, or
Hypothesis, decide what each of them does next.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervision import effects as fx
from supervision.core import SupervisorCore
from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
from supervision.messages import StartFailure
from supervision.spec import (
    BRUTAL_KILL,
    INFINITY,
    Backoff,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)

pytestmark = pytest.mark.pure

KILLED = ExitReason(ExitKind.KILLED, "killed by SIGKILL")
CRASHED = ExitReason(ExitKind.ABNORMAL, "raised")


def spec(child_id, **changes):
    return ChildSpec(child_id, "tests.support.children.GoodChild", **changes)


class World:
    def __init__(self, spec_of_supervisor, known=None):
        self.core = SupervisorCore(spec_of_supervisor, known)
        self.live = {}  # id -> incarnation
        self.asked = set()
        self.killed = set()
        self.timers = []
        self.trace = []
        self.all_ready = 0
        self.finished = []
        self.answers = []
        self.removed = []
        self.now = 0.0
        self.do(self.core.start())

    def do(self, effects):
        for effect in effects:
            match effect:
                case fx.Spawn(i, n):
                    assert i not in self.live, f"{i} has two processes"
                    self.live[i] = n
                    self.trace.append(("start", i))
                case fx.AskToStop(i, n):
                    assert self.live.get(i) == n
                    self.asked.add(i)
                    self.trace.append(("stop", i))
                case fx.Kill(i, n, _):
                    assert self.live.get(i) == n
                    self.killed.add(i)
                    self.trace.append(("kill", i))
                case fx.Arm(timer, i, n, seconds):
                    self.timers.append((timer, i, n, seconds))
                case fx.AllReady():
                    self.all_ready += 1
                case fx.Finished(reason):
                    assert not self.live, "finished with live children"
                    self.finished.append(reason)
                case fx.Removed(child):
                    self.removed.append(child.id)
                case fx.AnswerStarted() | fx.AnswerStartFailed() | fx.AnswerTerminated():
                    self.answers.append(effect)
                case fx.Happened():
                    pass

    def ready(self, i):
        self.do(self.core.child_ready(i, self.live[i]))

    def exit(self, i, reason=KILLED):
        n = self.live.pop(i)
        self.asked.discard(i)
        self.killed.discard(i)
        self.do(self.core.child_exited(i, n, reason, self.now))

    def ready_all(self):
        while starting := [i for i in self.live if self.state(i) is fx.State.STARTING]:
            self.ready(starting[0])

    def obey(self):
        """Every child that was asked or killed ends; every new one gets ready."""
        while True:
            if ending := sorted(self.asked | self.killed):
                self.exit(ending[0], SHUTDOWN if ending[0] in self.asked else KILLED)
            elif starting := [i for i in self.live if self.state(i) is fx.State.STARTING]:
                self.ready(starting[0])
            else:
                return

    def state(self, i):
        return self.core.children[i].state

    def fire(self, timer, i):
        found = [t for t in self.timers if t[:2] == (timer, i)][-1]
        self.do(self.core.timer_fired(found[0], found[1], found[2]))

    def take_trace(self):
        trace, self.trace = self.trace, []
        return trace


def three(strategy, **changes):
    children = tuple(spec(i, **changes) for i in "abc")
    world = World(SupervisorSpec(strategy, children, intensity=3, period_s=5.0))
    world.ready_all()
    world.take_trace()
    return world


def test_children_start_in_order_each_after_the_one_before_is_ready():
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, tuple(spec(i) for i in "abc")))
    assert world.take_trace() == [("start", "a")]
    world.ready("a")
    assert world.take_trace() == [("start", "b")]
    world.ready("b")
    assert world.all_ready == 0
    world.ready("c")
    assert world.all_ready == 1


def test_stop_goes_in_reverse_order_each_after_the_one_before_is_gone():
    world = three(Strategy.ONE_FOR_ONE)
    world.do(world.core.stop(SHUTDOWN))
    assert world.take_trace() == [("stop", "c")]
    world.exit("c", SHUTDOWN)
    assert world.take_trace() == [("stop", "b")]
    world.exit("b", SHUTDOWN)
    world.exit("a", SHUTDOWN)
    assert world.finished == [SHUTDOWN]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Strategy.ONE_FOR_ONE, "start b"),
        (Strategy.REST_FOR_ONE, "stop c, start b, start c"),
        (Strategy.ONE_FOR_ALL, "stop c, stop a, start a, start b, start c"),
    ],
)
def test_the_strategy_decides_who_goes_with_a_killed_child(strategy, expected):
    world = three(strategy)
    world.exit("b", KILLED)
    world.obey()
    assert ", ".join(f"{what} {i}" for what, i in world.take_trace()) == expected
    assert world.core.children["b"].restarts == 1
    assert world.core.children["b"].incarnation == 2


def test_more_restarts_than_the_intensity_make_it_give_up_and_stop_the_others_in_reverse():
    world = three(Strategy.ONE_FOR_ONE)
    for _ in range(3):
        world.exit("b")
        world.ready("b")
    world.take_trace()
    world.exit("b")
    world.obey()
    assert world.take_trace() == [("stop", "c"), ("stop", "a")]
    assert [reason.kind for reason in world.finished] == [ExitKind.ABNORMAL]
    assert "more than 3 restarts" in world.finished[0].text


def test_restarts_that_are_old_do_not_count():
    world = three(Strategy.ONE_FOR_ONE)
    for _ in range(20):
        world.now += 2.0
        world.exit("b")
        world.ready("b")
    assert world.finished == []


def test_a_repeated_or_late_notice_changes_nothing():
    world = three(Strategy.ONE_FOR_ALL)
    world.exit("b")
    before = world.take_trace()
    for incarnation in (1, 7):
        assert world.core.child_exited("b", incarnation, KILLED, 0.0) == []
        assert world.core.child_ready("b", incarnation) == []
        assert world.core.timer_fired(fx.Timer.INIT, "b", incarnation) == []
    assert world.core.child_exited("nobody", 1, KILLED, 0.0) == []
    assert before == [("stop", "c")]


def test_a_failed_first_start_stops_the_earlier_siblings_and_names_the_reason():
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, tuple(spec(i) for i in "abc")))
    world.ready("a")
    world.core.child_refused("b", 1, "no file", None)
    world.exit("b", CRASHED)
    world.obey()
    assert ("start", "c") not in world.trace
    assert world.trace[-1] == ("stop", "a")
    assert "start of b failed: init_failed: no file" in world.finished[0].text


def test_a_child_that_may_be_absent_does_not_stop_the_start():
    children = (spec("a", restart_if_never_ready=False), spec("b"))
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, children))
    world.exit("a", CRASHED)
    world.ready("b")
    assert world.all_ready == 1
    assert world.state("a") is fx.State.DOWN


def test_a_start_that_takes_too_long_is_killed_and_counts_as_failed():
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec("a"),)))
    world.fire(fx.Timer.INIT, "a")
    assert world.killed == {"a"}
    world.exit("a")
    assert "init_timeout" in world.finished[0].text


def test_a_restart_that_fails_is_tried_again_until_the_intensity_is_exceeded():
    world = three(Strategy.REST_FOR_ONE)
    world.exit("a")
    tries = 1
    while not world.finished:
        world.obey_stops = [world.exit(i, SHUTDOWN) for i in sorted(world.asked)]
        if "a" in world.live:
            tries += 1
            world.exit("a", CRASHED)
    assert tries == 4
    assert ("start", "b") not in world.trace


def test_a_temporary_child_that_a_sibling_takes_down_stays_down():
    children = (spec("a"), spec("b", restart=Restart.TEMPORARY), spec("c"))
    world = World(SupervisorSpec(Strategy.ONE_FOR_ALL, children))
    world.ready_all()
    world.take_trace()
    world.exit("a")
    world.obey()
    assert [i for what, i in world.take_trace() if what == "start"] == ["a", "c"]
    assert world.state("b") is fx.State.DOWN


def test_a_brutal_kill_asks_nobody_and_a_late_stop_is_killed_and_infinity_is_never():
    children = (
        spec("a", shutdown=INFINITY),
        spec("b", shutdown=2.0),
        spec("c", shutdown=BRUTAL_KILL),
    )
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, children))
    world.ready_all()
    world.take_trace()
    world.do(world.core.stop(SHUTDOWN))
    assert world.take_trace() == [("kill", "c")]
    world.exit("c")
    assert world.take_trace() == [("stop", "b")]
    world.fire(fx.Timer.STOP, "b")
    assert world.take_trace() == [("kill", "b")]
    world.exit("b")
    assert not [t for t in world.timers if t[:2] == (fx.Timer.STOP, "a")]


def test_a_restart_waits_for_its_backoff():
    children = (spec("a", backoff=Backoff(first_s=1.0)), spec("b"))
    world = World(SupervisorSpec(Strategy.REST_FOR_ONE, children))
    world.ready_all()
    world.take_trace()
    world.exit("a")
    world.obey()
    assert world.take_trace() == [("stop", "b")]
    assert world.state("a") is fx.State.RESTARTING
    world.fire(fx.Timer.BACKOFF, "a")
    world.obey()
    assert world.take_trace() == [("start", "a"), ("start", "b")]


def test_a_stop_request_ends_a_start_in_flight():
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, tuple(spec(i) for i in "ab")))
    world.do(world.core.stop(SHUTDOWN))
    assert world.take_trace() == [("start", "a"), ("stop", "a")]
    world.exit("a", SHUTDOWN)
    assert world.finished == [SHUTDOWN]


def test_a_terminated_static_child_stays_down_and_can_be_started_again():
    world = three(Strategy.ONE_FOR_ONE)
    world.do(world.core.terminate_child("b", "asker"))
    world.exit("b", SHUTDOWN)
    assert world.answers == [fx.AnswerTerminated("asker", "b")]
    assert world.state("b") is fx.State.DOWN
    world.do(world.core.start_child("b", None, "again"))
    world.ready("b")
    assert world.answers[-1] == fx.AnswerStarted("again", "b")


def test_a_static_supervisor_takes_no_new_children():
    world = three(Strategy.ONE_FOR_ONE)
    world.do(world.core.start_child("new", None, "asker"))
    assert world.answers[-1].reason is StartFailure.UNKNOWN_CHILD
    assert world.core.terminate_child("new", "asker") is None


# ── dynamic ──────────────────────────────────────────────────────────────────


def dynamic(**changes):
    template = spec("template", **changes)
    return World(
        SupervisorSpec(Strategy.SIMPLE_ONE_FOR_ONE, template=template, intensity=2, period_s=5.0)
    )


def test_dynamic_children_start_without_waiting_for_each_other():
    world = dynamic()
    assert world.all_ready == 1
    for i in "abc":
        world.do(world.core.start_child(i, None, i))
    assert set(world.live) == set("abc")
    world.ready("b")
    assert world.answers == [fx.AnswerStarted("b", "b")]
    world.do(world.core.terminate_child("b", "t"))
    assert world.asked == {"b"}


def test_a_dynamic_child_is_not_started_twice():
    world = dynamic()
    world.do(world.core.start_child("a", None, "first"))
    world.do(world.core.start_child("a", None, "second"))
    assert [(one.asker, one.reason) for one in world.answers] == [
        ("second", StartFailure.ALREADY_STARTED)
    ]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("refuse", StartFailure.INIT_FAILED),
        ("die", StartFailure.DIED_IN_INIT),
        ("timeout", StartFailure.INIT_TIMEOUT),
    ],
)
def test_a_dynamic_child_that_was_never_ready_is_dropped_and_the_asker_hears_why(how, reason):
    world = dynamic()
    world.do(world.core.start_child("a", None, "asker"))
    if how == "refuse":
        world.core.child_refused("a", 1, "no file", {"code": 5})
    if how == "timeout":
        world.fire(fx.Timer.INIT, "a")
    world.exit("a")
    assert [(one.asker, one.reason) for one in world.answers] == [("asker", reason)]
    assert world.answers[0].error == ({"code": 5} if how == "refuse" else None)
    assert world.removed == ["a"]
    assert world.core.children == {}


def test_a_dynamic_child_that_was_ready_once_is_restarted_even_if_a_restart_fails():
    world = dynamic()
    world.do(world.core.start_child("a", None, "asker"))
    world.ready("a")
    world.exit("a")
    world.exit("a", CRASHED)
    world.ready("a")
    assert world.core.children["a"].incarnation == 3


def test_a_dynamic_child_that_fails_too_often_is_given_up_alone():
    world = dynamic()
    for i in "ab":
        world.do(world.core.start_child(i, None, i))
        world.ready(i)
    for _ in range(3):
        world.exit("a")
        if "a" in world.live:
            world.ready("a")
    assert world.state("a") is fx.State.DOWN
    assert world.state("b") is fx.State.UP
    assert world.finished == []
    world.do(world.core.start_child("a", None, "again"))
    world.ready("a")
    assert world.core.children["a"].incarnation == 4


def test_terminating_a_dynamic_child_removes_it_and_its_id_keeps_counting():
    world = dynamic()
    world.do(world.core.start_child("a", None, "x"))
    world.do(world.core.terminate_child("a", "t"))
    world.exit("a", SHUTDOWN)
    assert [type(one).__name__ for one in world.answers] == [
        "AnswerStartFailed",
        "AnswerTerminated",
    ]
    assert world.removed == ["a"]
    world.do(world.core.start_child("a", None, "y"))
    assert world.live == {"a": 2}


def test_a_stopping_supervisor_refuses_starts_and_stops_dynamic_children_at_once():
    world = dynamic()
    for i in "ab":
        world.do(world.core.start_child(i, None, i))
    world.do(world.core.stop(SHUTDOWN))
    assert world.asked == {"a", "b"}
    world.do(world.core.start_child("c", None, "late"))
    assert world.answers[-1].reason is StartFailure.SUPERVISOR_STOPPING
    world.exit("a", SHUTDOWN)
    world.exit("b", SHUTDOWN)
    assert world.finished == [SHUTDOWN]


def test_incarnations_go_on_from_what_is_known():
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec("a"),)), {"a": 41})
    assert world.live == {"a": 42}


# ── laws ─────────────────────────────────────────────────────────────────────

REASONS = st.sampled_from([NORMAL, SHUTDOWN, CRASHED, KILLED])
STRATEGIES = st.sampled_from([Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])


@settings(max_examples=300, deadline=None)
@given(st.data(), STRATEGIES, st.integers(1, 5), st.integers(0, 4))
def test_whatever_children_do_order_holds_and_a_stop_ends_everything(data, strategy, size, most):
    ids = "abcde"[:size]
    children = tuple(
        spec(i, restart=data.draw(st.sampled_from(list(Restart)), label=f"restart {i}"))
        for i in ids
    )
    world = World(SupervisorSpec(strategy, children, intensity=most, period_s=10.0))
    for _ in range(data.draw(st.integers(0, 25))):
        if world.finished or not world.live:
            break
        world.now += data.draw(st.floats(0, 8))
        who = data.draw(st.sampled_from(sorted(world.live)))
        if world.state(who) is fx.State.STARTING and data.draw(st.booleans()):
            world.ready(who)
        else:
            gone = (who, world.live[who])
            world.exit(who, data.draw(REASONS))
            assert world.core.child_exited(*gone, KILLED, world.now) == []
        stopping = [i for i in world.live if world.state(i) is fx.State.STOPPING]
        starting = [i for i in world.live if world.state(i) is fx.State.STARTING]
        assert len(stopping) + len(starting) <= 1, "a static supervisor does one thing at a time"
    world.obey()
    world.take_trace()
    alive = [i for i in ids if i in world.live]
    world.do(world.core.stop(SHUTDOWN))
    world.obey()
    assert [i for what, i in world.take_trace()] == list(reversed(alive))
    assert len(world.finished) == 1
    assert not world.live


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 4))
def test_it_gives_up_exactly_when_the_window_exceeds_the_intensity(data, most):
    world = World(
        SupervisorSpec(Strategy.ONE_FOR_ALL, (spec("a"), spec("b")), intensity=most, period_s=10.0)
    )
    world.ready_all()
    times = []
    for gap in data.draw(st.lists(st.floats(0, 8), max_size=12)):
        world.now += gap
        times.append(world.now)
        world.exit(data.draw(st.sampled_from("ab")))
        world.obey()
        recent = [one for one in times if world.now - one <= 10.0]
        assert bool(world.finished) is (len(recent) > most)
        if world.finished:
            break


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_dynamic_children_are_independent_and_every_asker_is_answered_once(data):
    world = dynamic()
    asked = 0
    for _ in range(data.draw(st.integers(1, 40))):
        world.now += data.draw(st.floats(0, 3))
        do = data.draw(st.sampled_from(["start", "terminate", "ready", "exit"]))
        who = data.draw(st.sampled_from("abcd"))
        if do == "start":
            asked += 1
            world.do(world.core.start_child(who, None, asked))
        elif do == "terminate":
            effects = world.core.terminate_child(who, f"t{asked}")
            world.do(effects or [])
        elif do == "ready" and who in world.live:
            world.ready(who)
        elif do == "exit" and who in world.live:
            world.exit(who, data.draw(REASONS))
    world.do(world.core.stop(SHUTDOWN))
    world.obey()
    starts = [a.asker for a in world.answers if not isinstance(a, fx.AnswerTerminated)]
    assert sorted(starts) == list(range(1, asked + 1))
    assert len(world.finished) == 1
