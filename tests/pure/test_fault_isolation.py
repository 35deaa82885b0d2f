"""Finding the one request that breaks a step that many share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.fault_isolation import FaultIsolation

pytestmark = pytest.mark.pure


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9)), st.integers(1, 10))
def test_exactly_the_requests_that_break_a_step_fail(
    present: set[int], guilty: set[int], at_once: int
) -> None:
    """However many break a step, and however few fit into one: they fail, no other one does."""
    isolation, failed, steps = FaultIsolation[int](), set[int](), 0
    left, done = sorted(present), set[int]()
    while left:
        steps += 1
        assert steps < 100, "a request is never computed"
        chosen = isolation.choose(left)[:at_once]
        if guilty.intersection(chosen):
            blamed = isolation.suspect(chosen)
            failed.update(blamed)
            left = [one for one in left if one not in blamed]
        else:
            isolation.clear(chosen)
            done.update(chosen)
            left = [one for one in left if one not in chosen]
    assert failed == guilty & present
    assert done == present - guilty
    assert len(isolation) == 0


def test_a_suspect_that_cannot_run_now_delays_no_other() -> None:
    isolation = FaultIsolation[str]()
    isolation.suspect(["a", "b"])
    assert isolation.choose(["b", "c"]) == ["b"]
    assert isolation.choose(["c", "d"]) == ["c", "d"]
    isolation.forget("a")
    isolation.forget("b")
    assert isolation.choose(["b", "c"]) == ["b", "c"]


def test_logits_that_are_not_finite_twice_in_a_row_are_caused_by_the_memory() -> None:
    isolation = FaultIsolation[str]()
    assert not isolation.found_bad_numbers()
    isolation.found_good_numbers()
    assert not isolation.found_bad_numbers()
    assert isolation.found_bad_numbers()
    assert not isolation.found_bad_numbers()
