"""Restart policy: the whole truth table, and the window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.exits import ExitKind, reason_of_exit_code
from supervision.restart import RESTARTS_ON, RestartWindow, affected, ends_supervisor
from supervision.spec import AutoShutdown, Backoff, Restart, Strategy

pytestmark = pytest.mark.pure

N, S, A, K = ExitKind.NORMAL, ExitKind.SHUTDOWN, ExitKind.ABNORMAL, ExitKind.KILLED


@pytest.mark.parametrize(
    ("restart", "kind", "restarts"),
    [
        pytest.param(Restart.PERMANENT, N, True, id="permanent_normal"),
        pytest.param(Restart.PERMANENT, S, True, id="permanent_shutdown"),
        pytest.param(Restart.PERMANENT, A, True, id="permanent_abnormal"),
        pytest.param(Restart.PERMANENT, K, True, id="permanent_killed"),
        pytest.param(Restart.TRANSIENT, N, False, id="transient_normal"),
        pytest.param(Restart.TRANSIENT, S, False, id="transient_shutdown"),
        pytest.param(Restart.TRANSIENT, A, True, id="transient_abnormal"),
        pytest.param(Restart.TRANSIENT, K, True, id="transient_killed"),
        pytest.param(Restart.TEMPORARY, N, False, id="temporary_normal"),
        pytest.param(Restart.TEMPORARY, S, False, id="temporary_shutdown"),
        pytest.param(Restart.TEMPORARY, A, False, id="temporary_abnormal"),
        pytest.param(Restart.TEMPORARY, K, False, id="temporary_killed"),
    ],
)
def test_whether_a_child_restarts(restart, kind, restarts):
    assert (kind in RESTARTS_ON[restart]) is restarts


@pytest.mark.parametrize(
    ("strategy", "failed", "group"),
    [
        (Strategy.ONE_FOR_ONE, "b", "b"),
        (Strategy.SIMPLE_ONE_FOR_ONE, "b", "b"),
        (Strategy.REST_FOR_ONE, "a", "abc"),
        (Strategy.REST_FOR_ONE, "b", "bc"),
        (Strategy.REST_FOR_ONE, "c", "c"),
        (Strategy.ONE_FOR_ALL, "b", "abc"),
    ],
)
def test_children_affected_by_a_failed_one(strategy, failed, group):
    assert affected(strategy, ("a", "b", "c"), failed) == tuple(group)


@pytest.mark.parametrize(
    ("auto_shutdown", "others_active", "ends"),
    [
        (AutoShutdown.NEVER, False, False),
        (AutoShutdown.NEVER, True, False),
        (AutoShutdown.ANY_SIGNIFICANT, False, True),
        (AutoShutdown.ANY_SIGNIFICANT, True, True),
        (AutoShutdown.ALL_SIGNIFICANT, False, True),
        (AutoShutdown.ALL_SIGNIFICANT, True, False),
    ],
)
def test_when_the_end_of_a_significant_child_ends_the_supervisor(
    auto_shutdown, others_active, ends
):
    assert ends_supervisor(auto_shutdown, others_active) is ends


@given(
    st.lists(st.floats(0, 10), max_size=30),
    st.integers(0, 5),
    st.floats(0.5, 20),
)
def test_the_window_gives_up_exactly_when_it_holds_more_than_the_intensity(gaps, most, period):
    window = RestartWindow(most, period)
    now, times = 0.0, []
    for gap in gaps:
        now += gap
        times.append(now)
        recent = [one for one in times if now - one <= period]
        assert window.record(now) is (len(recent) <= most)
        assert window.count(now) == len(recent)


def test_backoff_grows_and_stops_growing():
    pause = Backoff(first_s=0.5, factor=2.0, max_s=3.0)
    assert Backoff(factor=10**6).delay_s(10**6) == 10.0
    assert [pause.delay_s(n) for n in (1, 2, 3, 4, 500)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_jitter_is_a_fifth_either_way_unless_told_otherwise_and_never_exceeds_the_longest_pause():
    pause = Backoff(first_s=1.0, factor=2.0, max_s=4.0)
    assert [pause.range_s(n) for n in (1, 2, 3)] == [(0.8, 1.2), (1.6, 2.4), (3.2, 4.0)]
    steady = Backoff(first_s=1.0, jitter=0.0)
    assert steady.range_s(2) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (-9, K, "SIGKILL"),
        (-11, K, "SIGSEGV"),
        (-200, K, "signal 200"),
        (0, A, "status 0"),
        (7, A, "status 7"),
        (None, A, "vanished"),
    ],
)
def test_an_exit_without_a_notice_gets_its_reason_from_the_status(code, kind, word):
    reason = reason_of_exit_code(code)
    assert reason.kind is kind
    assert word in reason.text
