"""Which stored rows are restored: tables, and laws."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.kv.restore_cost import Piece
from actors.kv.restore_plan import RestorePlan, plan_restore
from cache.answers import BlockRef, Miss, MissReason

pytestmark = pytest.mark.pure

B = 64
MISS = Miss(MissReason.DIVERGES, 200)


def all_of(pieces: Sequence[Piece]) -> int:
    return len(pieces)


def first(n: int):  # type: ignore[no-untyped-def]
    return lambda pieces: min(n, len(pieces))


def rows(n_tokens: int) -> list[BlockRef]:
    """The stored rows of so many tokens: blocks, and perhaps a tail."""
    return [
        BlockRef(b"k%d" % at, "ram", at, 4096, at, min(B, n_tokens - at), min(B, n_tokens - at))
        for at in range(0, n_tokens, B)
    ]


def slower_from(at: int) -> Miss:
    return Miss(MissReason.RESTORE_WOULD_BE_SLOWER, at)


@pytest.mark.parametrize(
    ("n_found", "n_usable", "n_kv", "worth", "planned"),
    [
        # found, usable, in the sequence, worth it → rows, base, limit, miss
        (0, 99, 0, all_of, ((), 0, 0, MISS)),
        (128, 199, 0, all_of, ((0, 64), 0, 128, MISS)),
        (150, 199, 0, all_of, ((0, 64, 128), 0, 150, MISS)),
        (128, 127, 0, all_of, ((0, 64), 0, 127, MISS)),  # the last token is decoded
        (128, 64, 0, all_of, ((0,), 0, 64, MISS)),
        (128, 199, 64, all_of, ((64,), 64, 128, MISS)),  # what is live stays
        (128, 199, 100, all_of, ((64,), 64, 128, MISS)),  # but rows begin at whole blocks
        (128, 199, 128, all_of, None),  # what is live reaches further
        (128, 199, 150, all_of, None),
        (128, 100, 110, all_of, None),
        (192, 199, 0, first(2), ((0, 64), 0, 128, slower_from(128))),
        (192, 199, 0, first(0), "not worth it"),
        (192, 199, 64, first(1), ((64,), 64, 128, slower_from(128))),
        (192, 199, 64, first(0), "not worth it"),
        (192, 199, 70, first(0), "not worth it"),
    ],
)
def test_what_is_restored(n_found, n_usable, n_kv, worth, planned) -> None:  # type: ignore[no-untyped-def]
    plan = plan_restore(
        rows(n_found), n_found=n_found, n_usable=n_usable, n_kv=n_kv, block_tokens=B, miss=MISS,
        worth_restoring=worth,
    )  # fmt: skip
    if planned is None:
        assert plan is None
        return
    assert plan is not None
    if planned == "not worth it":
        at = n_kv // B * B
        assert plan == RestorePlan((), n_kv, n_kv, slower_from(at), is_worth_it=False)
        return
    starts = tuple(ref.start for ref in plan.rows)
    assert (starts, plan.base, plan.limit, plan.miss) == planned
    assert plan.is_worth_it


def test_only_rows_that_add_something_are_weighed() -> None:
    seen: list[int] = []

    def count(pieces: Sequence[Piece]) -> int:
        seen.append(len(pieces))
        return len(pieces)

    for n_kv in (0, 64, 65, 191):
        plan_restore(
            rows(256), n_found=256, n_usable=192, n_kv=n_kv, block_tokens=B, miss=None,
            worth_restoring=count,
        )  # fmt: skip
    assert seen == [3, 2, 2, 1]


@given(st.integers(0, 700), st.integers(0, 700), st.integers(0, 700), st.integers(0, 12))
def test_a_plan_covers_what_it_promises_without_a_gap(
    n_found: int, n_usable: int, n_kv: int, n_worth: int
) -> None:
    plan = plan_restore(
        rows(n_found), n_found=n_found, n_usable=n_usable, n_kv=n_kv, block_tokens=B, miss=MISS,
        worth_restoring=first(n_worth),
    )  # fmt: skip
    if plan is None:
        assert n_kv > 0
        assert min(n_found, n_usable) <= n_kv
        return
    if not plan.is_worth_it:
        assert plan.base == plan.limit == n_kv
        return
    assert plan.base <= n_kv
    assert plan.base % B == 0
    assert plan.limit <= min(n_found, n_usable)
    reached = plan.base
    for ref in plan.rows:
        assert ref.start == reached
        reached = ref.start + ref.n_used
    assert reached >= plan.limit >= min(n_kv, plan.limit)
    assert not plan.rows or plan.rows[-1].start < plan.limit
