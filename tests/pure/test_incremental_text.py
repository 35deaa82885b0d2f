"""Laws of the visible text: whole characters, no stop string, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.text.incremental_text import IncrementalText

pytestmark = pytest.mark.pure


def run(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], IncrementalText]:
    stream = IncrementalText(stops)
    shown = [stream.feed(piece) for piece in pieces]
    shown.append(stream.finish())
    return shown, stream


@given(st.text(max_size=60), st.lists(st.integers(1, 4), max_size=80))
def test_cutting_the_bytes_anywhere_never_cuts_a_character(text: str, sizes: list[int]) -> None:
    data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    shown, _ = run(pieces)
    assert "".join(shown) == data.decode()
    assert all("\ufffd" not in part or "\ufffd" in data.decode() for part in shown)


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "c"]), max_size=30),
    st.lists(st.sampled_from(["aba", "bb", "ca", "abab"]), min_size=1, max_size=3),
)
def test_the_visible_text_ends_before_the_first_stop(words: list[str], stops: list[str]) -> None:
    full = "".join(words)
    shown, stream = run([word.encode() for word in words], tuple(stops))
    hits = [full.find(stop) for stop in stops if stop in full]
    visible = "".join(shown)
    assert full.startswith(visible)
    if hits:
        assert visible == full[: min(hits)]
        assert stream.stopped_by in stops
    else:
        assert visible == full
        assert stream.stopped_by is None


def test_text_is_held_back_only_while_it_may_be_a_stop() -> None:
    stream = IncrementalText(("STOP",))
    assert stream.feed(b"hello ST") == "hello "
    assert stream.feed(b"ONE") == "STONE"
    assert stream.feed(b" STOP tail") == " "
    assert stream.stopped_by == "STOP"
    assert stream.feed(b"more") == ""


def test_visible_tokens_counts_only_tokens_that_are_visible_whole() -> None:
    _, stream = run([b"one", b" two", b" EN", b"D"], ("END",))
    assert stream.stopped_by == "END"
    assert stream.visible_tokens() == 2


def test_an_unfinished_character_at_the_end_is_shown_as_replacement() -> None:
    shown, _ = run(["é".encode()[:1]])
    assert "".join(shown) == "\ufffd"
