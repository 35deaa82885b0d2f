"""Marks of replies: the longest text that is known, and never one that was read otherwise."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from actors.text.reply_marks import PLAIN, SPECIAL, Mark, RecentReplies, SentText, mark_reply

pytestmark = pytest.mark.pure

ROOT, OTHER = b"r" * 32, b"o" * 32
DATA = st.binary(max_size=60).filter(lambda data: b"\xff" not in data)


@given(DATA, st.lists(st.integers(0, 60), max_size=8))
def test_digests_of_one_pass_are_those_of_each_beginning(data: bytes, ends: list[int]) -> None:
    ends = sorted({min(end, len(data)) for end in ends})
    got = SentText(data).digests(ROOT, ends)
    assert got == {end: blake3(ROOT + PLAIN + data[:end]).digest()[:16] for end in ends}


@given(DATA, DATA, st.sets(st.integers(0, 59), max_size=4))
def test_a_reply_continues_the_digest_of_its_prompt(
    data: bytes, reply: bytes, forged: set[int]
) -> None:
    spots = tuple(sorted(at for at in forged if at < len(data)))
    sent, later = SentText(data, SPECIAL, spots), SentText(data + reply + b"!", SPECIAL, spots)
    end = len(data) + len(reply)
    assert later.digests(ROOT, [end])[end] == sent.with_reply(ROOT, reply)


@given(DATA, st.sets(st.integers(0, 59), max_size=4), st.sets(st.integers(0, 59), max_size=4))
def test_what_was_read_differently_is_another_text(
    data: bytes, one: set[int], two: set[int]
) -> None:
    first, second = (
        SentText(data, SPECIAL, tuple(sorted(at for at in spots if at < len(data))))
        for spots in (one, two)
    )
    end = len(data)
    same = first.forged == second.forged
    assert (first.digests(ROOT, [end]) == second.digests(ROOT, [end])) is same
    assert first.digests(ROOT, [end]) != first.digests(OTHER, [end])
    assert SentText(data).digests(ROOT, [end]) != SentText(data, SPECIAL).digests(ROOT, [end])


def remembered(*texts: bytes, **limits: int) -> RecentReplies:
    replies = RecentReplies(**limits)
    for number, text in enumerate(texts):
        digest = SentText(text).digests(ROOT, [len(text)])[len(text)]
        replies.put(ROOT, Mark(digest, len(text), len(text), 2), [number, 7, 8])
    return replies


def test_the_longest_beginning_that_is_known_is_found() -> None:
    replies = remembered(b"one", b"one two", b"one two three", b"other")
    for text, expected in (
        (b"one two!", 1), (b"one", 0), (b"one two three and more", 2), (b"on", None),
        (b"oneself", 0), (b"two", None),
    ):  # fmt: skip
        found = replies.find(ROOT, SentText(text))
        assert (None if found is None else found[1]) == (
            None if expected is None else [expected, 7]
        )
        assert replies.find(OTHER, SentText(text)) is None


def test_the_oldest_are_forgotten_within_both_limits() -> None:
    texts = [b"%03d" % number for number in range(50)]
    assert len(remembered(*texts, max_marks=10)) == 10
    small = remembered(*texts, limit_bytes=80)
    assert len(small) == 10
    assert small.find(ROOT, SentText(b"049 x")) is not None
    assert small.find(ROOT, SentText(b"000 x")) is None
    small.clear()
    assert small.find(ROOT, SentText(b"049 x")) is None


def test_a_stop_string_is_no_part_of_what_the_caller_has() -> None:
    sent = SentText(b"prompt")
    mark = mark_reply(ROOT, sent, b"yes STOP.", b"yes", 9, "STOP")
    assert (mark.n_bytes, mark.n_known, mark.n_tokens) == (6 + 4, 6 + 3, 9)
    assert mark.digest == sent.with_reply(ROOT, b"yes ")
    whole = mark_reply(ROOT, sent, b"yes", b"yes", 9, None)
    assert (whole.n_bytes, whole.n_known) == (9, 9)
