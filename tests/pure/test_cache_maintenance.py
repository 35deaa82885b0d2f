"""What concerns all rows is done a few at a time, with everything right in between."""

from __future__ import annotations

import itertools

import pytest

from actors import messages as m
from actors.storage import row_import as adoption
from actors.storage.row_import import RowImport
from cache.answers import Reservation, RowRequest
from cache.index import CacheIndex
from cache.keys import namespace_key
from cache.rows import RowIdentity, SaveReason
from cache.tokens import pack

pytestmark = pytest.mark.pure

BLOCK, PAGE, ROWS = 4, 4096, 120
ROOT = namespace_key([("model", "maintenance")])
BUDGETS = {"ram": (ROWS + 40) * PAGE, "disk": 1 << 30, "disk2": 1 << 30}


def row(number: int) -> RowRequest:
    tokens = pack([number] * BLOCK)
    return RowRequest(RowIdentity.after(ROOT, ROOT, 0, tokens), PAGE, SaveReason.COLD)


def make(n_rows: int = ROWS, **budgets: int) -> CacheIndex:
    index = CacheIndex(BLOCK, budgets or BUDGETS, page_bytes=PAGE)
    for number in range(n_rows):
        save(index, number)
    return index


def save(index: CacheIndex, number: int) -> None:
    (answer,) = index.reserve(0.0, "m", [row(number)]).answers
    assert isinstance(answer, Reservation)
    index.publish(0.0, "m", answer.key)


def persist(index: CacheIndex, tier: str, n: int) -> int:
    answers = index.persist(0.0, "w", tier, n).answers
    for answer in answers:
        index.publish(0.0, "w", answer.key, tier)
    return len(answers)


def tidy(index: CacheIndex, n_rows: int = 7) -> int:
    """To the end, with a lookup and a recount after each step; how many steps."""
    steps = 0
    while not index.is_tidy:
        steps += 1
        index.tidy(n_rows)
        index.check_integrity()
        match = index.lookup(0.0, "m", ROOT, pack([steps % ROWS] * BLOCK))
        assert match.n_tokens == BLOCK  # RAM has it
        index.release(match.lease)
    return steps


def waiting(index: CacheIndex) -> dict[str, int]:
    return {name: use.waiting for name, use in index.snapshot().tiers.items() if name != "ram"}


@pytest.mark.parametrize("n_rows", [1, 7, 10_000])
def test_what_waits_for_a_closed_tier_goes_to_the_other_bit_by_bit(n_rows: int) -> None:
    index = make()
    before = waiting(index)
    assert min(before.values()) > ROWS // 4
    assert sum(before.values()) == ROWS
    index.open_tier("disk", is_open=False)
    assert waiting(index) == before | {"disk": 0}  # the other has got none yet
    assert tidy(index, n_rows) >= before["disk"] // n_rows
    assert waiting(index) == {"disk": 0, "disk2": ROWS}


def test_a_tier_that_opens_again_meanwhile_keeps_what_still_waits_for_it() -> None:
    index = make()
    index.open_tier("disk", is_open=False)
    index.tidy(5)
    index.open_tier("disk", is_open=True)
    tidy(index)
    found = waiting(index)
    assert sum(found.values()) == ROWS
    assert found["disk"] > 5


@pytest.mark.parametrize("n_rows", [1, 7, 10_000])
def test_a_tier_that_opens_gets_every_row_once(n_rows: int) -> None:
    index = make(ram=BUDGETS["ram"], disk=1 << 30)
    assert persist(index, "disk", 50) == 50
    index.open_tier("disk", is_open=False)
    tidy(index)
    assert waiting(index) == {"disk": 0}
    for number in range(ROWS, ROWS + 10):  # saved while it is closed
        save(index, number)
    index.open_tier("disk", is_open=True)
    save(index, ROWS + 10)  # saved while it is filled
    tidy(index, n_rows)
    assert waiting(index) == {"disk": ROWS + 11 - 50}
    while persist(index, "disk", 16):
        index.check_integrity()
    assert index.snapshot().tiers["disk"].rows == ROWS + 11


def test_a_row_that_a_tier_is_yet_to_be_offered_is_spared_and_counted_when_lost() -> None:
    index = make(8, ram=9 * PAGE, disk=1 << 30)
    for number in range(4):  # four are on disk
        assert persist(index, "disk", 1) == 1, number
    index.open_tier("disk", is_open=False)
    index.tidy(1000)
    index.open_tier("disk", is_open=True)
    assert not index.is_tidy
    for number in range(100, 105):
        save(index, number)
    assert index.snapshot().evictions == 5
    assert index.snapshot().lost == 1  # only when none was left that the disk has
    index.check_integrity()


@pytest.mark.parametrize("n_rows", [1, 7, 10_000])
def test_a_vanished_tier_is_forgotten_bit_by_bit_and_its_budget_comes_back(n_rows: int) -> None:
    index = make(ram=BUDGETS["ram"], disk=1 << 30)
    while persist(index, "disk", 16):
        pass
    for number in range(30):  # these are on disk only
        index.drop_location(row(number).key, "ram")
    reader = index.lookup(0.0, "m", ROOT, pack([3] * BLOCK))
    assert reader.blocks[0].tier == "disk"
    index.open_tier("disk", is_open=False)
    index.forget_tier("disk")
    steps = 0
    while not index.is_tidy:
        index.tidy(n_rows)
        index.check_integrity()
        steps += 1
    assert steps >= ROWS // n_rows
    index.release(reader.lease)
    index.check_integrity()
    disk = index.snapshot().tiers["disk"]
    assert (disk.rows, disk.used_bytes, disk.pinned_bytes) == (0, 0, 0)
    assert index.snapshot().rows == ROWS - 30
    assert not index.lookup(0.0, "m", ROOT, pack([3] * BLOCK)).n_tokens


def test_rows_of_a_directory_that_came_back_are_adopted_when_the_old_ones_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a row found again would count as known, and be dropped with the old ones."""
    ticks = itertools.count()
    monkeypatch.setattr(adoption, "TIDIED_AT_ONCE", 16)
    monkeypatch.setattr(adoption.time, "monotonic", lambda: next(ticks) * adoption.SLICE_S / 3)
    index = CacheIndex(BLOCK, {"disk": 1 << 30})
    for number in range(ROWS):
        index.adopt(0.0, "disk", row(number))

    def then(message: object) -> None:
        if isinstance(message, m.TierChanged):
            index.forget_tier("disk")

    queue = RowImport(index, lambda gone: None, then)  # type: ignore[arg-type, return-value]
    queue.put(m.TierChanged("disk", False, False, "gone"))
    back = [row(number) for number in range(50)]
    found = tuple(m.StoredRow.of(one.id, PAGE, None) for one in back)
    queue.put(m.RowsFound("disk", found, last=True))
    sizes = []
    while not queue.is_idle:
        queue.step()
        sizes.append(index.snapshot().rows)
        index.check_integrity()
    assert len(sizes) > 3
    assert index.snapshot().tiers["disk"].rows == 50
    assert all(index.facts(one.key) for one in back)
