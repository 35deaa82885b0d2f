"""The supervisor's decisions, in a world without processes.

``tests.support.supervisor_world.World`` carries out the effects on imaginary processes and lets a
test decide what each of them does next. The laws that Hypothesis checks with it are in
``test_supervision_laws.py``.
"""

from __future__ import annotations

import pytest

from supervision import effects as fx
from supervision.exits import NORMAL, SHUTDOWN, ExitKind
from supervision.messages import DeleteFailure, StartFailure
from supervision.spec import (
    BRUTAL_KILL,
    INFINITY,
    AutoShutdown,
    Backoff,
    Restart,
    Strategy,
    SupervisorSpec,
)
from tests.support.supervisor_world import CRASHED, KILLED, World, spec

pytestmark = pytest.mark.pure


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
def test_the_strategy_decides_which_children_restart_with_a_killed_one(strategy, expected):
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


def test_a_temporary_child_that_a_sibling_takes_down_is_forgotten():
    children = (spec("a"), spec("b", restart=Restart.TEMPORARY), spec("c"))
    world = World(SupervisorSpec(Strategy.ONE_FOR_ALL, children))
    world.ready_all()
    world.take_trace()
    world.exit("a")
    world.obey()
    assert [i for what, i in world.take_trace() if what == "start"] == ["a", "c"]
    assert world.removed == ["b"]
    assert list(world.core.children) == ["a", "c"]


def test_a_brutal_kill_sends_no_stop_and_a_late_stop_is_killed_and_infinity_is_never():
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


# ── children at run time ─────────────────────────────────────────────────────


def reasons(world):
    return [one.reason.value for one in world.answers if hasattr(one, "reason")]


def test_a_stop_keeps_the_reverse_order_even_where_a_child_is_just_starting():
    world = three(Strategy.ONE_FOR_ONE)
    world.exit("b", KILLED)
    world.do(world.core.stop(SHUTDOWN))
    world.obey()
    assert [i for what, i in world.take_trace() if what == "stop"] == ["c", "b", "a"]


def test_why_a_start_failed_is_what_was_known_first():
    world = dynamic()
    world.do(world.core.start_child("a", None, "asker"))
    world.core.child_refused("a", 1, "no file", None)
    world.fire(fx.Timer.INIT, "a")
    world.fire(fx.Timer.INIT, "a")
    assert world.take_trace() == [("start", "a"), ("kill", "a")]
    world.exit("a")
    assert reasons(world) == ["init_failed"]


def test_a_terminated_child_stays_down_keeps_its_spec_and_can_be_restarted():
    world = three(Strategy.ONE_FOR_ONE)
    world.do(world.core.terminate_child("b", "asker"))
    world.exit("b", SHUTDOWN)
    assert world.answers == [fx.AnswerTerminated("asker", "b")]
    assert world.state("b") is fx.State.DOWN
    assert list(world.core.children) == ["a", "b", "c"]
    world.do(world.core.restart_child("b", "again"))
    world.ready("b")
    assert world.answers[-1] == fx.AnswerStarted("again", "b")
    assert world.live == {"a": 1, "b": 2, "c": 1}


def test_restart_child_is_refused_unless_the_child_is_known_and_down():
    world = three(Strategy.ONE_FOR_ONE, backoff=Backoff())
    world.do(world.core.restart_child("a", "up"))
    world.exit("b", KILLED)
    world.do(world.core.restart_child("b", "pausing"))
    world.do(world.core.terminate_child("c", "t"))
    world.do(world.core.restart_child("c", "stopping"))
    world.do(world.core.restart_child("new", "unknown"))
    assert reasons(world) == ["running", "restarting", "running", "unknown_child"]
    world = dynamic()
    world.do(world.core.restart_child("a", "asker"))
    assert reasons(world) == ["simple_one_for_one"]


def test_a_restart_child_that_fails_leaves_the_child_down_and_counts_for_nothing():
    world = three(Strategy.ONE_FOR_ALL)
    world.do(world.core.terminate_child("b", "t"))
    world.exit("b", SHUTDOWN)
    for number in range(5):
        world.do(world.core.restart_child("b", number))
        world.core.child_refused("b", world.live["b"], "no file", "why")
        world.exit("b", CRASHED)
    assert reasons(world) == ["init_failed"] * 5
    assert world.answers[-1].error == "why"
    assert (world.state("b"), world.state("a")) == (fx.State.DOWN, fx.State.UP)
    assert world.finished == []


def test_delete_child_forgets_a_child_that_is_down_and_no_other():
    world = three(Strategy.ONE_FOR_ONE, backoff=Backoff())
    world.do(world.core.delete_child("a", "up"))
    world.exit("b", KILLED)
    world.do(world.core.delete_child("b", "pausing"))
    world.do(world.core.delete_child("new", "unknown"))
    assert reasons(world) == ["running", "restarting", "unknown_child"]
    world.do(world.core.terminate_child("b", "t"))
    world.do(world.core.delete_child("b", "asker"))
    assert world.answers[-1] == fx.AnswerDeleted("asker", "b")
    assert world.removed == ["b"]
    world.do(world.core.delete_child("b", "again"))
    assert world.answers[-1].reason is DeleteFailure.UNKNOWN_CHILD
    world.fire(fx.Timer.BACKOFF, "b")
    assert list(world.core.children) == ["a", "c"]
    world.do(world.core.stop(SHUTDOWN))
    world.do(world.core.delete_child("a", "late"))
    assert world.answers[-1].reason is DeleteFailure.SUPERVISOR_STOPPING
    world = dynamic()
    world.do(world.core.delete_child("a", "asker"))
    assert reasons(world) == ["simple_one_for_one"]


def test_a_child_with_its_own_spec_comes_last_and_lives_through_restarts_of_its_siblings():
    world = three(Strategy.ONE_FOR_ALL)
    world.do(world.core.start_child("d", None, "asker", spec("d")))
    world.ready("d")
    assert world.answers == [fx.AnswerStarted("asker", "d")]
    world.take_trace()
    world.exit("b", KILLED)
    world.obey()
    assert [i for _, i in world.take_trace()] == ["d", "c", "a", "a", "b", "c", "d"]
    world.do(world.core.stop(SHUTDOWN))
    world.obey()
    assert [i for _, i in world.take_trace()] == ["d", "c", "b", "a"]


def test_a_new_child_that_fails_to_start_is_dropped_and_its_siblings_are_unaffected():
    world = three(Strategy.ONE_FOR_ALL)
    world.do(world.core.start_child("d", None, "asker", spec("d")))
    world.exit("d", CRASHED)
    assert reasons(world) == ["died_in_init"]
    assert world.removed == ["d"]
    assert list(world.core.children) == ["a", "b", "c"]
    world.do(world.core.start_child("d", None, "asker", spec("d")))
    assert world.live == {"a": 1, "b": 1, "c": 1, "d": 2}, "its incarnations count on"


def test_a_new_child_is_refused_where_its_id_is_known_or_its_spec_is_impossible():
    world = three(Strategy.ONE_FOR_ONE)
    world.do(world.core.start_child("a", None, 1, spec("a")))
    world.do(world.core.terminate_child("b", 2))
    world.exit("b", SHUTDOWN)
    world.do(world.core.start_child("b", None, 3, spec("b")))
    world.do(world.core.start_child("new", None, 4))
    world.do(world.core.start_child("new", None, 5, spec("other")))
    world.do(world.core.start_child("new", "args", 6, spec("new")))
    significant = spec("new", restart=Restart.TEMPORARY, significant=True)
    world.do(world.core.start_child("new", None, 7, significant))
    assert reasons(world) == [
        "already_started", "already_present", "unknown_child", "bad_spec", "bad_spec", "bad_spec",
    ]  # fmt: skip
    assert "auto_shutdown is never" in world.answers[-1].detail
    world.do(world.core.terminate_child("new", 8))
    assert world.answers[-1] == fx.AnswerNotFound(8, "new")
    world = dynamic()
    world.do(world.core.start_child("a", None, 1, spec("a")))
    world.do(world.core.start_child("", None, 2))
    world.do(world.core.start_child("a", SupervisorSpec(Strategy.ONE_FOR_ONE), 3))
    assert reasons(world) == ["bad_spec"] * 3
    assert not world.live


def test_a_child_that_is_added_while_the_supervisor_starts_starts_after_the_others():
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec("a"), spec("b"))))
    world.do(world.core.start_child("c", None, "asker", spec("c")))
    world.do(world.core.restart_child("b", "early"))
    assert reasons(world) == ["restarting"]
    assert list(world.live) == ["a"]
    world.ready("a")
    world.ready("b")
    assert world.all_ready == 0
    world.exit("c", CRASHED)
    assert world.all_ready == 1
    assert reasons(world) == ["restarting", "died_in_init"]


def test_a_start_that_a_siblings_restart_interrupts_is_done_after_it_and_answered_then():
    world = three(Strategy.ONE_FOR_ALL)
    world.do(world.core.start_child("d", None, "d", spec("d", restart=Restart.TEMPORARY)))
    world.do(world.core.start_child("e", None, "e", spec("e", restart=Restart.TEMPORARY)))
    world.exit("a", KILLED)
    world.obey()
    assert world.answers == [fx.AnswerStarted("d", "d"), fx.AnswerStarted("e", "e")]
    assert world.live == {"a": 2, "b": 2, "c": 2, "d": 2, "e": 1}


def test_a_child_that_is_being_terminated_stays_down_when_a_sibling_restarts():
    world = three(Strategy.ONE_FOR_ALL)
    world.do(world.core.terminate_child("c", "asker"))
    world.exit("a", KILLED)
    world.exit("c", SHUTDOWN)
    assert world.answers == [fx.AnswerTerminated("asker", "c")]
    world.obey()
    assert world.live == {"a": 2, "b": 2}


def test_a_new_child_that_was_up_once_keeps_its_spec_when_a_later_start_fails():
    world = three(Strategy.ONE_FOR_ONE)
    world.do(world.core.start_child("d", None, 1, spec("d", restart=Restart.TRANSIENT)))
    world.ready("d")
    world.exit("d", NORMAL)
    world.do(world.core.restart_child("d", 2))
    world.exit("d", CRASHED)
    assert reasons(world) == ["died_in_init"]
    assert world.state("d") is fx.State.DOWN


def test_children_of_a_group_that_end_together_count_once():
    world = three(Strategy.ONE_FOR_ALL)
    for _ in range(3):
        for i in "abc":
            world.exit(i, KILLED)
        world.obey()
    assert world.finished == []
    assert world.live == {"a": 4, "b": 4, "c": 4}


def test_a_child_that_ends_while_its_stop_is_queued_is_stopped_and_not_restarted():
    world = three(Strategy.ONE_FOR_ONE)
    world.do(world.core.terminate_child("a", "a"))
    world.do(world.core.terminate_child("b", "b"))
    world.exit("b", KILLED)
    assert world.answers == [fx.AnswerTerminated("b", "b")]
    world.exit("a", SHUTDOWN)
    assert (world.state("b"), world.core.children["b"].restarts) == (fx.State.DOWN, 0)


def test_a_child_that_is_terminated_before_its_turn_to_start_does_not_start():
    world = three(Strategy.ONE_FOR_ONE)
    for i in "bc":
        world.do(world.core.terminate_child(i, f"stop {i}"))
        world.exit(i, SHUTDOWN)
        world.do(world.core.restart_child(i, f"start {i}"))
    assert list(world.live) == ["a", "b"]
    world.do(world.core.terminate_child("c", "again"))
    world.ready("b")
    assert reasons(world) == ["stopped"]
    assert list(world.live) == ["a", "b"]


def test_terminating_a_child_in_its_pause_brings_the_others_back_at_once():
    children = (spec("a"), spec("b", backoff=Backoff()), spec("c"))
    world = World(SupervisorSpec(Strategy.REST_FOR_ONE, children))
    world.ready_all()
    world.exit("b", KILLED)
    world.obey()
    assert list(world.live) == ["a"]
    world.do(world.core.terminate_child("b", "asker"))
    world.obey()
    assert (world.state("b"), world.state("c")) == (fx.State.DOWN, fx.State.UP)
    world.fire(fx.Timer.BACKOFF, "b")
    assert world.state("b") is fx.State.DOWN


def test_a_backoff_overtaken_by_a_restart_of_an_earlier_sibling_starts_no_child_early():
    slow = Backoff(first_s=5.0, max_s=5.0)
    children = (spec("a", backoff=slow), spec("b", backoff=Backoff()))
    world = World(SupervisorSpec(Strategy.REST_FOR_ONE, children))
    world.ready_all()
    world.exit("b", KILLED)
    world.exit("a", KILLED)
    world.fire(fx.Timer.BACKOFF, "b")
    assert not world.live
    world.fire(fx.Timer.BACKOFF, "a")
    world.obey()
    assert [i for what, i in world.take_trace() if what == "start"] == ["a", "b", "a", "b"]


# ── auto_shutdown ────────────────────────────────────────────────────────────


def significant(when, strategy=Strategy.ONE_FOR_ONE, **kinds):
    """a, b and c are significant and transient unless a test changes that; z is neither."""
    children = tuple(
        spec(i, restart=kinds.get(i, Restart.TRANSIENT), significant=True) for i in "abc"
    )
    world = World(SupervisorSpec(strategy, (*children, spec("z")), auto_shutdown=when))
    world.ready_all()
    world.take_trace()
    return world


ANY, ALL = AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT


def test_any_significant_ends_the_supervisor_in_reverse_order_with_shutdown():
    world = significant(ANY)
    world.exit("b", NORMAL)
    world.obey()
    assert world.take_trace() == [("stop", "z"), ("stop", "c"), ("stop", "a")]
    assert [one.kind for one in world.finished] == [ExitKind.SHUTDOWN]
    assert "b ended: normal" in world.finished[0].text


def test_all_significant_ends_the_supervisor_with_the_last_that_was_active():
    world = significant(ALL)
    world.exit("b", NORMAL)
    world.do(world.core.terminate_child("c", "t"))
    world.exit("c", SHUTDOWN)
    world.obey()
    assert world.finished == []
    world.exit("a", SHUTDOWN)
    world.obey()
    assert world.take_trace() == [("stop", "c"), ("stop", "z")]
    assert [one.kind for one in world.finished] == [ExitKind.SHUTDOWN]


def test_a_significant_child_that_is_about_to_come_back_is_active():
    children = (
        spec("a", restart=Restart.TRANSIENT, significant=True, backoff=Backoff()),
        spec("b", restart=Restart.TRANSIENT, significant=True),
    )
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, children, auto_shutdown=ALL))
    world.ready_all()
    world.exit("a", KILLED)
    world.exit("b", NORMAL)
    assert world.finished == []
    world.fire(fx.Timer.BACKOFF, "a")
    world.ready("a")
    world.exit("a", NORMAL)
    assert [one.kind for one in world.finished] == [ExitKind.SHUTDOWN]


def test_a_significant_child_that_is_being_terminated_is_not_active():
    world = significant(ALL)
    world.do(world.core.terminate_child("b", "t"))
    world.do(world.core.terminate_child("c", "t"))
    world.exit("a", NORMAL)
    world.obey()
    assert [one.kind for one in world.finished] == [ExitKind.SHUTDOWN]


def test_a_stop_from_outside_and_a_siblings_restart_do_not_end_the_supervisor():
    world = significant(ANY, Strategy.ONE_FOR_ALL, a=Restart.TEMPORARY)
    world.exit("z", KILLED)
    world.obey()
    assert world.removed == ["a"]
    world.do(world.core.terminate_child("b", "t"))
    world.exit("b", NORMAL)
    world.obey()
    world.do(world.core.restart_child("b", "asker"))
    world.exit("b", CRASHED)
    assert world.finished == []
    assert world.core.stopping is None


@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, CRASHED, KILLED], ids=str)
@pytest.mark.parametrize("kind", [Restart.TRANSIENT, Restart.TEMPORARY], ids=lambda k: k.value)
def test_a_transient_child_counts_when_it_ended_well_and_a_temporary_one_always(kind, reason):
    world = significant(ANY, b=kind)
    world.exit("b", reason)
    world.obey()
    ends = kind is Restart.TEMPORARY or reason in (NORMAL, SHUTDOWN)
    assert [one.kind for one in world.finished] == ([ExitKind.SHUTDOWN] if ends else [])


def test_an_end_before_the_supervisor_is_ready_counts_once_it_is():
    children = (spec("a", restart=Restart.TEMPORARY, significant=True), spec("b"))
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, children, auto_shutdown=ANY))
    world.ready("a")
    world.exit("a", NORMAL)
    assert (world.core.stopping, list(world.live)) == (None, ["b"])
    world.ready("b")
    world.obey()
    assert world.all_ready == 1
    assert [one.kind for one in world.finished] == [ExitKind.SHUTDOWN]


@pytest.mark.parametrize(("when", "ends"), [(ANY, True), (ALL, False)])
def test_significant_dynamic_children_end_their_supervisor_too(when, ends):
    template = spec("template", restart=Restart.TRANSIENT, significant=True)
    world = World(
        SupervisorSpec(Strategy.SIMPLE_ONE_FOR_ONE, template=template, auto_shutdown=when)
    )
    for i in "ab":
        world.do(world.core.start_child(i, None, i))
        world.ready(i)
    world.exit("a", NORMAL)
    world.obey()
    assert bool(world.finished) is ends
    if not ends:
        world.exit("b", NORMAL)
        assert [one.kind for one in world.finished] == [ExitKind.SHUTDOWN]


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


def test_a_child_that_is_terminated_twice_is_stopped_once_and_both_callers_are_answered():
    world = dynamic()
    world.do(world.core.start_child("a", None, "x"))
    world.ready("a")
    world.take_trace()
    world.do(world.core.terminate_child("a", 1))
    world.do(world.core.terminate_child("a", 2))
    assert world.take_trace() == [("stop", "a")]
    world.exit("a", SHUTDOWN)
    assert world.answers[1:] == [fx.AnswerTerminated(1, "a"), fx.AnswerTerminated(2, "a")]


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


def test_incarnations_continue_from_the_known_ones():
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec("a"),)), {"a": 41})
    assert world.live == {"a": 42}


@pytest.mark.parametrize(
    ("state", "shutdown", "reason", "reported"),
    [
        ("up", 5.0, KILLED, True),
        ("up", 5.0, CRASHED, True),
        ("up", 5.0, NORMAL, False),
        ("up", 5.0, SHUTDOWN, False),
        ("up", BRUTAL_KILL, KILLED, True),
        ("starting", 5.0, CRASHED, True),
        ("stopping", 5.0, SHUTDOWN, False),
        ("stopping", 5.0, KILLED, True),
        ("stopping", BRUTAL_KILL, KILLED, False),
    ],
)
def test_each_failure_that_was_not_planned_is_reported_once(state, shutdown, reason, reported):
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec("a", shutdown=shutdown),)))
    if state != "starting":
        world.ready("a")
    if state == "stopping":
        world.do(world.core.terminate_child("a", "asker"))
    world.exit("a", reason)
    assert world.reported == ([("a", 1, reason)] if reported else [])


def test_a_report_comes_after_the_restart_and_before_the_end_of_the_supervisor():
    world = three(Strategy.ONE_FOR_ONE)
    effects = world.core.child_exited("b", world.live.pop("b"), KILLED, world.now)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(fx.Spawn) < kinds.index(fx.Crashed)
    world.do(effects)
    world.ready_all()
    world.do(world.core.stop(SHUTDOWN))
    for child_id in "cb":
        world.exit(child_id, SHUTDOWN)
    effects = world.core.child_exited("a", world.live.pop("a"), KILLED, world.now)
    assert [type(effect) for effect in effects][-2:] == [fx.Crashed, fx.Finished]
