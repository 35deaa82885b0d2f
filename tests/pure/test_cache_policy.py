"""Save policy and the value of a row."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import eviction, policy
from cache.errors import InvalidPolicy
from cache.rows import SaveReason

pytestmark = pytest.mark.pure

POLICY = policy.SavePolicy()


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_tokens": 0},
        {"block_tokens": 5000},
        {"min_tokens": -1},
        {"min_tail_tokens": 0},
        {"tail_delay_ms": -1},
        {"tail_delay_ms": 30_001},
        {"tail_disk_delay_s": 3601},
    ],
)
def test_nonsense_stops_the_boot(wrong):
    with pytest.raises(InvalidPolicy):
        policy.SavePolicy(**wrong)


def test_a_prompt_is_saved_as_full_blocks_and_its_tail_with_the_reply():
    blocks = [policy.Span(0, 64, SaveReason.COLD), policy.Span(64, 64, SaveReason.COLD)]
    assert policy.at_prompt_end(POLICY, 150, 0) == blocks
    alone = policy.SavePolicy(save_finish_tail=False)
    assert policy.at_prompt_end(alone, 150, 0) == [*blocks, policy.Span(128, 22, SaveReason.COLD)]


def test_a_short_prompt_and_a_short_tail_are_not_worth_a_row():
    assert policy.at_prompt_end(POLICY, 31, 0) == []
    assert policy.at_prompt_end(POLICY, 135, 0) == policy.at_prompt_end(POLICY, 128, 0)


def test_only_completed_blocks_are_saved_while_generating():
    assert policy.while_generating(POLICY, 191, 128) == []
    assert policy.while_generating(POLICY, 192, 128) == [policy.Span(128, 64, SaveReason.CONTINUED)]
    off = policy.SavePolicy(save_while_generating=False)
    assert policy.while_generating(off, 192, 128) == []


def test_a_tail_that_grew_into_a_block_is_saved_as_the_block():
    assert policy.while_generating(POLICY, 192, 150) == [policy.Span(128, 64, SaveReason.CONTINUED)]


def test_nothing_is_saved_twice_at_the_finish():
    assert policy.at_finish(POLICY, 150, 150) == []
    assert policy.at_finish(POLICY, 150, 128) == [policy.Span(128, 22, SaveReason.FINISH)]
    evicted = policy.at_finish(POLICY, 150, 128, SaveReason.EVICT)
    assert evicted == [policy.Span(128, 22, SaveReason.EVICT)]


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_spans_continue_what_is_stored_and_end_within_the_sequence(live, saved):
    saved = min(saved, live)
    spans = policy.at_finish(POLICY, live, saved)
    at = saved // 64 * 64
    for span in spans:
        assert span.start == at
        assert 1 <= span.n_tokens <= 64
        at += span.n_tokens
    assert at <= live
    if live >= POLICY.min_tokens and spans:
        assert live - at < POLICY.min_tail_tokens


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20).map(sorted), st.floats(1e6, 2e6))
def test_heat_is_the_log_of_exponentially_decayed_hits(times, now):
    half_life = 1000.0
    heat = eviction.first_heat(times[0], half_life)
    for at in times[1:]:
        heat = eviction.touched(heat, at, half_life)
    expected = math.log2(sum(2 ** ((at - times[-1]) / half_life) for at in times))
    assert heat - times[-1] / half_life == pytest.approx(expected, abs=1e-6)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_use_never_makes_a_row_worth_less(first, later):
    heat = eviction.first_heat(first)
    assert eviction.touched(heat, later) >= heat


def test_heat_survives_decades_without_overflow():
    heat = eviction.touched(eviction.first_heat(0.0), 1e12)
    assert math.isfinite(heat)


def test_value_is_per_byte_and_counts_what_computing_again_costs():
    assert eviction.rank(0, 0, 64, 1000) > eviction.rank(0, 0, 64, 2000)
    assert eviction.rank(0, 100_000, 64, 1000) > eviction.rank(0, 0, 64, 1000)
    assert eviction.rank(1, 0, 64, 1000) == pytest.approx(eviction.rank(0, 0, 64, 500))
