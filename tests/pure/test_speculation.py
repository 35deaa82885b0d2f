"""Laws of prompt lookup, of what guesses are worth, and of how many are made."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.speculation_policy import (
    NGRAMS,
    CopyGuesser,
    CopyOdds,
    DraftPace,
    PromptLookup,
    SpeculationPolicy,
    StepCost,
    chances_of,
    share_guesses,
)

pytestmark = pytest.mark.pure

texts = st.lists(st.integers(0, 3), max_size=60)


def looked_up(tokens: Sequence[int]) -> PromptLookup:
    lookup = PromptLookup()
    lookup.extend(tokens)
    return lookup


def longest_repeat(tokens: list[int]) -> int:
    """The longest n-gram at the end that occurs earlier too, of the lengths that are looked up."""
    for n in NGRAMS:
        tail = tokens[-n:]
        if len(tail) == n and any(tokens[at : at + n] == tail for at in range(len(tokens) - n)):
            return n
    return 0


@given(texts)
def test_what_is_expected_followed_the_same_tokens_before(tokens: list[int]) -> None:
    lookup = looked_up(tokens)
    longest = longest_repeat(tokens)
    if not longest:
        assert lookup.expected is None
        assert lookup.guess(5) == []
        return
    assert lookup.agreed >= longest
    tail = tokens[-lookup.agreed :]
    followers = {
        tokens[at + len(tail)]
        for at in range(len(tokens) - len(tail))
        if tokens[at : at + len(tail)] == tail
    }
    assert lookup.expected in followers


def test_the_most_recent_occurrence_counts() -> None:
    assert looked_up([1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3]).expected == 8


def test_a_longer_agreement_beats_a_more_recent_one() -> None:
    assert looked_up([5, 1, 2, 3, 7, 9, 2, 3, 8, 9, 5, 1, 2, 3]).guess(2) == [7, 9]


@given(texts, st.integers(1, 7))
def test_reading_in_pieces_is_reading_at_once(tokens: list[int], size: int) -> None:
    pieces = PromptLookup()
    for at in range(0, len(tokens), size):
        pieces.extend(tokens[at : at + size])
    whole = looked_up(tokens)
    assert (pieces.expected, pieces.agreed) == (whole.expected, whole.agreed)
    assert pieces.guess(9) == whole.guess(9)


@given(texts, st.integers(0, 20), st.integers(0, 20))
def test_fewer_guesses_are_the_first_of_more(tokens: list[int], few: int, more: int) -> None:
    lookup = looked_up(tokens)
    assert lookup.guess(min(few, more)) == lookup.guess(max(few, more))[: min(few, more)]
    if lookup.expected is not None:
        assert len(lookup.guess(few)) == few


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True), st.integers(2, 4))
def test_a_loop_is_guessed_round_and_round(period: list[int], n_times: int) -> None:
    tokens = period * max(n_times, 3)
    expected = list(itertools.islice(itertools.cycle(period), 40))
    assert looked_up([*tokens, *tokens]).guess(40) == expected


@given(texts)
def test_a_guess_that_comes_true_leads_to_the_next_one(tokens: list[int]) -> None:
    lookup = looked_up(tokens)
    if lookup.agreed >= NGRAMS[0]:
        guesses = lookup.guess(6)
        lookup.extend(guesses[:2])
        assert lookup.guess(4) == guesses[2:]


def test_reading_a_prompt_takes_microseconds_a_token() -> None:
    # Counted, not timed: an entry per length and token at most, whatever the text is like.
    lookup = looked_up(random.Random(1).choices(range(4), k=5000))
    assert len(lookup._ends) <= sum(4**n for n in NGRAMS)
    assert len(lookup) == 5000


# ── odds ────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.tuples(st.integers(2, 50), st.booleans()), max_size=100), st.integers(2, 50))
def test_chances_never_grow_along_a_guess(seen: list[tuple[int, bool]], agreed: int) -> None:
    odds = CopyOdds()
    for length, is_right in seen:
        odds.record(length, is_right)
    chances = odds.of(agreed, 20)
    assert len(chances) <= 20
    assert all(0 < chance <= 1 for chance in chances)
    assert chances == sorted(chances, reverse=True)


def test_odds_learn_both_ways() -> None:
    odds = CopyOdds()
    before = odds.of(4, 1)[0]
    for _ in range(30):
        odds.record(4, True)
    assert odds.of(4, 1)[0] > 0.9 > before
    for _ in range(100):
        odds.record(4, False)
    assert odds.of(4, 1)[0] < 0.1


def test_a_request_learns_from_its_reply_and_not_from_its_prompt() -> None:
    prompt = [1, 2, 3, 4, 5] * 20
    copies = CopyGuesser()
    assert not copies.catch_up(prompt, n_prompt=100, limit=60)
    assert copies.catch_up(prompt, n_prompt=100, limit=60)
    fresh = CopyOdds().of(96, 3)
    assert copies.chances(3) == pytest.approx(fresh, rel=0.01)
    assert copies.catch_up([*prompt, 1, 2, 3], n_prompt=100, limit=60)
    assert copies.chances(3)[2] > fresh[2]
    assert copies.guess(2) == [4, 5]
    assert copies.catch_up([*prompt, 1, 2, 3, 9], n_prompt=100, limit=60)
    assert not copies.is_expecting


# ── what a step costs ───────────────────────────────────────────────────────────────────────────


def learned(seconds_of: dict[int, float], n: int = 100) -> StepCost:
    cost = StepCost()
    for _ in range(n):
        for rows, seconds in seconds_of.items():
            cost.record(rows, seconds)
    return cost


def test_costs_are_what_was_seen_and_between() -> None:
    cost = learned({1: 0.02, 4: 0.05, 16: 0.16})
    assert cost.of(4) / cost.of(1) == pytest.approx(2.5, rel=0.05)
    assert cost.of(1) < cost.of(2) < cost.of(3) < cost.of(4) < cost.of(10) < cost.of(16)
    assert cost.of(20) > cost.of(16)


def test_one_outlier_has_no_lasting_effect() -> None:
    cost = learned({1: 0.02, 8: 0.04})
    cost.record(8, 4.0)
    assert cost.of(8) / cost.of(1) < 2.5
    first = learned({1: 0.02})
    first.record(8, 4.0)  # the first step of a size plans its memory
    assert first.of(8) / first.of(1) < 6


def test_what_slows_all_steps_changes_no_ratio() -> None:
    cost = learned({1: 0.02, 8: 0.06})
    for _ in range(200):
        cost.record(8, 0.18)  # the context has grown, and only long steps run
    assert cost.of(8) == pytest.approx(0.18, rel=0.05)
    assert cost.of(1) > 0.03


def test_the_smallest_size_is_kept_to_compare_with() -> None:
    cost = learned({1: 0.02, 8: 0.16}, n=30)
    for _ in range(700):
        cost.record(8, 0.16)
    assert 5 < cost.of(8) / cost.of(1) < 9  # 2.75 is what is guessed of a size never seen


def test_a_size_that_is_not_seen_any_more_is_forgotten() -> None:
    cost = learned({1: 0.02, 2: 0.021, 8: 0.9}, n=3)
    for _ in range(700):
        cost.record(1, 0.02)
        cost.record(2, 0.021)
    assert cost.of(8) < 0.1


@given(
    st.lists(st.tuples(st.integers(1, 600), st.floats(1e-5, 10)), max_size=60), st.integers(1, 600)
)
def test_a_cost_is_always_a_positive_number(seen: list[tuple[int, float]], rows: int) -> None:
    cost = StepCost()
    for at, seconds in seen:
        cost.record(at, seconds)
    assert 0 < cost.of(rows) <= cost.with_guesses(rows, 0) < 1e6


def test_changing_sizes_is_paid_both_ways_and_staying_is_not() -> None:
    cost = StepCost()
    for _ in range(200):
        for rows, seconds in ((1, 0.5), (1, 0.4), (1, 0.4), (4, 0.7), (4, 0.6), (1, 0.5), (1, 0.4)):
            cost.record(rows, seconds)
    assert cost.change == pytest.approx(0.1, rel=0.2)
    assert cost.of(4) / cost.of(1) == pytest.approx(1.5, rel=0.1)
    assert cost.with_guesses(1, 0) == cost.of(1)
    assert cost.with_guesses(1, 3) == cost.of(4) + 2 * cost.change
    cost.record(4, 0.7)
    assert cost.with_guesses(1, 3) == cost.of(4)
    assert cost.with_guesses(1, 0) == cost.of(1) + cost.change


# ── how many guesses ────────────────────────────────────────────────────────────────────────────

odds_lists = st.lists(
    st.lists(st.floats(0.01, 1), max_size=4).map(lambda one: sorted(one, reverse=True)),
    min_size=1,
    max_size=3,
)


@given(odds_lists, st.integers(1, 5), st.integers(0, 9), st.floats(0, 2))
def test_the_number_of_guesses_is_the_best_of_all(
    chances: list[list[float]], said: int, room: int, row_cost: float
) -> None:
    cost, rows = StepCost(row_cost), said
    counts = share_guesses(chances, rows=rows, n_sampled=said, room=room, cost=cost)

    def rate(ns: Sequence[int]) -> float:
        expected = said + sum(sum(one[:n]) for one, n in zip(chances, ns, strict=True))
        return expected / cost.of(rows + sum(ns))

    assert sum(counts) <= room
    assert all(n <= len(one) for n, one in zip(counts, chances, strict=True))
    every = itertools.product(*(range(len(one) + 1) for one in chances))
    best = max(rate(ns) for ns in every if sum(ns) <= room)
    assert rate(counts) == pytest.approx(best)


def test_no_guess_costs_the_others_more_than_it_wins() -> None:
    likely = [chances_of(0.9, 8)]
    assert share_guesses(likely, rows=1, n_sampled=1, room=64, cost=StepCost(0.2)) != [0]
    # A row costs as much here, but it now holds up eight streams.
    assert share_guesses(likely, rows=8, n_sampled=8, room=64, cost=StepCost(1.0)) == [0]


def test_a_small_promise_is_not_worth_it() -> None:
    chances = [[0.11]]
    assert share_guesses(chances, rows=1, n_sampled=1, room=9, cost=StepCost(0.1)) == [1]
    assert share_guesses(
        chances, rows=1, n_sampled=1, room=9, cost=StepCost(0.1), min_gain=0.03
    ) == [0]


# ── drafts ──────────────────────────────────────────────────────────────────────────────────────


def drafted(pace: DraftPace, is_right: bool, n_tokens: int, **how: float) -> list[int]:
    """Lengths of all drafts while so many tokens are generated."""
    said, lengths = 0, []
    options = {"rows": 1, "draft_step": 0.1, "cost": StepCost(0.05)} | how
    while said < n_tokens:
        n = pace.length(said, policy=SpeculationPolicy(), **options)  # type: ignore[arg-type]
        lengths.append(n)
        accepted = n if is_right else 0
        if n:
            pace.record(min(n, accepted + 1), accepted)
        said += accepted + 1
    return lengths


def test_drafts_grow_while_they_are_right() -> None:
    lengths = drafted(DraftPace(), True, 300)
    assert lengths[-1] > lengths[0] > 0
    assert lengths[-1] >= 10


def test_drafts_that_are_wrong_stop_and_are_tried_again_now_and_then() -> None:
    pace = DraftPace()
    drafted(pace, False, 100)
    later = drafted(DraftPace(pace.right, pace.seen), False, 2000)
    assert 1 <= sum(later) <= 0.03 * 2000
    assert set(later) == {0, 1}


def test_a_draft_model_as_slow_as_the_model_itself_is_left_alone() -> None:
    lengths = drafted(DraftPace(), True, 1000, draft_step=1.0)
    assert sum(lengths) <= 60
