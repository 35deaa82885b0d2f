"""A reply that comes in several runs, each from the start, is received once, to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from actors.text.incremental_text import IncrementalText
from cache import tokens as token_bytes
from runtime.client.received import PartMissing, Received
from runtime.client.results import TokenEvent

pytestmark = pytest.mark.pure

PIECES = ["a", "bc", "", "ü", "日本", "st", "op", "🙂", "x" * 9]


def events_of(reply: list[int], stop: str, sizes: list[int]) -> list[m.TokensDelivered]:
    """A run's events: tokens sent together, in groups of ``sizes``, and the tail."""
    stream, n_chars = IncrementalText((stop,)), 0
    held: list[m.TokensDelivered] = []
    events: list[m.TokensDelivered] = []
    size = iter(sizes)
    wanted = next(size, 1)
    for index, token in enumerate(reply):
        text = stream.feed(PIECES[token].encode())
        held.append(m.TokensDelivered("r", index, token_bytes.pack([token]), text, n_chars))
        n_chars += len(text)
        if len(held) >= wanted or index == len(reply) - 1:
            packed = b"".join(one.tokens for one in held)
            whole = "".join(one.text for one in held)
            events.append(m.TokensDelivered("r", held[0].index, packed, whole, held[0].at))
            held, wanted = [], next(size, 1)
    tail = stream.finish()
    if tail:
        events.append(m.TokensDelivered("r", len(reply), b"", tail, n_chars))
    return events


@given(st.data())
def test_any_cut_of_events_and_any_number_of_replays_give_the_text_once(
    data: st.DataObject,
) -> None:
    reply = data.draw(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=20))
    stop = data.draw(st.sampled_from(["", "stop", "bca"]))
    sizes = st.lists(st.integers(1, 6), max_size=8)
    whole = events_of(reply, stop, data.draw(sizes))
    expected = Received()
    for event in whole:
        expected.take(event)
    assert expected.tokens == tuple(reply)

    received, seen = Received(), ""
    for _ in range(data.draw(st.integers(0, 3))):  # runs whose process died after some events
        run = events_of(reply, stop, data.draw(sizes))
        for event in run[: data.draw(st.integers(0, len(run)))]:
            seen += _new_text(received, event)
    for event in events_of(reply, stop, data.draw(sizes)):
        seen += _new_text(received, event)
    assert received.tokens == expected.tokens
    assert received.text == expected.text == seen


def _new_text(received: Received, event: m.TokensDelivered) -> str:
    index = len(received)
    new = received.take(event)
    if new is None:
        return ""
    assert new.index == index
    assert new.tokens == received.tokens[index:]
    return new.text


def test_events_of_an_ended_process_may_arrive_after_the_next_one_has_begun() -> None:
    received = Received()
    old = events_of([0, 1, 3, 4], "", [1, 1, 1, 1])
    new = events_of([0, 1, 3, 4, 5], "", [3, 1, 1])
    received.take(old[0])
    received.take(new[0])
    assert received.take(old[1]) is None
    assert received.take(old[2]) is None
    assert received.take(old[3]) == TokenEvent(3, (4,), "日本")
    for event in new[1:]:
        received.take(event)
    assert (received.tokens, received.text) == ((0, 1, 3, 4, 5), "abcü日本st")


def test_an_event_that_does_not_follow_is_noticed() -> None:
    received = Received()
    received.take(m.TokensDelivered("r", 0, token_bytes.pack([1]), "a", 0))
    with pytest.raises(PartMissing):
        received.take(m.TokensDelivered("r", 2, token_bytes.pack([1]), "b", 1))
    with pytest.raises(PartMissing):
        received.take(m.TokensDelivered("r", 1, token_bytes.pack([1]), "b", 2))
    assert received.text == "a"
