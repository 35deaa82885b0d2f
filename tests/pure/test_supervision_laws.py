"""Laws of supervision, whatever the children, the askers and the clock do.

The first test is the whole truth table, written out from OTP's documentation of supervisors. The
others let Hypothesis make up lives of imaginary processes (``World`` carries out the effects).
"""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision import effects as fx
from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
from supervision.spec import (
    BRUTAL_KILL,
    INFINITY,
    AutoShutdown,
    Backoff,
    Restart,
    Strategy,
    SupervisorSpec,
)
from tests.support.examples import examples
from tests.support.supervisor_world import CRASHED, KILLED, World, spec

pytestmark = pytest.mark.pure

REASONS = {"normal": NORMAL, "shutdown": SHUTDOWN, "abnormal": CRASHED, "killed": KILLED}
STATIC = (Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE)

# ── the truth table ──────────────────────────────────────────────────────────

# a, b and c run, and b ends by itself. What is done then: -x stops x, +x starts x. "kept": b is
# down and its spec stays; "gone": its spec is forgotten. a and c are permanent, except below
# simple_one_for_one, where all children are alike.
TRUTH = """
strategy            restart    normal          shutdown        abnormal        killed
one_for_one         permanent  +b              +b              +b              +b
one_for_one         transient  kept            kept            +b              +b
one_for_one         temporary  gone            gone            gone            gone
one_for_all         permanent  -c,-a,+a,+b,+c  -c,-a,+a,+b,+c  -c,-a,+a,+b,+c  -c,-a,+a,+b,+c
one_for_all         transient  kept            kept            -c,-a,+a,+b,+c  -c,-a,+a,+b,+c
one_for_all         temporary  gone            gone            gone            gone
rest_for_one        permanent  -c,+b,+c        -c,+b,+c        -c,+b,+c        -c,+b,+c
rest_for_one        transient  kept            kept            -c,+b,+c        -c,+b,+c
rest_for_one        temporary  gone            gone            gone            gone
simple_one_for_one  permanent  +b              +b              +b              +b
simple_one_for_one  transient  gone            gone            +b              +b
simple_one_for_one  temporary  gone            gone            gone            gone
"""
KINDS, *ROWS = (line.split() for line in TRUTH.strip().splitlines())
CASES = [
    pytest.param(
        Strategy(strategy), Restart(restart), kind, cell, id=f"{strategy}-{restart}-{kind}"
    )
    for strategy, restart, *cells in ROWS
    for kind, cell in zip(KINDS[2:], cells, strict=True)
]


def test_the_truth_table_is_whole():
    assert len({one.id for one in CASES}) == len(Strategy) * len(Restart) * len(ExitKind) == 48


@pytest.mark.parametrize(("strategy", "restart", "kind", "expected"), CASES)
def test_what_follows_when_a_child_ends_by_itself(strategy, restart, kind, expected):
    if strategy is Strategy.SIMPLE_ONE_FOR_ONE:
        world = World(SupervisorSpec(strategy, template=spec("template", restart=restart)))
        for i in "abc":
            world.do(world.core.start_child(i, None, i))
    else:
        world = World(SupervisorSpec(strategy, (spec("a"), spec("b", restart=restart), spec("c"))))
    world.ready_all()
    world.take_trace()
    world.exit("b", REASONS[kind])
    world.obey()
    done = [{"start": "+", "stop": "-"}[what] + i for what, i in world.take_trace()]
    if done:
        assert ",".join(done) == expected
        assert set(world.live) == {"a", "b", "c"}
    else:
        assert ("kept" if "b" in world.core.children else "gone") == expected
        assert world.removed == (["b"] if expected == "gone" else [])
        assert set(world.live) == {"a", "c"}
    assert world.finished == []


# ── any life ─────────────────────────────────────────────────────────────────


@st.composite
def supervisors(draw, strategies=tuple(Strategy)):
    """A supervisor of up to five children of every kind."""
    strategy = draw(st.sampled_from(strategies))
    auto = draw(st.sampled_from(AutoShutdown))

    def child(i):
        restart = draw(st.sampled_from(Restart))
        may = auto is not AutoShutdown.NEVER and restart is not Restart.PERMANENT
        return spec(
            i,
            restart=restart,
            significant=may and draw(st.booleans()),
            shutdown=draw(st.sampled_from([1.0, BRUTAL_KILL, INFINITY])),
            backoff=draw(st.sampled_from([None, Backoff()])),
            restart_if_never_ready=draw(st.booleans()),
        )

    common = {
        "intensity": draw(st.integers(0, 4)),
        "period_s": 10.0,
        "auto_shutdown": auto,
    }
    if strategy is Strategy.SIMPLE_ONE_FOR_ONE:
        return SupervisorSpec(strategy, template=child("template"), **common)
    ids = "abcde"[: draw(st.integers(1, 5))]
    return SupervisorSpec(strategy, tuple(child(i) for i in ids), **common)


class Life:
    """Plays a supervisor through random events, and repeats every one of them."""

    def __init__(self, data, supervisor):
        self.data = data
        self.world = World(supervisor)
        self.core = self.world.core
        self.asked = 0
        self.past = []

    def draw(self, values):
        return self.data.draw(st.sampled_from(values))

    def feed(self, event, *args):
        """One event; the very same once more, and any earlier one, must change nothing."""
        self.world.do(getattr(self.core, event)(*args))
        self.past.append((event, *args))
        self.repeat(event, *args)
        old = self.draw(self.past)
        if old[0] != "child_exiting" or self.world.live.get(old[1]) != old[2]:
            self.repeat(*old)

    def repeat(self, event, *args):
        before = pickle.dumps(self.core)
        assert getattr(self.core, event)(*args) == [], f"{event}{args} had effects again"
        assert pickle.dumps(self.core) == before, f"{event}{args} changed something again"

    def exit(self, i, reason):
        n = self.world.live.pop(i)
        self.world.asked.discard(i)
        self.world.killed.discard(i)
        self.feed("child_exited", i, n, reason, self.world.now)

    def ask(self):
        i = self.draw("abcdefg")
        self.asked += 1
        match self.draw(["start", "start_spec", "restart", "terminate", "terminate", "delete"]):
            case "start":
                effects = self.core.start_child(i, None, self.asked)
            case "start_spec":
                restart = self.draw(list(Restart))
                effects = self.core.start_child(i, None, self.asked, spec(i, restart=restart))
            case "restart":
                effects = self.core.restart_child(i, self.asked)
            case "terminate":
                effects = self.core.terminate_child(i, self.asked)
            case "delete":
                effects = self.core.delete_child(i, self.asked)
        self.world.do(effects)

    def step(self):
        world = self.world
        world.now += self.data.draw(st.floats(0, 4))
        do = self.draw(["ready", "ready", "ready", "exit", "exit", "say", "timer", "ask", "ask"])
        if do == "ask":
            self.ask()
        elif do == "timer" and world.timers:
            timer, i, n, *_ = self.draw(world.timers)
            self.feed("timer_fired", timer, i, n)
        elif world.live:
            i = self.draw(sorted(world.live))
            n = world.live[i]
            if do == "ready":
                self.feed("child_ready", i, n)
            elif do == "exit":
                self.exit(i, self.draw(list(REASONS.values())))
            elif do == "say" and self.data.draw(st.booleans()):
                self.feed("child_refused", i, n, "no file", None)
            elif do == "say":
                self.feed("child_exiting", i, n, self.draw(list(REASONS.values())))

    def check(self):
        world = self.world
        assert len(world.finished) <= 1
        if not self.core.is_dynamic:
            busy = [
                i for i in world.live
                if world.state(i) in (fx.State.STARTING, fx.State.STOPPING)
            ]  # fmt: skip
            allowed = 1 if self.core.stopping is None else 2
            assert len(busy) <= allowed, "a static supervisor does one thing at a time"
        for child in self.core.children.values():
            assert child.has_process == (child.id in world.live)

    def live_on(self, steps):
        for _ in range(steps):
            self.step()
            self.check()
            if self.world.finished:
                return


@examples(300)
@given(st.data(), supervisors())
def test_in_any_sequence_of_events_repeats_change_nothing_and_each_request_is_answered_once(
    data, supervisor
):
    life = Life(data, supervisor)
    life.live_on(data.draw(st.integers(0, 40)))
    world = life.world
    world.do(life.core.stop(SHUTDOWN))
    world.obey()
    for _ in range(3):
        life.ask()
    assert sorted(one.asker for one in world.answers) == list(range(1, life.asked + 1))
    assert not world.live
    assert len(world.finished) == 1
    world.do(life.core.stop(SHUTDOWN))
    assert len(world.finished) == 1, "Finished comes once"


@examples(200)
@given(st.data(), supervisors())
def test_a_supervisor_whose_children_stop_when_asked_always_settles(data, supervisor):
    life = Life(data, supervisor)
    life.live_on(data.draw(st.integers(0, 40)))
    world = life.world
    for _ in range(20):
        world.obey()
        for timer, i, n, *_ in [one for one in world.timers if one[0] is fx.Timer.BACKOFF]:
            world.do(life.core.timer_fired(timer, i, n))
    states = {child.state for child in life.core.children.values()}
    assert states <= {fx.State.UP, fx.State.DOWN}, "nobody waits for something that never comes"
    assert life.core.is_ready or life.core.stopping is not None
    assert bool(world.finished) is (life.core.stopping is not None)


@examples(200)
@given(st.data(), supervisors(STATIC))
def test_a_stop_ends_every_child_in_reverse_start_order(data, supervisor):
    life = Life(data, supervisor)
    life.live_on(data.draw(st.integers(0, 30)))
    world = life.world
    world.obey()
    if world.finished:
        return
    world.take_trace()
    alive = [i for i in life.core.children if i in world.live]
    world.do(life.core.stop(SHUTDOWN))
    world.obey()
    assert [i for _, i in world.take_trace()] == list(reversed(alive))
    assert world.finished == [SHUTDOWN]
    assert not world.live


# ── single laws ──────────────────────────────────────────────────────────────


@given(st.data(), st.sampled_from(STATIC[1:]), st.integers(1, 6))
def test_children_start_in_order_each_when_all_before_it_are_ready(data, strategy, size):
    ids = "abcdef"[:size]
    world = World(SupervisorSpec(strategy, tuple(spec(i) for i in ids), intensity=1000))
    for _ in range(30):
        (starting,) = (i for i in world.live if world.state(i) is fx.State.STARTING)
        up = [i for i in ids if i in world.live and world.state(i) is fx.State.UP]
        assert "".join(up) == ids[: ids.index(starting)]
        if up and data.draw(st.booleans(), label="one that is ready crashes"):
            world.exit(data.draw(st.sampled_from(up)))
            while world.asked:
                world.exit(min(world.asked), SHUTDOWN)
        else:
            world.ready(starting)
        if world.all_ready:
            assert set(world.live) == set(ids)
            return


@given(st.data(), st.sampled_from(STATIC), st.integers(1, 6))
def test_a_restart_stops_in_reverse_order_and_then_starts_in_order(data, strategy, size):
    ids = "abcdef"[:size]
    children = tuple(spec(i, backoff=data.draw(st.sampled_from([None, Backoff()]))) for i in ids)
    world = World(SupervisorSpec(strategy, children, intensity=100))
    world.ready_all()
    for _ in range(data.draw(st.integers(1, 5))):
        world.take_trace()
        victim = data.draw(st.sampled_from(ids))
        world.exit(victim)
        world.obey()
        if world.core.children[victim].spec.backoff:
            world.fire(fx.Timer.BACKOFF, victim)
            world.obey()
        at = ids.index(victim)
        group = {STATIC[0]: victim, STATIC[1]: ids, STATIC[2]: ids[at:]}[strategy]
        stops = [("stop", i) for i in reversed(group) if i != victim]
        assert world.take_trace() == stops + [("start", i) for i in group]


@examples(200)
@given(st.data(), st.sampled_from(STATIC), st.integers(0, 4))
def test_it_gives_up_exactly_when_the_window_exceeds_the_intensity(data, strategy, most):
    world = World(SupervisorSpec(strategy, (spec("a"), spec("b")), intensity=most, period_s=10.0))
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
            assert world.finished[0].kind is ExitKind.ABNORMAL
            assert f"more than {most} restarts" in world.finished[0].text
            break


@given(st.data(), st.integers(0, 3))
def test_a_dynamic_child_is_given_up_alone_exactly_when_its_own_window_is_full(data, most):
    world = World(
        SupervisorSpec(
            Strategy.SIMPLE_ONE_FOR_ONE, template=spec("t"), intensity=most, period_s=10.0
        )
    )
    times = {"a": [], "b": []}
    for i in times:
        world.do(world.core.start_child(i, None, i))
        world.ready(i)
    for gap in data.draw(st.lists(st.floats(0, 8), max_size=12)):
        world.now += gap
        if not world.live:
            break
        i = data.draw(st.sampled_from(sorted(world.live)))
        times[i].append(world.now)
        world.exit(i)
        world.obey()
        recent = [one for one in times[i] if world.now - one <= 10.0]
        assert (i not in world.live) is (len(recent) > most)
    assert world.finished == []


@examples(200)
@given(st.data(), st.sampled_from(AutoShutdown), st.integers(1, 5))
def test_auto_shutdown_comes_with_the_right_end_and_with_no_other(data, auto, size):
    children = []
    for i in "abcde"[:size]:
        restart = data.draw(st.sampled_from(Restart))
        may = auto is not AutoShutdown.NEVER and restart is not Restart.PERMANENT
        is_significant = may and data.draw(st.booleans())
        children.append(spec(i, restart=restart, significant=is_significant))
    world = World(
        SupervisorSpec(Strategy.ONE_FOR_ONE, tuple(children), intensity=1000, auto_shutdown=auto)
    )
    world.ready_all()
    significant = {one.id for one in children if one.significant}
    for _ in range(data.draw(st.integers(0, 15))):
        i = data.draw(st.sampled_from("abcde"[:size]))
        ended_by_itself = False
        if data.draw(st.booleans()):
            world.do(world.core.terminate_child(i, "asker"))
        elif data.draw(st.booleans()):
            world.do(world.core.restart_child(i, "asker"))
        elif i in world.live:
            world.exit(i, data.draw(st.sampled_from(list(REASONS.values()))))
            ended_by_itself = i not in world.live
        world.obey()
        left = significant & set(world.live)
        ends = ended_by_itself and i in significant and (
            auto is AutoShutdown.ANY_SIGNIFICANT
            or (auto is AutoShutdown.ALL_SIGNIFICANT and not left)
        )  # fmt: skip
        assert [one.kind for one in world.finished] == ([ExitKind.SHUTDOWN] if ends else [])
        if ends:
            assert not world.live
            return


@given(st.integers(0, 3), st.integers(0, 3))
def test_failure_escalates_level_by_level_each_time_an_intensity_is_exceeded(inner, outer):
    above = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec("sub"),), intensity=outer))
    crashes = 0
    while not above.finished:
        below = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (spec("leaf"),), intensity=inner))
        below.ready("leaf")
        above.ready("sub")
        while not below.finished:
            crashes += 1
            below.exit("leaf", KILLED)
            below.obey()
        above.exit("sub", below.finished[0])
    assert crashes == (inner + 1) * (outer + 1)
    assert above.finished[0].kind is ExitKind.ABNORMAL
    assert "sub last: abnormal: more than" in above.finished[0].text
    assert "leaf last: killed" in above.finished[0].text


# ── pauses ───────────────────────────────────────────────────────────────────

BACKOFFS = st.builds(
    Backoff,
    first_s=st.floats(0.001, 1.0),
    factor=st.floats(1.0, 10.0),
    max_s=st.floats(1.0, 100.0),
    jitter=st.floats(0.0, 0.999),
)


@given(BACKOFFS, st.integers(1, 2000))
def test_jitter_keeps_a_pause_within_its_bounds(backoff, restarts):
    delay_s = backoff.delay_s(restarts)
    low_s, high_s = backoff.range_s(restarts)
    assert 0.0 < low_s <= delay_s <= high_s <= backoff.max_s
    assert low_s == pytest.approx(delay_s * (1 - backoff.jitter))
    assert high_s == pytest.approx(min(backoff.max_s, delay_s * (1 + backoff.jitter)))
    assert backoff.delay_s(restarts + 1) >= delay_s


@given(BACKOFFS, st.lists(st.floats(0, 8), min_size=1, max_size=8))
def test_a_pause_grows_with_the_restarts_that_the_window_holds(backoff, gaps):
    child = spec("a", backoff=backoff)
    world = World(SupervisorSpec(Strategy.ONE_FOR_ONE, (child,), intensity=100, period_s=10.0))
    world.ready("a")
    times = []
    for gap in gaps:
        world.now += gap
        times.append(world.now)
        world.exit("a", ExitReason(ExitKind.ABNORMAL))
        *_, seconds, spread_s = world.timers[-1]
        low_s, high_s = backoff.range_s(sum(1 for one in times if world.now - one <= 10.0))
        assert (seconds, seconds + spread_s) == (low_s, pytest.approx(high_s))
        world.fire(fx.Timer.BACKOFF, "a")
        world.ready("a")
