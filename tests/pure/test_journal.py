"""What a reply leaves behind when its process dies at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages.journal import JournalKeeper, JournalWriter, Noted

pytestmark = pytest.mark.pure


@pytest.fixture
def keeper() -> Iterator[JournalKeeper]:
    made = JournalKeeper()
    yield made
    made.close()


def test_a_fresh_journal_has_no_start(keeper: JournalKeeper) -> None:
    assert keeper.read() == Noted()
    assert keeper.n_accepted() == 0


def test_what_is_noted_outlives_its_writer_and_the_next_one_continues(
    keeper: JournalKeeper,
) -> None:
    first = JournalWriter.open(keeper.path)
    first.begin([5, 6, 7], [])
    first.append(8)
    first.close()  # as the kernel does at its death
    second = JournalWriter.open(keeper.path)
    assert second.noted == Noted((5, 6, 7), (8,))
    second.begin([1], [2])  # it has begun already
    second.append(9)
    assert keeper.n_accepted() == 2
    second.close()
    assert keeper.read() == Noted((5, 6, 7), (8, 9))


def test_a_reply_that_its_caller_sends_again_is_noted_with_the_prompt(
    keeper: JournalKeeper,
) -> None:
    writer = JournalWriter.open(keeper.path)
    writer.begin([5, 6], [8, 9])
    writer.close()
    assert keeper.read() == Noted((5, 6), (8, 9))


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1), st.lists(st.integers(0, 2**32 - 1)), st.data()
)
def test_a_journal_that_was_cut_anywhere_holds_whole_tokens_or_nothing(
    prompt: list[int], said: list[int], data: st.DataObject
) -> None:
    keeper = JournalKeeper()
    try:
        writer = JournalWriter.open(keeper.path)
        writer.begin(prompt, [])
        for token in said:
            writer.append(token)
        writer.close()
        size = data.draw(st.integers(0, 4 * (1 + len(prompt) + len(said))))
        fd = os.open(keeper.path, os.O_RDWR)
        os.ftruncate(fd, size)
        os.close(fd)
        n_said = size // 4 - 1 - len(prompt)
        expected = Noted(tuple(prompt), tuple(said[:n_said])) if n_said >= 0 else Noted()
        assert keeper.read() == expected
        again = JournalWriter.open(keeper.path)
        assert again.noted == expected
        again.begin(prompt, [])
        again.append(77)
        again.close()
        assert keeper.read() == Noted(tuple(prompt), (*expected.accepted, 77))
        assert keeper.n_accepted() == len(expected.accepted) + 1
    finally:
        keeper.close()


def test_a_journal_whose_keeper_is_gone_cannot_be_opened() -> None:
    keeper = JournalKeeper()
    keeper.close()
    with pytest.raises(OSError, match="No such file"):
        JournalWriter.open(keeper.path)
