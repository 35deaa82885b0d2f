"""Which rows come into RAM for queued requests: the two decisions and the accounts, as values."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.prefetch_policy import (
    REQUESTS_AHEAD,
    TEXT_BYTES,
    Candidate,
    next_to_prefetch,
)
from actors.kv.restore_cost import Piece, Rates
from actors.storage.prefetch import Prefetch, Waiting, rows_to_prefetch
from cache.answers import BlockRef
from cache.policy import RestorePolicy

pytestmark = pytest.mark.pure

SIZE, BLOCK = 1000, 64
MANY = 1 << 30
A, B = Waiting("model:m#1", "a"), Waiting("model:m#1", "b")


def row(number: int, tier: str = "disk", at: int = 0, size: int = SIZE) -> BlockRef:
    return BlockRef(b"%d" % number, tier, None, size, at * BLOCK, BLOCK, BLOCK)


def rows(*numbers: int, tier: str = "disk") -> list[BlockRef]:
    return [row(number, tier, at) for at, number in enumerate(numbers)]


def keys(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


# ── which requests ──────────────────────────────────────────────────────────────────────────────


def tokens(*, asked: bool = False, held: bool = False) -> Candidate:
    return Candidate(0, asked, held)


def text(n_bytes: int) -> Candidate:
    return Candidate(n_bytes, is_asked=False, is_held=False)


def test_each_request_at_the_front_of_the_queue_is_asked_for_once() -> None:
    assert next_to_prefetch([]) == []
    assert next_to_prefetch([tokens(), tokens(asked=True), tokens()]) == [0, 2]
    assert next_to_prefetch([tokens()] * 50) == list(range(REQUESTS_AHEAD))


def test_a_prompt_that_waits_for_its_parent_is_left_out_until_it_is_known() -> None:
    assert next_to_prefetch([tokens(held=True), tokens()]) == [1]


def test_so_much_text_is_made_tokens_between_two_steps_and_no_more() -> None:
    half = TEXT_BYTES // 2
    assert next_to_prefetch([text(half), text(half), text(half), tokens()]) == [0, 1, 3]
    assert next_to_prefetch([text(TEXT_BYTES + 1), text(1)]) == [1]


# ── which rows ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("found", "how", "wanted"),
    [
        (rows(1, 2, 3), {}, (1, 2, 3)),
        (rows(1, 2, 3, tier="ram"), {}, ()),
        ([*rows(1, tier="ram"), row(2, "disk", 1)], {}, (2,)),
        (rows(1, 2, 3), {"n_live": BLOCK}, (2, 3)),
        (rows(1, 2, 3), {"n_live": BLOCK + 1}, (2, 3)),
        (rows(1, 2, 3), {"n_live": 3 * BLOCK}, ()),
        (rows(1, 2), {"slower": ("disk",)}, ()),
        ([row(1, "ram_file"), row(2, "disk", 1)], {"slower": ("disk",)}, (1,)),
        # A memory that cannot be cut: rows of 1,000 bytes are links here.
        ([row(1, size=9000), row(2, at=1, size=9000), row(3, at=2)], {"links_upto": SIZE}, (2,)),
        (rows(1, 2), {"links_upto": SIZE}, ()),
    ],
)
def test_rows_that_are_needed_and_worth_it(
    found: Sequence[BlockRef], how: dict[str, object], wanted: tuple[int, ...]
) -> None:
    options = {"n_live": 0, "slower": (), "links_upto": 0} | how
    chosen = rows_to_prefetch(found, **options)  # type: ignore[arg-type]
    assert [one.key for one in chosen] == keys(*wanted)


def test_a_state_of_which_only_the_beginning_matches_is_of_no_use() -> None:
    whole = row(1, size=9000)
    part = BlockRef(b"2", "disk", None, 9000, BLOCK, 10, BLOCK)
    assert rows_to_prefetch([whole, part], n_live=0, slower=(), links_upto=SIZE) == [whole]


def test_a_tier_is_left_out_when_it_is_known_to_be_slower_than_computing() -> None:
    rates = Rates(RestorePolicy(min_samples=2, min_saved_s=0.005))
    assert rates.slower_tiers(64, SIZE) == ()
    for _ in range(2):
        rates.record_step(64, 0.064)  # a millisecond a token
        rates.record_restore([Piece("disk", SIZE, 64)], 0.1)
        rates.record_restore([Piece("ram", SIZE, 64)], 0.001)
    assert rates.slower_tiers(64, SIZE) == ("disk",)
    assert rates.slower_tiers(1, SIZE // 64) == ()  # the difference is too small


# ── the accounts ────────────────────────────────────────────────────────────────────────────────


def test_rows_of_the_oldest_request_come_first_and_shared_ones_once() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1, 2))
    ahead.begin(B, rows(1, 3))
    assert ahead.take(2, MANY) == keys(1, 2)
    ahead.copied(b"1")
    assert ahead.take(2, MANY) == keys(3)
    assert ahead.take(2, MANY) == []


def test_so_many_bytes_are_taken_at_once_but_at_least_a_row() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1, 2, 3, 4))
    assert ahead.take(9, 2 * SIZE + 1) == keys(1, 2)
    assert ahead.take(9, SIZE - 1) == keys(3)


def test_no_more_is_held_than_the_share_and_an_end_makes_room() -> None:
    ahead = Prefetch(2 * SIZE)
    ahead.begin(A, rows(1, 2, 3))
    ahead.begin(B, rows(1))
    assert ahead.take(9, MANY) == keys(1, 2)
    ahead.copied(b"1")
    ahead.copied(b"2")
    assert ahead.take(9, MANY) == []
    ahead.end(A)
    assert ahead.take(9, MANY) == keys(1)


def test_a_row_is_used_when_a_request_finds_it_in_ram_and_unused_otherwise() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1, 2, 3))
    assert ahead.take(3, MANY) == keys(1, 2, 3)
    ahead.copied(b"1")
    ahead.copied(b"2")
    ahead.found([row(1, "ram"), row(2, "disk", 1), row(3, "disk", 2)])  # 2 was evicted meanwhile
    ahead.end(A)
    ahead.copied(b"3")
    status = ahead.status()
    assert (status["prefetched"], status["prefetched_bytes"]) == (3, 3 * SIZE)
    assert (status["prefetched_used"], status["prefetched_unused"]) == (1, 2)
    assert status["prefetched_unused_bytes"] == 2 * SIZE
    assert (status["being_prefetched"], status["prefetching_requests"]) == (0, 0)


def test_what_is_refused_ends_the_copies_for_its_request_only() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1, 2, 3))
    ahead.begin(B, rows(4))
    assert ahead.take(1, MANY) == keys(1)
    ahead.refused(b"1")
    assert ahead.status()["not_prefetched"] == 3
    assert ahead.take(9, MANY) == keys(4)


def named(rows: Sequence[BlockRef]) -> list[bytes]:
    return [one.key for one in rows]


def test_rows_without_room_are_named_once_to_be_read_ahead_and_no_more_than_fit() -> None:
    ahead = Prefetch(2 * SIZE)
    ahead.begin(A, rows(1, 2, 3, 4, 5))
    assert ahead.take(2, MANY) == keys(1, 2)
    assert named(ahead.take_unfitting(1)) == keys(3)
    assert named(ahead.take_unfitting(9)) == keys(4)
    assert named(ahead.take_unfitting(9)) == []
    ahead.end(A)
    ahead.begin(B, rows(6, 7, 8))
    assert ahead.take(9, MANY) == keys(6, 7)
    ahead.refused(b"6")
    assert named(ahead.take_unfitting(9)) == keys(8)
    assert ahead.status()["read_ahead"] == 3


def test_while_there_is_room_nothing_is_only_read_ahead() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1, 2, 3))
    ahead.take(1, MANY)
    assert ahead.take_unfitting(9) == []


def test_rows_that_a_scan_finds_later_are_added() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1))
    assert ahead.take(9, MANY) == keys(1)
    ahead.begin(A, rows(1, 2))
    assert ahead.take(9, MANY) == keys(2)


def test_copies_that_were_lost_with_their_process_are_made_again() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1, 2))
    assert ahead.take(2, MANY) == keys(1, 2)
    ahead.copied(b"1")
    ahead.copier_ended()
    assert ahead.n_copying == 0
    assert ahead.take(2, MANY) == keys(2)


def test_rows_that_were_copied_before_their_process_ended_are_given_back_too() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1, 2))
    ahead.take(2, MANY)
    ahead.copied(b"1")
    ahead.copier_ended()
    ahead.begin(A, rows(2))  # a scan finds what is still missing
    ahead.end(A)
    assert ahead.held_bytes == 0
    assert ahead.status()["prefetched_unused"] == 1


def test_the_end_of_a_process_ends_its_queue_and_no_other() -> None:
    ahead = Prefetch(100 * SIZE)
    ahead.begin(A, rows(1))
    ahead.begin(Waiting("model:n#1", "a"), rows(2))
    ahead.holder_exited("model:m#1")
    assert ahead.take(9, MANY) == keys(2)


ENDS = ["take", "copied", "refused", "needless", "died"]
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("begin"),
            st.integers(0, 3),
            st.lists(st.integers(0, 9), max_size=6, unique=True),
        ),
        st.tuples(st.just("end"), st.integers(0, 3), st.just([])),
        st.tuples(st.sampled_from(ENDS), st.integers(0, 9), st.just([])),
    ),
    max_size=60,
)


@given(EVENTS)
def test_the_accounts_hold_after_any_events(events: list[tuple[str, int, list[int]]]) -> None:
    ahead = Prefetch(4 * SIZE)
    copying: set[bytes] = set()
    n_copied = 0
    for what, number, numbers in events:
        who = Waiting("m", str(number))
        key = b"%d" % number
        match what:
            case "begin":
                ahead.begin(who, rows(*numbers))
            case "end":
                ahead.end(who)
            case "take":
                taken = ahead.take(number, MANY)
                assert len(taken) <= number
                assert not copying & set(taken), "no row is copied twice at once"
                copying |= set(taken)
            case "died":
                ahead.copier_ended()
                copying.clear()
            case _ if key in copying:
                copying.remove(key)
                n_copied += what == "copied"
                getattr(ahead, what)(key)
        status = ahead.status()
        assert status["being_prefetched"] == len(copying)
        assert status["prefetched"] == n_copied
        assert 0 <= ahead.held_bytes <= 4 * SIZE
    for number in range(4):
        ahead.end(Waiting("m", str(number)))
    for key in copying:
        ahead.copied(key)
    status = ahead.status()
    assert ahead.held_bytes == 0
    assert status["prefetched"] == status["prefetched_unused"]  # nothing was looked up
