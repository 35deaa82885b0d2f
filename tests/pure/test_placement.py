"""Where a request that starts gets its sequence: tables, and laws."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.cell_sharing import cells_in_use
from actors.engine.placement import Arrival, Placement, Room, find_source, place, place_uncut
from actors.kv.namespace import PLAIN, Namespace
from actors.kv.timeline import Stretch, Stretches, between
from cache import tokens
from cache.keys import BLOCK_TOKENS

pytestmark = pytest.mark.pure

TEXT = list(range(1000))
MIN = 16


@dataclass
class Live:
    """A sequence of the context, in cells of its own."""

    packed_tokens: bytes
    stretches: Stretches
    n_kv: int
    n_shareable: int
    session: str | None = None
    used_at: float = 0.0
    steps: int = 0
    namespace: Namespace = PLAIN
    is_stored: bool = True

    @property
    def is_pinned(self) -> bool:
        return self.session is not None


def holds(n: int, origin: int, *, other_from: int | None = None, **facts: object) -> Live:
    """One that holds the first ``n`` tokens of the text; others from ``other_from`` on."""
    ids = TEXT[:n] if other_from is None else [*TEXT[:other_from], *range(2000, 2000 + n)][:n]
    live = Live(tokens.pack(ids), (Stretch(origin, 0, n),), n, n)
    for name, value in facts.items():
        setattr(live, name, value)
    return live


def reads(n: int, origin: int, *, done: int) -> Live:
    """A request that reads the first ``n`` tokens, of which ``done`` are in the context."""
    return holds(n, origin, n_kv=done)


def wants(n: int, n_cells: int | None = None, session: str | None = None) -> Arrival:
    return Arrival(tokens.pack(TEXT[:n]), n, n - 1, n_cells or n + 10, session)


def room(running: tuple[Live, ...] = (), *, cells: int = 1000, free: int = 4) -> Room:
    return Room(tuple(one.stretches for one in running), cells, free, origin=99)


@pytest.mark.parametrize(
    ("idle", "running", "lookup", "found"),
    [
        # (shared with, positions, idle sequence that is taken over)
        ([], [], False, None),
        ([holds(10, 1)], [], False, None),  # too short to be worth it
        ([holds(50, 1)], [], False, (0, 50)),
        ([holds(50, 1), holds(80, 2)], [], False, (1, 80)),
        ([holds(200, 1)], [], False, (0, 99)),  # the last token is decoded for its logits
        ([holds(50, 1, other_from=30)], [], False, (0, 30)),
        ([holds(50, 1)], [reads(90, 2, done=20)], False, (1, 90)),  # it comes as it is read
        ([holds(50, 1)], [reads(90, 2, done=20)], True, (1, 20)),  # the cache may be faster
        ([holds(50, 1)], [reads(100, 2, done=20)], True, (1, 99)),  # it can add nothing
        ([holds(60, 1), holds(60, 2, session="s")], [], False, (0, 60)),  # its own session first
    ],
)
def test_the_longest_prefix_is_shared(
    idle: list[Live], running: list[Live], lookup: bool, found: tuple[int, int] | None
) -> None:
    session = "s" if any(one.session for one in idle) else None
    placed = place(
        wants(100, session=session), idle, running, room(tuple(running)),
        min_tokens=MIN, lookup=lookup,
    )  # fmt: skip
    assert placed is not None
    assert (placed.dropped, placed.takes) == ((), None)
    if found is None:
        assert (placed.source, placed.upto) == (None, 0)
    else:
        assert placed.source is not None
        assert (placed.source.index, placed.upto) == found


@pytest.mark.parametrize(
    ("cells", "free", "idle", "dropped", "takes"),
    [
        (1000, 4, [holds(50, 1), holds(60, 2, other_from=0)], (), None),
        (1000, 0, [holds(50, 1), holds(60, 2, other_from=0)], (1,), None),  # not what it shares
        (1000, 0, [holds(50, 1)], (), 0),  # unless there is no other
        (180, 4, [holds(50, 1), holds(60, 2, other_from=0)], (1,), None),
        # The spare block for a restore is made room for where that is possible, and only then.
        (110 + BLOCK_TOKENS, 4, [holds(50, 1), holds(9, 2, other_from=0)], (1,), None),
        (110, 4, [holds(50, 1)], (), None),
        (109, 4, [holds(50, 1)], None, None),
        (1000, 0, [], None, None),
        # Stored before unstored, long unused before recently used.
        (1000, 0, [holds(20, n, other_from=0, used_at=9.0 - n) for n in range(3)], (2,), None),
        (1000, 0, [
            holds(20, 1, other_from=0), holds(20, 2, other_from=0, is_stored=True, used_at=1.0),
        ], (0,), None),
        (1000, 0, [
            holds(20, 1, other_from=0, is_stored=False), holds(20, 2, other_from=0, used_at=1.0),
        ], (1,), None),
    ],
)  # fmt: skip
def test_room_is_made_of_idle_sequences(
    cells: int,
    free: int,
    idle: list[Live],
    dropped: tuple[int, ...] | None,
    takes: int | None,
) -> None:
    space = room(cells=cells, free=free)
    placed = place(wants(100), idle, [], space, min_tokens=MIN, lookup=False)
    if dropped is None:
        assert placed is None
    else:
        assert placed is not None
        assert (placed.dropped, placed.takes) == (dropped, takes)


def test_memory_that_cannot_be_cut_is_continued_by_its_session_only() -> None:
    own = holds(50, 1, session="s")
    assert place_uncut(wants(100), [own], room()) == Placement(())
    assert place_uncut(wants(100, session="t"), [own], room()) == Placement(())
    continued = Placement((), takes=0, upto=50, is_continuation=True)
    assert place_uncut(wants(100, session="s"), [own], room()) == continued
    assert place_uncut(wants(100, session="s"), [own], room(free=0)) == continued
    assert place_uncut(wants(50, session="s"), [own], room()) == Placement(())  # nothing is left
    diverges = holds(50, 1, other_from=40, session="s")
    assert place_uncut(wants(100, session="s"), [diverges], room()) == Placement(())
    other = holds(50, 2, other_from=0)
    small = room(cells=110 + BLOCK_TOKENS)
    needs_room = Placement((0,), takes=1, upto=50, is_continuation=True)
    assert place_uncut(wants(100, session="s"), [other, own], small) == needs_room
    assert place_uncut(wants(100, session="s"), [own], room(cells=109)) is None


def test_nothing_is_shared_with_another_namespace() -> None:
    mine, theirs = Namespace(salt=b"a"), Namespace(salt=b"b")
    live = [holds(50, 1, namespace=one, session="s") for one in (mine, theirs, PLAIN)]
    reader = holds(90, 4, n_kv=20, namespace=theirs)
    for namespace, shared in ((mine, (0, 50)), (theirs, (3, 90)), (PLAIN, (2, 50))):
        arrival = replace(wants(100, session="s"), namespace=namespace)
        placed = place(arrival, live, [reader], room((reader,)), min_tokens=MIN, lookup=False)
        assert placed is not None
        assert placed.source is not None
        assert (placed.source.index, placed.upto) == shared
        uncut = place_uncut(arrival, live, room())
        assert uncut is not None
        assert uncut.takes == [mine, theirs, PLAIN].index(namespace)
    other = replace(wants(100, session="s"), namespace=Namespace(salt=b"c"))
    assert place(other, live, [reader], room((reader,)), min_tokens=MIN, lookup=False) == (
        Placement(())
    )
    assert place_uncut(other, live, room()) == Placement(())
    assert place_uncut(replace(other, namespace=Namespace(True, b"a")), live, room()) == (
        Placement(())
    )


def test_what_is_known_of_a_source() -> None:
    (whole, longer, part) = holds(100, 1), holds(200, 2), holds(60, 3, other_from=40)
    for holder, common, is_whole, ends in (
        (whole, 99, True, True),
        (longer, 99, True, False),
        (part, 40, False, False),
        (holds(60, 4), 60, False, True),
    ):
        source = find_source(wants(100), [holder], min_tokens=MIN)
        assert source is not None
        assert (source.common, source.is_whole, source.ends) == (common, is_whole, ends)
    over = reads(100, 5, done=30)
    over.n_shareable = 30  # it ended before it had read its prompt
    source = find_source(wants(100), [over], min_tokens=MIN)
    assert source is not None
    assert (source.common, source.ready) == (30, 30)


lives = st.lists(
    st.tuples(st.integers(1, 90), st.integers(0, 90), st.booleans(), st.integers(0, 9)), max_size=5
)


@given(lives, lives, st.integers(60, 400), st.integers(0, 2), st.booleans())
def test_what_is_placed_fits_and_costs_no_more_than_it_must(
    idle_facts: list[tuple[int, int, bool, int]],
    running_facts: list[tuple[int, int, bool, int]],
    cells: int,
    free: int,
    lookup: bool,
) -> None:
    idle = [
        holds(n, at, other_from=other, is_stored=stored, used_at=float(age))
        for at, (n, other, stored, age) in enumerate(idle_facts)
    ]
    running = [
        holds(n, 50 + at, other_from=other) for at, (n, other, _, _) in enumerate(running_facts)
    ]
    arrival, space = wants(80), room(tuple(running), cells=cells, free=free)
    placed = place(arrival, idle, running, space, min_tokens=MIN, lookup=lookup)
    busy = cells_in_use(space.running)
    if placed is None:
        source = find_source(arrival, [*idle, *running], min_tokens=MIN)
        is_running = source is not None and source.index >= len(idle)
        shared_with_running = source.common if source is not None and is_running else 0
        assert free + len(idle) == 0 or busy + arrival.n_cells - shared_with_running > cells
        return
    kept = [one for at, one in enumerate(idle) if at not in placed.dropped and at != placed.takes]
    assert placed.takes not in placed.dropped
    assert len(set(placed.dropped)) == len(placed.dropped)
    shared: Stretches = ()
    if placed.source is not None:
        order = [*idle, *running]  # no sessions here, so in the order in which they were given
        shared = between(order[placed.source.index].stretches, 0, placed.upto)
    mine = (*shared, Stretch(99, placed.upto, arrival.n_cells))
    assert cells_in_use([mine, *space.running, *(one.stretches for one in kept)]) <= cells
    if placed.takes is None:
        assert free + len(placed.dropped) > 0
