"""Which kind of tier gets a row from which other, for every pair."""

from __future__ import annotations

import itertools

import pytest

from cache.answers import Reservation, RowRequest
from cache.index import CacheIndex
from cache.keys import child_key, namespace_key
from cache.rows import RowIdentity, SaveReason
from cache.tokens import pack

pytestmark = pytest.mark.pure

ROOT = namespace_key([("model", "kinds")])
TOKENS = pack([1, 2, 3, 4])
KEY = child_key(ROOT, TOKENS)
ROW = RowRequest(RowIdentity.after(ROOT, ROOT, 0, TOKENS), 4096, SaveReason.COLD)
TIERS = ("ram", "ram_file", "disk", "disk2")
KIND = {"ram": 0, "ram_file": 1, "disk": 2, "disk2": 2}  # what its rows survive
PAIRS = [pair for pair in itertools.product(TIERS, TIERS) if pair[0] != pair[1]]


def stored_in(source: str, *others: str) -> CacheIndex:
    """An index of these tiers, with one row that was saved in, or copied to, the first."""
    names = sorted((source, *others), key=TIERS.index)
    index = CacheIndex(4, dict.fromkeys(names, 1 << 20), page_bytes=4096)
    assert isinstance(index.reserve(0.0, "w", [ROW], source).answers[0], Reservation)
    assert index.publish(0.0, "w", KEY, source).accepted
    return index


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_row_is_written_behind_to_more_durable_kinds_only(source: str, target: str) -> None:
    index = stored_in(source, target)
    is_copied = KIND[target] > KIND[source]
    assert index.snapshot().tiers[target].waiting == is_copied
    if target != "ram":
        index.requeue(KEY)
        answers = index.persist(0.0, "w", target, 8).answers
        assert len(answers) == is_copied
        if is_copied:
            assert answers[0].source_tier == source  # type: ignore[union-attr]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_only_ram_gets_rows_of_more_durable_kinds(source: str, target: str) -> None:
    index = stored_in(source, target)
    promoted = index.promote(0.0, "r", [KEY]).answers
    assert len(promoted) == (target == "ram")


@pytest.mark.parametrize("source", ["ram", "ram_file"])
def test_one_of_several_disks_gets_a_row_once(source: str) -> None:
    index = stored_in(source, "disk", "disk2")
    tiers = index.snapshot().tiers
    assert tiers["disk"].waiting + tiers["disk2"].waiting == 1
