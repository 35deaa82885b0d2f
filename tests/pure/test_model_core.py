"""Laws of step planning and admission."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.batch_plan import add_guesses, admit, plan_step

pytestmark = pytest.mark.pure


@dataclass
class Line:
    n_pending: int
    is_generating: bool


lines = st.lists(
    st.one_of(
        st.builds(Line, st.integers(1, 2000), st.just(False)),
        st.just(Line(1, True)),
    ),
    max_size=20,
)


@given(lines, st.integers(1, 512), st.integers(1, 512))
def test_a_step_never_exceeds_the_batch_nor_a_request(
    timelines: list[Line], n_batch: int, share: int
) -> None:
    slices = plan_step(timelines, n_batch=n_batch, prefill_share=share)
    assert sum(s.n_tokens for s in slices) <= n_batch
    assert len({s.index for s in slices}) == len(slices)
    for s in slices:
        line = timelines[s.index]
        assert 1 <= s.n_tokens <= line.n_pending
        assert s.reaches_end == (s.n_tokens == line.n_pending)


@given(lines, st.integers(32, 512), st.integers(1, 512))
def test_generating_requests_are_never_left_out(
    timelines: list[Line], n_batch: int, share: int
) -> None:
    slices = plan_step(timelines, n_batch=n_batch, prefill_share=share)
    planned = {s.index for s in slices}
    assert all(i in planned for i, line in enumerate(timelines) if line.is_generating)


@given(lines, st.integers(32, 512), st.integers(1, 512))
def test_something_runs_whenever_something_can(
    timelines: list[Line], n_batch: int, share: int
) -> None:
    assert bool(plan_step(timelines, n_batch=n_batch, prefill_share=share)) == bool(timelines)


def test_a_long_prompt_gets_only_its_share_beside_a_stream() -> None:
    slices = plan_step([Line(5000, False), Line(1, True)], n_batch=512, prefill_share=128)
    assert [(s.index, s.n_tokens) for s in slices] == [(1, 1), (0, 128)]


def test_prompts_get_more_of_a_step_where_more_wait_than_listen() -> None:
    def prompt_tokens(n_prompts: int, n_streams: int) -> int:
        lines = [Line(5000, False)] * n_prompts + [Line(1, True)] * n_streams
        planned = plan_step(lines, n_batch=512, prefill_share=100)
        return sum(s.n_tokens for s in planned if s.index < n_prompts)

    assert [prompt_tokens(1, n) for n in (1, 2, 7)] == [100, 100, 100]
    assert [prompt_tokens(n, 1) for n in (2, 3, 7)] == [200, 300, 511]
    assert prompt_tokens(5, 2) == 200


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it() -> None:
    slices = plan_step([Line(5000, False), Line(40, False)], n_batch=512, prefill_share=128)
    assert [(s.index, s.n_tokens, s.reaches_end) for s in slices] == [
        (0, 472, False),
        (1, 40, True),
    ]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=20), st.integers(1, 512))
def test_prompts_use_all_of_the_room_and_share_it(pending: list[int], room: int) -> None:
    lines = [Line(n, False) for n in pending]
    slices = {s.index: s.n_tokens for s in plan_step(lines, n_batch=room, prefill_share=512)}
    assert sum(slices.values()) == min(room, sum(pending))
    assert slices.get(0, 0) >= min(pending[0], room // 2)
    granted = [slices.get(i, 0) for i in range(1, len(pending))]
    for got, wanted in zip(granted, pending[1:], strict=True):
        # Nobody who still wants something is more than a token behind another one.
        assert got == wanted or got >= max(granted) - 1


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 8192))
def test_an_admitted_request_fits_the_context(n_prompt: int, max_tokens: int, n_ctx: int) -> None:
    admission = admit(n_prompt, max_tokens, n_ctx)
    if admission.fits:
        assert 1 <= admission.max_tokens <= max_tokens
        assert admission.n_cells == n_prompt + admission.max_tokens <= n_ctx
    else:
        assert n_prompt >= n_ctx


@given(lines, st.integers(1, 512), st.integers(0, 128), st.data())
def test_guesses_are_extra_and_only_behind_the_last_known_token(
    timelines: list[Line], n_batch: int, most: int, data: st.DataObject
) -> None:
    plan = plan_step(timelines, n_batch=n_batch, prefill_share=128)
    sizes = st.lists(st.integers(0, 40), min_size=len(timelines), max_size=len(timelines))
    wanted = data.draw(sizes)
    room = min(most, n_batch - sum(s.n_tokens for s in plan))
    slices = add_guesses(plan, wanted, room=room)
    assert sum(s.n_tokens + s.n_guesses for s in slices) <= n_batch
    assert sum(s.n_guesses for s in slices) <= room
    for before, after in zip(plan, slices, strict=True):
        assert (after.index, after.n_tokens, after.reaches_end) == (
            before.index, before.n_tokens, before.reaches_end
        )  # fmt: skip
        assert 0 <= after.n_guesses <= (wanted[after.index] if after.reaches_end else 0)
    asked = sum(wanted[s.index] for s in plan if s.reaches_end)
    assert sum(s.n_guesses for s in slices) == min(room, asked)
