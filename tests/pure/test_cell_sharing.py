"""Laws of sharing cells: counting them, making room, keeping idle sequences, choosing a source."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.cell_sharing import (
    Candidate,
    best_source,
    cells_in_use,
    is_worn_out,
    make_room,
    to_drop,
    worst_first,
)
from actors.kv.namespace import PLAIN, Namespace
from actors.kv.timeline import Stretch, Stretches, between
from cache import tokens
from cache.errors import InvalidPolicy
from cache.policy import LivePolicy

pytestmark = pytest.mark.pure


@dataclass
class Kept:
    stretches: Stretches
    packed_tokens: bytes = b""
    is_stored: bool = True
    used_at: float = 0.0
    steps: int = 0
    is_pinned: bool = False
    namespace: Namespace = PLAIN


def alone(origin: int, n: int) -> Stretches:
    return (Stretch(origin, 0, n),)


@st.composite
def sharing(draw: st.DrawFn) -> tuple[list[Stretches], list[list[int]]]:
    """Sequences made as the engine makes them, and which cell each position really lies in."""
    held: list[Stretches] = []
    cells: list[list[int]] = []
    fresh = 0
    for origin in range(draw(st.integers(1, 6))):
        stretches: Stretches = ()
        mine: list[int] = []
        if held and draw(st.booleans()):
            source = draw(st.integers(0, len(held) - 1))
            n = draw(st.integers(0, len(cells[source])))
            stretches, mine = between(held[source], 0, n), cells[source][:n]
        end = len(mine) + draw(st.integers(0, 30))
        fresh += end - len(mine)
        mine = [*mine, *range(fresh - (end - len(mine)), fresh)]
        start = sum(one.end - one.start for one in stretches)
        held.append((*stretches, Stretch(origin, start, end)))
        cells.append(mine)
    return held, cells


@given(sharing(), st.data())
def test_shared_cells_are_counted_once(
    made: tuple[list[Stretches], list[list[int]]], data: st.DataObject
) -> None:
    held, cells = made
    assert cells_in_use(held) == len({cell for mine in cells for cell in mine})
    chosen = data.draw(st.sets(st.sampled_from(range(len(held)))))
    really = len({cell for at in chosen for cell in cells[at]})
    assert cells_in_use(held[at] for at in chosen) >= really  # a gap is counted, never forgotten


@given(sharing(), st.integers(0, 100), st.integers(0, 100))
def test_a_part_of_a_sequence_is_described_by_its_stretches(
    made: tuple[list[Stretches], list[list[int]]], start: int, end: int
) -> None:
    for stretches, cells in zip(*made, strict=True):
        part = between(stretches, start, end)
        assert cells_in_use([part]) == len(cells[start:end])
        assert all(start <= one.start < one.end <= end for one in part)


@given(
    st.lists(st.integers(1, 60), max_size=5),
    st.lists(st.integers(1, 60), max_size=5),
    st.integers(1, 80),
    st.integers(0, 2),
    st.integers(10, 200),
)
def test_room_is_made_exactly_where_it_can_be(
    running: list[int], idle: list[int], wanted: int, free: int, n_cells: int
) -> None:
    busy = [alone(index, n) for index, n in enumerate(running)]
    spare = [alone(100 + index, n) for index, n in enumerate(idle)]
    gone = make_room(alone(999, wanted), busy, spare, n_cells=n_cells, free_sequences=free)
    could = sum(running) + wanted <= n_cells and free + len(idle) > 0
    assert (gone is not None) == could
    if gone is not None:
        kept = [n for index, n in enumerate(idle) if index not in gone]
        assert sum(running) + wanted + sum(kept) <= n_cells
        assert free + len(gone) > 0
        assert gone == list(range(len(gone)))  # in the given order, and no more than needed
        if gone:
            fewer = [*kept, idle[gone[-1]]]
            assert free + len(gone) - 1 == 0 or sum(running) + wanted + sum(fewer) > n_cells


def test_the_source_goes_last_and_its_shared_cells_need_no_room() -> None:
    idle = [alone(1, 50), alone(2, 30)]
    wanted = (*between(idle[0], 0, 40), Stretch(9, 40, 60))
    assert make_room(wanted, [], idle, n_cells=100, free_sequences=1, source=0) == []
    assert make_room(wanted, [], idle, n_cells=80, free_sequences=1, source=0) == [1]
    assert make_room(wanted, [], idle, n_cells=60, free_sequences=1, source=0) == [1, 0]
    assert make_room(wanted, [], idle, n_cells=59, free_sequences=1, source=0) is None
    assert make_room(wanted, [], idle[:1], n_cells=100, free_sequences=0, source=0) == [0]


def test_what_costs_least_to_get_back_goes_first() -> None:
    idle = [
        Kept((), is_stored=False, used_at=1.0),
        Kept((), used_at=3.0),
        Kept((), used_at=2.0),
    ]
    assert worst_first(idle) == [2, 1, 0]


def test_idle_sequences_wear_out_by_steps_beside_them_and_by_time() -> None:
    policy = LivePolicy(idle_steps_stored=10, idle_steps_unstored=1000, idle_s=60)
    assert not is_worn_out(Kept((), steps=9), policy, 0.0)
    assert is_worn_out(Kept((), steps=10), policy, 0.0)
    assert not is_worn_out(Kept((), steps=999, is_stored=False), policy, 0.0)
    assert is_worn_out(Kept((), is_stored=False), policy, 60.0)


def test_a_sequence_that_another_contains_is_not_kept() -> None:
    short, long, other = (tokens.pack(ids) for ids in ([1, 2], [1, 2, 3], [1, 9]))
    idle = [Kept(alone(at, 3), text) for at, text in enumerate([short, long, other, long])]
    assert sorted(to_drop(idle, [], LivePolicy(), 100, 0.0)) == [0, 1]
    for one, salt in zip(idle, (b"a", b"b", b"a", b""), strict=True):
        one.namespace = Namespace(salt=salt)
    assert to_drop(idle, [], LivePolicy(max_idle_share=1.0), 100, 0.0) == []


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.integers(0, 9)), max_size=8),
    st.integers(0, 4),
    st.floats(0, 1),
)
def test_idle_sequences_stay_within_the_policy(
    made: list[tuple[int, bool, int]], most: int, share: float
) -> None:
    policy = LivePolicy(max_idle=most, max_idle_share=share)
    idle = [
        Kept(alone(at, n), tokens.pack([at] * n), stored, float(age))
        for at, (n, stored, age) in enumerate(made)
    ]
    gone = to_drop(idle, [alone(50, 20)], policy, 100, 10.0)
    kept = [one for at, one in enumerate(idle) if at not in gone]
    assert len(set(gone)) == len(gone)
    assert len(kept) <= most
    assert cells_in_use(one.stretches for one in kept) <= share * 100


def test_cells_that_running_requests_share_do_not_count_as_idle() -> None:
    idle = [Kept(alone(1, 50), tokens.pack([1] * 50))]
    policy = LivePolicy(max_idle_share=0.1)
    assert to_drop(idle, [], policy, 100, 0.0) == [0]
    assert to_drop(idle, [between(idle[0].stretches, 0, 45)], policy, 100, 0.0) == []


def test_the_longest_common_prefix_wins_then_what_is_ready() -> None:
    longest = [Candidate(20, 20), Candidate(90, 0), Candidate(90, 40), Candidate(90, 40)]
    assert best_source(longest, min_tokens=16) == 2
    assert best_source([Candidate(15, 15)], min_tokens=16) is None
    assert best_source([], min_tokens=1) is None


@pytest.mark.parametrize(
    "wrong",
    [{"max_idle": -1}, {"max_idle_share": 1.5}, {"min_tokens": 0}, {"idle_s": -1}],
)
def test_a_policy_that_makes_no_sense_stops_the_boot(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidPolicy, match=next(iter(wrong))):
        LivePolicy(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_what_belongs_to_a_session_goes_last_and_is_not_worn_out_by_steps(
    pinned: list[bool],
) -> None:
    policy = LivePolicy(idle_steps_stored=1, idle_steps_unstored=1, idle_s=10.0)
    kept = [
        Kept((Stretch(at, 0, 50),), bytes(200), True, float(at), steps=5, is_pinned=pin)
        for at, pin in enumerate(pinned)
    ]
    order = [pinned[at] for at in worst_first(kept)]
    assert order == sorted(order)
    for one in kept:
        assert is_worn_out(one, policy, now=one.used_at) == (not one.is_pinned)
        assert is_worn_out(one, policy, now=one.used_at + 10.0)
