"""Save policy and the value of a row."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

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


# What is saved, by event. ``live`` tokens are in the context, ``saved`` of them are stored already;
# rows are start+tokens. Blocks have 64 tokens, a tail needs 8, a prompt 32.
TABLE = """
event       options                     live  saved  rows
prompt      -                            150      0  0+64 64+64
prompt      save_finish_tail=False       150      0  0+64 64+64 128+22
prompt      save_finish_tail=False       135      0  0+64 64+64
prompt      save_finish_tail=False       136      0  0+64 64+64 128+8
prompt      -                            150    128
prompt      -                             31      0
prompt      save_finish_tail=False        32      0  0+32
generating  -                            191    128
generating  -                            192    128  128+64
generating  -                            192    150  128+64
generating  -                            330    128  128+64 192+64 256+64
generating  save_while_generating=False  192    128
finish      -                            150    150
finish      -                            150    128  128+22
finish      -                            150    140  128+22
finish      -                            192    150  128+64
finish      save_finish_tail=False       150    100  64+64
evicted     -                            150    128  128+22
"""
EVENTS = {
    "prompt": (policy.at_prompt_end, SaveReason.COLD),
    "generating": (policy.while_generating, SaveReason.CONTINUED),
    "finish": (policy.at_finish, SaveReason.FINISH),
    "evicted": (partial(policy.at_finish, reason=SaveReason.EVICT), SaveReason.EVICT),
}
CASES = [line.split(maxsplit=4) for line in TABLE.strip().splitlines()[1:]]


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{case[0]}-{case[1]}-{case[2]}-{case[3]}" for case in CASES]
)
def test_what_is_saved_follows_the_table(case):
    event, options, live, saved, *rows = case
    spans_of, reason = EVENTS[event]
    name, _, value = options.partition("=")
    changed = POLICY if options == "-" else replace(POLICY, **{name: value == "True"})
    expected = [
        policy.Span(*map(int, row.split("+")), reason) for row in (rows[0].split() if rows else ())
    ]
    assert spans_of(changed, int(live), int(saved)) == expected


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
