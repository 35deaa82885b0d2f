"""Laws of step planning and admission."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.batch_plan import (
    ROWS_ALONE,
    ROWS_ALONE_BESIDE,
    Budget,
    Demand,
    Guessable,
    Slice,
    admit,
    plan_step,
)

pytestmark = pytest.mark.pure


def reads(n_pending: int) -> Demand:
    return Demand(n_pending)


def generates() -> Demand:
    return Demand(1, is_generating=True)


demands = st.lists(
    st.one_of(st.builds(reads, st.integers(1, 2000)), st.builds(generates)), max_size=20
)
any_demands = st.lists(
    st.builds(
        Demand,
        n_pending=st.integers(1, 700),
        is_generating=st.just(False),
        must_be_alone=st.booleans(),
        stop_after=st.none() | st.integers(1, 800),
        may_guess=st.booleans(),
    )
    | st.builds(
        Demand,
        n_pending=st.just(1),
        is_generating=st.just(True),
        must_be_alone=st.just(False),
        stop_after=st.none() | st.integers(1, 800),
        may_guess=st.booleans(),
    ),
    max_size=12,
)


@given(demands, st.integers(1, 512), st.integers(1, 512))
def test_a_step_never_exceeds_the_batch_nor_a_request(
    wanted: list[Demand], n_batch: int, share: int
) -> None:
    slices = plan_step(wanted, Budget(n_batch, share))
    assert sum(s.n_tokens for s in slices) <= n_batch
    assert len({s.index for s in slices}) == len(slices)
    for s in slices:
        line = wanted[s.index]
        assert 1 <= s.n_tokens <= line.n_pending
        assert s.reaches_end == (s.n_tokens == line.n_pending)


@given(demands, st.integers(32, 512), st.integers(1, 512))
def test_generating_requests_are_never_left_out(
    wanted: list[Demand], n_batch: int, share: int
) -> None:
    slices = plan_step(wanted, Budget(n_batch, share))
    planned = {s.index for s in slices}
    assert all(i in planned for i, line in enumerate(wanted) if line.is_generating)


@given(demands, st.integers(32, 512), st.integers(1, 512))
def test_something_runs_whenever_something_can(
    wanted: list[Demand], n_batch: int, share: int
) -> None:
    assert bool(plan_step(wanted, Budget(n_batch, share))) == bool(wanted)


def test_a_long_prompt_gets_only_its_share_beside_a_stream() -> None:
    slices = plan_step([reads(5000), generates()], Budget(512, 128))
    assert [(s.index, s.n_tokens) for s in slices] == [(1, 1), (0, 128)]


def test_prompts_get_more_of_a_step_where_there_are_more_of_them_than_streams() -> None:
    def prompt_tokens(n_prompts: int, n_streams: int) -> int:
        wanted = [reads(5000)] * n_prompts + [generates()] * n_streams
        planned = plan_step(wanted, Budget(512, 100))
        return sum(s.n_tokens for s in planned if s.index < n_prompts)

    assert [prompt_tokens(1, n) for n in (1, 2, 7)] == [100, 100, 100]
    assert [prompt_tokens(n, 1) for n in (2, 3, 7)] == [200, 300, 511]
    assert prompt_tokens(5, 2) == 200


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it() -> None:
    slices = plan_step([reads(5000), reads(40)], Budget(512, 128))
    assert [(s.index, s.n_tokens, s.reaches_end) for s in slices] == [
        (0, 472, False),
        (1, 40, True),
    ]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=20), st.integers(1, 512))
def test_prompts_use_all_of_the_room_and_share_it(pending: list[int], room: int) -> None:
    wanted = [reads(n) for n in pending]
    slices = {s.index: s.n_tokens for s in plan_step(wanted, Budget(room, 512))}
    assert sum(slices.values()) == min(room, sum(pending))
    assert slices.get(0, 0) >= min(pending[0], room // 2)
    granted = [slices.get(i, 0) for i in range(1, len(pending))]
    for got, asked in zip(granted, pending[1:], strict=True):
        # One that could use more is at most a token behind another one.
        assert got == asked or got >= max(granted) - 1


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 8192))
def test_an_admitted_request_fits_the_context(n_prompt: int, max_tokens: int, n_ctx: int) -> None:
    admission = admit(n_prompt, max_tokens, n_ctx)
    if admission.fits:
        assert 1 <= admission.max_tokens <= max_tokens
        assert admission.n_cells == n_prompt + admission.max_tokens <= n_ctx
    else:
        assert n_prompt >= n_ctx


# ── what else a request may demand ───────────────────────────────────────────────────────────────

STREAM, PROMPT = Demand(1, is_generating=True), Demand(500)
AGAIN = Demand(500, must_be_alone=True)


@pytest.mark.parametrize(
    ("wanted", "planned"),
    [
        # A stop ends a slice, and what it leaves is not given to another request.
        ([Demand(500, stop_after=64)], [Slice(0, 64, False)]),
        ([Demand(500, stop_after=500)], [Slice(0, 500, True)]),
        ([Demand(100, stop_after=99), PROMPT], [Slice(0, 99, False), Slice(1, 412, False)]),
        # Rows that must be alone have a step of their own, a short one where others wait.
        ([AGAIN], [Slice(0, ROWS_ALONE, False)]),
        ([PROMPT, AGAIN], [Slice(1, ROWS_ALONE_BESIDE, False)]),
        ([STREAM, PROMPT, AGAIN], [Slice(2, ROWS_ALONE_BESIDE, False)]),
        ([STREAM] * 2 + [AGAIN] * 2, [Slice(2, 2, False), Slice(3, 2, False)]),
        ([STREAM, PROMPT], [Slice(0, 1, True), Slice(1, 128, False)]),
        ([], []),
    ],
)  # fmt: skip
def test_stops_and_rows_alone(wanted: list[Demand], planned: list[Slice]) -> None:
    assert plan_step(wanted, Budget(512, 128)) == planned


@given(any_demands, st.integers(64, 512), st.integers(1, 128), st.booleans())
def test_no_slice_passes_its_stop_and_rows_that_must_be_alone_are_with_such_rows_only(
    wanted: list[Demand], n_batch: int, share: int, after_alone: bool
) -> None:
    slices = plan_step(wanted, Budget(n_batch, share), after_alone=after_alone)
    assert sum(s.n_tokens for s in slices) <= n_batch
    for s in slices:
        stop = wanted[s.index].stop_after
        assert stop is None or s.n_tokens <= stop
        assert s.reaches_end == (s.n_tokens == wanted[s.index].n_pending)
    assert bool(slices) == bool(wanted)
    kinds = {wanted[s.index].must_be_alone for s in slices}
    assert len(kinds) <= 1
    if kinds == {True}:
        assert sum(s.n_tokens for s in slices) <= ROWS_ALONE
        assert not any(s.n_guesses for s in slices)


@given(any_demands, st.integers(64, 512), st.integers(1, 128))
def test_rows_that_must_be_alone_and_all_others_take_turns(
    wanted: list[Demand], n_batch: int, share: int
) -> None:
    budget = Budget(n_batch, share)
    present = {one.must_be_alone for one in wanted}
    turns = [
        {wanted[s.index].must_be_alone for s in plan_step(wanted, budget, after_alone=after)}
        for after in (False, True)
    ]
    assert turns == ([{True}, {False}] if len(present) == 2 else [present, present])
    if True in present:
        first = plan_step(wanted, budget)
        assert len(present) == 1 or sum(s.n_tokens for s in first) <= ROWS_ALONE_BESIDE


# ── guesses ──────────────────────────────────────────────────────────────────────────────────────


@given(any_demands, st.integers(64, 512), st.integers(1, 128), st.data())
def test_guesses_are_extra_and_only_behind_the_last_known_token(
    wanted: list[Demand], n_batch: int, share: int, data: st.DataObject
) -> None:
    budget, asked, seen = Budget(n_batch, share), dict[int, int](), list[Guessable]()

    def choose(step: Guessable) -> list[int]:
        seen.append(step)
        n = len(step.indexes)
        counts = data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
        asked.update(zip(step.indexes, counts, strict=True))
        return counts

    plan = plan_step(wanted, budget)
    slices = plan_step(wanted, budget, choose)
    assert [(s.index, s.n_tokens, s.reaches_end) for s in slices] == [
        (s.index, s.n_tokens, s.reaches_end) for s in plan
    ]
    is_alone = any(wanted[s.index].must_be_alone for s in plan)
    ends = tuple(s.index for s in plan if s.reaches_end and wanted[s.index].may_guess)
    ends = () if is_alone else ends
    assert [one.indexes for one in seen] == ([ends] if ends else [])
    for step in seen:
        assert step.rows == sum(s.n_tokens for s in plan)
        assert step.n_sampled == sum(s.reaches_end for s in plan)
        assert sum(s.n_guesses for s in slices) == min(step.room, sum(asked.values()))
        assert step.room <= share
    assert sum(s.n_tokens + s.n_guesses for s in slices) <= n_batch
    assert all(s.n_guesses <= asked.get(s.index, 0) for s in slices)
