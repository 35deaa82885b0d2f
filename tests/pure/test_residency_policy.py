"""Which models leave memory for others: examples, and laws for any models, limits and wishes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.residency.policy import (
    Idle,
    Limits,
    Plan,
    Resident,
    Why,
    Wish,
    decide,
    expired,
)
from tests.support.examples import examples

pytestmark = pytest.mark.pure


def resident(model: str, size: int = 10, used: float = 0.0, **facts: bool) -> Resident:
    return Resident(model, size, size, used, **facts)


def wish(model: str, size: int = 10, since: float = 0.0) -> Wish:
    return Wish(model, size, size, since)


def left(plan: Plan) -> list[str]:
    return [one.model for one in plan.leaves]


# ── examples ────────────────────────────────────────────────────────────────────────────────────


def test_what_fits_is_loaded_at_once() -> None:
    plan = decide([resident("a")], [wish("b"), wish("c")], Limits(max_bytes=30))
    assert plan == Plan(loads=("b", "c"))


def test_the_least_recently_used_idle_model_leaves() -> None:
    there = [resident("new", used=3), resident("old", used=1), resident("busy", is_busy=True)]
    plan = decide(there, [wish("x")], Limits(max_models=3))
    assert (plan.loads, left(plan)) == ((), ["old"])


def test_no_more_leave_than_must() -> None:
    there = [resident("small", 1, used=1), resident("big", 20, used=2)]
    assert left(decide(there, [wish("x", 20)], Limits(max_bytes=30))) == ["big"]


def test_a_busy_model_leaves_only_where_the_idle_ones_are_not_enough() -> None:
    there = [resident("busy", used=1, is_busy=True), resident("idle", used=2)]
    assert left(decide(there, [wish("x", 10)], Limits(max_bytes=20))) == ["idle"]
    plan = decide(there, [wish("x", 20)], Limits(max_bytes=20))
    assert sorted(left(plan)) == ["busy", "idle"]


def test_one_that_is_leaving_already_is_enough() -> None:
    there = [resident("a", is_leaving=True), resident("b", used=1)]
    assert decide(there, [wish("x")], Limits(max_models=2)) == Plan()


def test_a_later_wish_never_goes_first() -> None:
    there = [resident("a", 10, is_busy=True)]
    plan = decide(there, [wish("small", 1, since=2), wish("big", 20, since=1)], Limits(None, 25))
    assert (plan.loads, left(plan)) == ((), ["a"])


def test_nothing_leaves_while_what_is_being_loaded_is_in_the_way() -> None:
    there = [resident("a", used=1), resident("b", 20, is_loading=True, is_busy=True)]
    assert decide(there, [wish("x", 20)], Limits(max_bytes=30)) == Plan()


def test_pinned_models_are_named_where_they_leave_no_room() -> None:
    there = [resident("kept", 10, is_pinned=True), resident("a", 10)]
    (refusal,) = decide(there, [wish("x", 15)], Limits(max_bytes=20)).refused
    assert (refusal.why, refusal.pinned) == (Why.PINNED, ("kept",))


def test_what_would_not_fit_alone_is_refused_and_others_go_on() -> None:
    plan = decide([], [wish("huge", 50, since=1), wish("x", 5, since=2)], Limits(room=20))
    assert plan.loads == ("x",)
    (refusal,) = plan.refused
    assert (refusal.wish.model, refusal.why) == ("huge", Why.TOO_BIG)


def test_idle_models_above_a_limit_leave_without_a_wish() -> None:
    there = [resident("a", used=1), resident("b", used=2), resident("c", used=0, is_busy=True)]
    assert left(decide(there, [], Limits(max_models=2))) == ["a"]
    assert left(decide(there, [], Limits(max_models=2, room=0))) == ["a"]


def test_who_sleeps_now_and_when_the_next_one_does() -> None:
    ones = [Idle("a", 1.0, 5.0), Idle("b", 4.0, 5.0), Idle("c", 0.0, None), Idle("d", 0.0, -1.0)]
    assert expired(ones, 7.0) == (["a"], 9.0)
    assert expired(ones, 9.0) == (["a", "b"], None)


# ── laws ────────────────────────────────────────────────────────────────────────────────────────

sizes = st.integers(0, 20)
names = st.lists(st.sampled_from("abcdefghij"), max_size=8, unique=True)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Resident], list[Wish], Limits]:
    """Loaded models that are within the limits, wishes for others, and limits."""
    limits = Limits(
        draw(st.none() | st.integers(1, 5)),
        draw(st.none() | st.integers(0, 60)),
        draw(st.none() | st.integers(0, 60)),
    )
    there: list[Resident] = []
    wishes: list[Wish] = []
    for name in draw(names):
        size, host = draw(sizes), draw(sizes)
        if draw(st.booleans()):
            wishes.append(Wish(name, size, host, draw(st.floats(0, 9))))
            continue
        is_loading = draw(st.booleans())
        one = Resident(
            name, size, host, draw(st.floats(0, 9)), draw(st.booleans()), draw(st.booleans()),
            is_loading, not is_loading and draw(st.booleans()),
        )  # fmt: skip
        if limits.hold([*there, one]):
            there.append(one)
    return there, wishes, limits


@given(worlds())
@examples(300)
def test_laws_of_one_step(world: tuple[list[Resident], list[Wish], Limits]) -> None:
    there, wishes, limits = world
    plan = decide(there, wishes, limits)
    by_name = {one.model: one for one in wishes}
    # What is loaded fits beside all that is there, also beside what leaves.
    loaded = [Resident(one, by_name[one].n_bytes, by_name[one].host_bytes) for one in plan.loads]
    assert not plan.loads or limits.hold([*there, *loaded])
    for one in plan.leaves:
        assert one in there
        assert not any((one.is_pinned, one.is_loading, one.is_leaving))
    if any(one.is_busy for one in plan.leaves):  # only if all idle ones together are not enough
        assert wishes
        idle = {one.model for one in there if not one.is_busy and not one.is_pinned}
        stays = [one for one in there if one.model not in idle and not one.is_leaving]
        first = min(
            (one for one in wishes if one.model not in plan.loads
             and one not in [r.wish for r in plan.refused]),
            key=lambda one: (one.since, one.model),
        )  # fmt: skip
        new = Resident(first.model, first.n_bytes, first.host_bytes)
        loading_idle = [one for one in there if one.model in idle and one.is_loading]
        assert not limits.hold([*stays, *loading_idle, *loaded, new])
    refused = {one.wish.model for one in plan.refused}
    assert refused.isdisjoint(plan.loads)
    for one in plan.refused:
        pinned = [other for other in [*there] if other.is_pinned]
        new = Resident(one.wish.model, one.wish.n_bytes, one.wish.host_bytes)
        assert not limits.hold([*pinned, new])


@given(worlds(), st.randoms(use_true_random=False))
@examples(300)
def test_every_wish_is_loaded_or_refused_and_no_limit_is_exceeded(
    world: tuple[list[Resident], list[Wish], Limits], random: object
) -> None:
    """By following the plans, in any order in which loads and drains end."""
    there, wishes, limits = world
    ended: list[str] = []
    for _ in range(200):
        plan = decide(there, wishes, limits)
        by_name = {one.model: one for one in wishes}
        for refusal in plan.refused:
            ended.append(refusal.wish.model)
        for model in plan.loads:
            one = by_name[model]
            there.append(
                Resident(model, one.n_bytes, one.host_bytes, 10.0, is_loading=True, is_busy=True)
            )
            ended.append(model)
        leaves = {one.model for one in plan.leaves}
        there = [replace(one, is_leaving=True) if one.model in leaves else one for one in there]
        assert limits.hold(there)
        wishes = [one for one in wishes if one.model not in ended]
        if not wishes:
            return
        moving = [one for one in there if one.is_leaving or one.is_loading]
        assert moving, "nothing moves, and a wish waits"
        done = moving[random.randrange(len(moving))]  # type: ignore[attr-defined]
        there.remove(done)
        if done.is_loading:
            there.append(replace(done, is_loading=False))
    raise AssertionError("the wishes do not end")
