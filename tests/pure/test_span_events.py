"""Pages of thinking and tool calls become one event each, however often they come."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import SpanEnded, TextKind
from cache import tokens as token_bytes
from runtime import SpanEvent
from runtime.client.received import PartMissing, Received

pytestmark = pytest.mark.pure

SPANS = (
    (TextKind.THINKING, b"<t>hm, hm</t>", 3, 4, b"signed"),
    (TextKind.TOOL_CALL, b"<c>run</c>", 3, 4, b""),
    (TextKind.THINKING, b"open", 0, 0, b""),
)


def pages(number: int, cuts: list[int]) -> list[SpanEnded]:
    """One span, cut anywhere; a token a byte."""
    kind, content, n_start, n_end, signature = SPANS[number]
    places = sorted({0, len(content), *(cut % len(content) for cut in cuts)})
    parts = [content[start:end] for start, end in pairwise(places)]
    last = len(parts) - 1
    return [
        SpanEnded(
            "r", number, kind, page, part, token_bytes.pack([*part]), n_start, n_end, signature,
            page == last, n_end > 0,
        )
        for page, part in enumerate(parts)
    ]  # fmt: skip


@given(st.lists(st.lists(st.integers(0, 50), max_size=4), min_size=3, max_size=3), st.data())
def test_each_span_comes_once_and_whole_wherever_its_sender_was_killed(
    cuts: list[list[int]], data: st.DataObject
) -> None:
    run = [page for number in range(3) for page in pages(number, cuts[number])]
    received, heard = Received(), list[SpanEvent]()
    deaths = data.draw(st.lists(st.integers(0, len(run)), max_size=3))
    for sent in [*(run[:death] for death in deaths), run]:
        for page in sent:  # each process begins at the start
            event = received.take_span(page)
            if event is not None:
                heard.append(event)
    assert [one.content for one in heard] == [span[1] for span in SPANS]
    assert [one.kind for one in heard] == [span[0].value for span in SPANS]
    assert [one.body for one in heard] == [b"hm, hm", b"run", b"open"]
    assert [bytes(one.tokens) for one in heard] == [span[1] for span in SPANS]
    assert [one.is_closed for one in heard] == [True, True, False]
    assert [one.signature for one in heard] == [b"signed", b"", b""]
    assert received.spans == tuple(heard)


def test_a_page_that_is_missing_is_noticed() -> None:
    received = Received()
    first = pages(0, [4, 8])
    received.take_span(first[0])
    with pytest.raises(PartMissing):
        received.take_span(first[2])
    with pytest.raises(PartMissing):
        Received().take_span(pages(1, [])[0])
