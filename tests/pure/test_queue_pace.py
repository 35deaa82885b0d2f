"""When to try again: how fast a full queue moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from actors.messages.queue_pace import LEAST_S, MOST_S, WEIGHT, QueuePace

pytestmark = pytest.mark.pure


def ended_every(interval_s: float, n: int, began: float = 0.0) -> tuple[QueuePace, float]:
    """A pace after so many ends, and the time of the last one."""
    pace = QueuePace()
    pace.arrived(began)
    for number in range(1, n + 1):
        pace.ended(began + number * interval_s, is_busy=True)
    return pace, began + n * interval_s


def test_nothing_known_is_a_second() -> None:
    pace = QueuePace()
    assert pace.retry_after_s(1000.0) == LEAST_S == 1.0
    pace.arrived(1000.0)
    assert pace.retry_after_s(1000.0) == LEAST_S
    assert pace.facts(1000.0) == m.FailureFacts(retry_after_s=1.0)


@pytest.mark.parametrize("interval_s", [1.5, 7.0, 59.0])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_an_even_pace_is_its_interval(interval_s: float, n: int) -> None:
    pace, now = ended_every(interval_s, n)
    assert pace.retry_after_s(now) == pytest.approx(interval_s)


def test_a_new_pace_is_learned_and_the_old_one_decays() -> None:
    pace, now = ended_every(2.0, 50)
    estimates = []
    for _ in range(30):
        now += 10.0
        pace.ended(now, is_busy=True)
        estimates.append(pace.retry_after_s(now))
    assert estimates == sorted(estimates)
    assert estimates[0] == pytest.approx(2.0 + WEIGHT * 8.0)
    assert estimates[-1] == pytest.approx(10.0, rel=0.05)


def test_time_without_requests_is_no_part_of_it() -> None:
    pace, now = ended_every(3.0, 10)
    pace.ended(now + 3.0, is_busy=False)
    assert pace.retry_after_s(now + 5000.0) == pytest.approx(3.0)
    pace.arrived(now + 5000.0)
    pace.arrived(now + 5002.0)  # beside the first
    pace.ended(now + 5003.0, is_busy=False)
    assert pace.retry_after_s(now + 5003.0) == pytest.approx(3.0)


def test_requests_that_end_together_count_together() -> None:
    pace = QueuePace()
    pace.arrived(0.0)
    for burst in range(1, 41):
        for _ in range(4):
            pace.ended(burst * 20.0, is_busy=True)
    assert 3.0 < pace.retry_after_s(800.0) < 8.0  # one in five seconds


def test_a_queue_that_stands_still_is_slower_than_it_was() -> None:
    pace, now = ended_every(2.0, 10)
    assert pace.retry_after_s(now + 1.9) == pytest.approx(2.0)
    assert pace.retry_after_s(now + 30.0) == pytest.approx(30.0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["arrived", "busy", "idle"]), st.floats(0.0, 1e6)), max_size=40
    )
)
def test_it_is_always_between_a_second_and_a_minute(events: list[tuple[str, float]]) -> None:
    pace, now = QueuePace(), 0.0
    for what, passed_s in events:
        now += passed_s
        if what == "arrived":
            pace.arrived(now)
        else:
            pace.ended(now, is_busy=what == "busy")
        assert LEAST_S <= pace.retry_after_s(now) <= MOST_S
