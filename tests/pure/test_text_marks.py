"""Marks of replies in rows and in the index: what was packed is found, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.rows import RowIdentity, encode_meta
from cache.text_marks import (
    CANDIDATE,
    MAX_PACKED,
    MAX_PER_ROW,
    RowMark,
    TextMark,
    TextMarks,
    marks_in,
    pack_marks,
    unpack_marks,
)
from cache.tokens import pack

pytestmark = pytest.mark.pure

ROW_MARKS = st.builds(
    lambda digest, known, more, end, extra: RowMark(digest, known + more, known, end, pack(extra)),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 1 << 30),
    st.integers(0, 100),
    st.integers(1, 1 << 30),
    st.lists(st.integers(0, 1 << 20), max_size=2),
)


@given(st.lists(ROW_MARKS, max_size=6))
def test_marks_come_back_from_metadata(marks: list[RowMark]) -> None:
    packed = pack_marks(marks)
    assert len(packed) <= MAX_PACKED
    assert list(unpack_marks(packed)) == marks[-MAX_PER_ROW:]
    meta = encode_meta({"model": "m", "replies": packed})
    assert marks_in(meta) == packed
    assert marks_in(encode_meta({"model": "m"})) == b""


@given(st.binary(max_size=200))
def test_damaged_marks_are_no_marks(packed: bytes) -> None:
    for mark in unpack_marks(packed):
        assert mark.n_known <= mark.n_bytes
    marks_in(encode_meta({"replies": 3}))
    marks_in(encode_meta({"replies": b"x" * (MAX_PACKED + 1)}))


def digest(number: int) -> bytes:
    return bytes([number]) * 16


def test_the_longest_candidate_comes_first() -> None:
    marks = TextMarks()
    for number, n_bytes in enumerate((10, 20, 30)):
        marks.add(TextMark(digest(number), n_bytes, n_bytes, b"p" * 32, 64, pack([number])))
    asked = [(5, digest(0)), (10, digest(0)), (20, digest(9)), (30, digest(2)), (31, digest(1))]
    found = list(marks.find(b"".join(CANDIDATE.pack(*one) for one in asked)))
    assert [mark.n_bytes for mark in found] == [30, 10]
    assert list(marks.find(b"torn")) == []


def test_a_found_row_gives_the_tokens_up_to_the_end_and_those_after_it() -> None:
    marks = TextMarks()
    row = RowIdentity.after(b"p" * 32, b"r" * 32, 64, pack(range(100, 164)))
    packed = pack_marks(
        [
            RowMark(digest(1), 50, 50, 70, pack([7])),
            RowMark(digest(2), 60, 60, 128),
            RowMark(digest(3), 70, 70, 129),  # beyond the row
        ]
    )
    marks.adopt(row, packed)
    found = list(marks.find(b"".join(CANDIDATE.pack(10 * n + 40, digest(n)) for n in (1, 2, 3))))
    assert [mark.tail for mark in found] == [row.tokens, pack([*range(100, 106), 7])]
    assert {mark.parent for mark in found} == {b"p" * 32}


def test_what_is_known_is_newer_than_what_is_found_and_the_oldest_go() -> None:
    marks = TextMarks(limit=3)
    marks.add(TextMark(digest(1), 5, 5, b"new", 0, b""))
    found = RowIdentity.after(b"old", b"old", 0, pack([1, 2]))
    marks.adopt(found, pack_marks([RowMark(digest(1), 5, 5, 1)]))
    assert [mark.parent for mark in marks.find(CANDIDATE.pack(5, digest(1)))] == [b"new"]
    for number in range(2, 5):
        marks.add(TextMark(digest(number), 5, 5, b"", 0, b""))
    assert len(marks) == 3
    assert not list(marks.find(CANDIDATE.pack(5, digest(1))))
