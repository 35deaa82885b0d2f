"""The arena's allocation map against a page-by-page model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache.allocation import ArenaMap
from cache.errors import InvariantBroken
from tests.support.examples import examples

pytestmark = pytest.mark.pure

PAGE, PAGES = 4096, 24


class ArenaMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.arena = ArenaMap(PAGES * PAGE + 17, PAGE)
        self.owner: list[int | None] = [-1] + [None] * (PAGES - 1)  # page 0: superblock
        self.slabs: dict[int, int] = {}

    def holes(self) -> list[int]:
        sizes, run = [], 0
        for owner in [*self.owner, -1]:
            if owner is None:
                run += 1
            elif run:
                sizes.append(run)
                run = 0
        return sizes

    @rule(nbytes=st.integers(1, 8 * PAGE))
    def allocate(self, nbytes) -> None:
        pages = -(-nbytes // PAGE)
        fitting = [size for size in self.holes() if size >= pages]
        offset = self.arena.allocate(nbytes)
        if not fitting:
            assert offset is None
            return
        first = offset // PAGE
        hole = first
        while hole < PAGES and self.owner[hole] is None:
            hole += 1
        assert hole - first == min(fitting), "not the best fit"
        assert self.owner[first : first + pages] == [None] * pages
        self.owner[first : first + pages] = [offset] * pages
        self.slabs[offset] = pages

    @rule(page=st.integers(0, PAGES + 1), nbytes=st.integers(1, 6 * PAGE))
    def adopt(self, page, nbytes) -> None:
        pages = -(-nbytes // PAGE)
        is_free = page + pages <= PAGES and self.owner[page : page + pages] == [None] * pages
        assert self.arena.adopt(page * PAGE, nbytes) == is_free
        if is_free:
            self.owner[page : page + pages] = [page * PAGE] * pages
            self.slabs[page * PAGE] = pages

    @precondition(lambda self: self.slabs)
    @rule(data=st.data())
    def free(self, data) -> None:
        offset = data.draw(st.sampled_from(sorted(self.slabs)))
        pages = self.slabs.pop(offset)
        assert self.arena.free(offset) == pages * PAGE
        first = offset // PAGE
        self.owner[first : first + pages] = [None] * pages
        with pytest.raises(InvariantBroken):
            self.arena.free(offset)

    @invariant()
    def accounts_agree(self) -> None:
        self.arena.check_integrity()
        assert self.arena.used_bytes == sum(self.slabs.values()) * PAGE
        assert self.arena.free_bytes == self.owner.count(None) * PAGE
        assert self.arena.largest_free == max(self.holes(), default=0) * PAGE
        for page in range(PAGES):
            assert self.arena.is_free(page * PAGE) == (self.owner[page] is None)
        assert {at: self.arena.slab_bytes(at) for at in self.slabs} == {
            at: pages * PAGE for at, pages in self.slabs.items()
        }


TestArenaMapAgainstPages = ArenaMachine.TestCase
TestArenaMapAgainstPages.settings = examples(100, stateful_step_count=30)


@given(st.integers(0, 2 * PAGE - 1))
def test_an_arena_without_room_for_a_slab_allocates_nothing(size):
    arena = ArenaMap(size, PAGE)
    assert arena.allocate(1) is None
    assert arena.capacity_bytes == arena.largest_free == 0
    arena.check_integrity()


def test_an_unaligned_offset_is_never_adopted():
    assert not ArenaMap(10 * PAGE, PAGE).adopt(PAGE + 1, 1)


def test_a_broken_account_is_noticed():
    arena = ArenaMap(10 * PAGE, PAGE)
    arena.allocate(PAGE)
    arena._used += 1
    with pytest.raises(InvariantBroken):
        arena.check_integrity()
