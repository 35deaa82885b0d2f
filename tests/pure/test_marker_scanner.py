"""Laws of spans: the same however the bytes are cut, in order, and every byte accounted for."""

from __future__ import annotations

import re
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages.markers import BadMarkers, Markers
from actors.messages.text_kind import TextKind
from actors.text.marker_scanner import MarkerScanner, Part, is_open
from actors.text.reply_parser import Delta, ReplyParser, Span

pytestmark = pytest.mark.pure

THINK = ("<t>", "</t>")
CALL = ("<c>", "</c>", "<p>", "</p>")
WORDS = [
    "<t>",
    "</t>",
    "<c>",
    "</c>",
    "<p>",
    "</p>",
    "<",
    "</",
    "t>",
    "c",
    "é",
    "ab",
    " ",
    "STOP",
    "ST",
]
REPLIES = st.lists(st.sampled_from(WORDS), max_size=20).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=30)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    borders = [0, *sorted(min(one, len(data)) for one in at), len(data)]
    return [data[first:last] for first, last in pairwise(borders)]


def run(
    pieces: list[bytes], stops: tuple[str, ...] = (), opened: TextKind = TextKind.TEXT
) -> tuple[list[Delta | Span], ReplyParser]:
    stream = ReplyParser(stops, thinking=THINK, tool_call=CALL, opened=opened)
    out: list[Delta | Span] = []
    for number, piece in enumerate(pieces):
        out += stream.feed(number, piece)
        if stream.stopped_by:
            break
    return out + stream.finish(), stream


def story(out: list[Delta | Span]) -> list[tuple[str, object]]:
    """What a caller learns, whatever came in one message and whatever in two."""
    told: list[tuple[str, object]] = []
    for part in out:
        if isinstance(part, Span):
            told.append(("end", (part.kind, part.content, part.n_start, part.n_end)))
        elif part.text and told and told[-1][0] == part.kind.value:
            told[-1] = (part.kind.value, str(told[-1][1]) + part.text)
        elif part.text:
            told.append((part.kind.value, part.text))
    return told


def expected(text: str) -> list[tuple[str, object]]:
    """The same for a whole text, by regular expressions."""
    call = r"<c>(?:<p>.*?(?:</p>|$)|.)*?(?:</c>|$)"
    told: list[tuple[str, object]] = []
    for hit in re.finditer(
        rf"(?s)(?P<t><t>.*?(?:</t>|$))|(?P<c>{call})|(?P<x>(?:(?!<t>|<c>).)+)", text
    ):
        raw = hit[0]
        if hit["x"]:
            told.append(("text", raw))
            continue
        kind, end = (TextKind.THINKING, "</t>") if hit["t"] else (TextKind.TOOL_CALL, "</c>")
        closed = hit.end() < len(text) or closes(raw, kind)
        n_end = len(end) if closed else 0
        body = raw[3 : len(raw) - n_end]
        if body:
            told.append((kind.value, body))
        told.append(("end", (kind, raw.encode(), 3, n_end)))
    return told


def closes(raw: str, kind: TextKind) -> bool:
    if kind is TextKind.THINKING:
        return len(raw) >= 7 and raw.endswith("</t>")
    opened = re.sub(r"(?s)<p>.*?</p>", "", raw[3:])
    return opened.endswith("</c>") and "<p>" not in opened and raw.endswith("</c>")


@given(REPLIES)
def test_spans_of_a_whole_text_are_what_expressions_find(text: str) -> None:
    out, _ = run([text.encode()])
    assert story(out) == expected(text)


@given(REPLIES, CUTS, st.sampled_from(list(TextKind)))
def test_cutting_the_bytes_anywhere_changes_nothing(
    text: str, at: list[int], opened: TextKind
) -> None:
    whole, _ = run([text.encode()], opened=opened)
    parts, _ = run(cut(text.encode(), at), opened=opened)
    assert story(parts) == story(whole)


@given(REPLIES, CUTS)
def test_every_token_is_delivered_once_and_in_order(text: str, at: list[int]) -> None:
    pieces = cut(text.encode(), at)
    out, stream = run(pieces)
    delivered = [token for part in out if isinstance(part, Delta) for token in part.tokens]
    assert delivered == list(range(len(pieces)))
    assert stream.visible_tokens() == len(pieces)


@given(REPLIES, CUTS)
def test_a_span_holds_exactly_the_tokens_that_have_its_bytes(text: str, at: list[int]) -> None:
    data = text.encode()
    pieces = cut(data, at)
    ends = list(accumulate(len(piece) for piece in pieces))
    out, _ = run(pieces)
    where = 0
    for span in [part for part in out if isinstance(part, Span)]:
        start = data.index(span.content, where)
        where = start + len(span.content)
        inside = [
            n for n, end in enumerate(ends)
            if pieces[n] and end > start and end - len(pieces[n]) < where
        ]  # fmt: skip
        assert span.tokens == tuple(range(inside[0], inside[-1] + 1))
        assert span.body == span.content[span.n_start : len(span.content) - span.n_end]


@given(REPLIES, CUTS)
def test_deltas_come_before_the_end_of_their_span_and_kinds_never_mix(
    text: str, at: list[int]
) -> None:
    out, _ = run(cut(text.encode(), at))
    said = {TextKind.THINKING: "", TextKind.TOOL_CALL: ""}
    number = 0
    for part in out:
        if isinstance(part, Delta) and part.kind is not TextKind.TEXT:
            said[part.kind] += part.text
        elif isinstance(part, Span):
            assert said[part.kind] == part.body.decode()
            assert part.number == number
            said[part.kind] = ""
            number += 1
    assert not any(said.values())


@given(REPLIES, CUTS)
def test_stop_strings_act_on_text_alone(text: str, at: list[int]) -> None:
    whole, whole_stream = run([text.encode()], stops=("STOP",))
    parts, stream = run(cut(text.encode(), at), stops=("STOP",))
    assert story(parts) == story(whole)
    assert stream.stopped_by == whole_stream.stopped_by
    in_text = [told for kind, told in expected(text) if kind == "text"]
    assert (stream.stopped_by is not None) == any("STOP" in str(one) for one in in_text)
    if stream.stopped_by is None:
        return
    shown = "".join(str(told) for kind, told in expected(text) if kind == "text").split("STOP")[0]
    assert (
        "".join(p.text for p in parts if isinstance(p, Delta) and p.kind is TextKind.TEXT) == shown
    )


@given(REPLIES, CUTS)
def test_visible_tokens_end_before_the_stop(text: str, at: list[int]) -> None:
    pieces = cut(text.encode(), at)
    _, stream = run(pieces, stops=("STOP",))
    if stream.stopped_by is None:
        return
    seen = b"".join(pieces[: stream.visible_tokens()])
    nth = next(
        hit.start() for hit in re.finditer("STOP", text)
        if any(kind == "text" for kind, _ in expected(text[: hit.start() + 4])[-1:])
    )  # fmt: skip
    assert len(seen) <= len(text[:nth].encode())


def test_a_reply_may_begin_inside_a_thought() -> None:
    out, _ = run([b"hm", b"m</", b"t>done"], opened=TextKind.THINKING)
    assert story(out) == [
        ("thinking", "hmm"),
        ("end", (TextKind.THINKING, b"hmm</t>", 0, 4)),
        ("text", "done"),
    ]
    out, _ = run([], opened=TextKind.THINKING)
    assert story(out) == [("end", (TextKind.THINKING, b"", 0, 0))]


def test_control_tokens_are_markers_too_and_are_not_shown_otherwise() -> None:
    stream = ReplyParser(thinking=("<|think|>", "<|done|>"))
    out: list[Delta | Span] = []
    for number, (visible, written) in enumerate(
        [(b"a", b"a"), (b"", b"<|x|>"), (b"", b"<|think|>"), (b"b", b""), (b"", b"<|y|>"),
         (b"", b"<|done|>"), (b"c", b"")]
    ):  # fmt: skip
        out += stream.feed(number, visible, written)
    out += stream.finish()
    assert story(out) == [
        ("text", "a"),
        ("thinking", "b"),
        ("end", (TextKind.THINKING, b"<|think|>b<|y|><|done|>", 9, 8)),
        ("text", "c"),
    ]
    assert [t for part in out if isinstance(part, Delta) for t in part.tokens] == list(range(7))


def test_an_end_marker_that_also_ends_the_reply_closes_its_span() -> None:
    for marker, n_end in ((b"</c>", 4), (b"<eos>", 0)):
        stream = ReplyParser(tool_call=CALL[:2])
        out = stream.feed(0, b"<c>f()")
        stream.end_with(marker)
        out += stream.finish()
        span = out[-1]
        assert isinstance(span, Span)
        assert (span.body, span.n_end) == (b"f()", n_end)


def test_structure_is_a_call_without_its_payload() -> None:
    stream = ReplyParser(tool_call=CALL)
    seen = []
    for number, piece in enumerate(
        [b"a", b"<c", b">", b"run ", b"<p>", b"x</c>", b"</p", b">", b"</c>", b"b"]
    ):
        stream.feed(number, piece)
        seen.append(stream.is_structure)
    assert seen == [False, False, True, True, False, False, False, True, False, False]


@pytest.mark.parametrize(("budget", "cut_after"), [(0, 1), (1, 2), (3, 4)])
def test_a_thinking_budget_counts_tokens_of_thinking(budget: int, cut_after: int) -> None:
    stream = ReplyParser(thinking=THINK, thinking_budget=budget)
    for number, piece in enumerate([b"<t>", b"a", b"b", b"c", b"d"], 1):
        stream.feed(number, piece)
        assert stream.must_stop_thinking == (number >= cut_after)
    stream.feed(6, b"</t>")
    assert not stream.must_stop_thinking


def test_an_end_marker_that_has_begun_may_be_finished() -> None:
    stream = ReplyParser(thinking=THINK, thinking_budget=2)
    for number, piece in enumerate([b"<t>", b"a", b"<", b"/"]):
        stream.feed(number, piece)
    assert not stream.must_stop_thinking
    stream.feed(4, b"x")
    assert stream.must_stop_thinking


def test_without_markers_it_is_a_text_stream() -> None:
    stream = ReplyParser(("STOP",))
    assert stream.feed(0, b"a ST") == [Delta(TextKind.TEXT, (0,), "a ")]
    assert stream.feed(1, b"OP b") == [Delta(TextKind.TEXT, (1,), "")]
    assert stream.finish() == []
    assert stream.visible_tokens() == 0


def test_markers_are_found_in_the_template_unless_they_are_set() -> None:
    template = "{% if '</think>' in c %}<think>{% endif %}<tool_call></tool_call>"
    found = Markers().for_template(template)
    assert found == Markers(("<think>", "</think>"), ("<tool_call>", "</tool_call>"))
    assert Markers((), ("a", "b")).for_template(template) == Markers((), ("a", "b"))
    assert Markers().for_template(None) == Markers((), ())


@pytest.mark.parametrize("markers", [("a",), ("a", ""), ("a", "b", "c"), ("a", "b" * 300)], ids=len)
def test_markers_that_make_no_sense_are_refused(markers: tuple[str, ...]) -> None:
    with pytest.raises(BadMarkers):
        Markers(thinking=markers)


def test_both_kinds_need_different_starts() -> None:
    with pytest.raises(BadMarkers):
        Markers(("<a>", "</a>"), ("<a>", "</b>"))


def test_a_prompt_that_ends_with_a_start_marker_has_opened_the_thought() -> None:
    assert is_open(b"<|assistant|><think>\n", "<think>")
    assert not is_open(b"<think>\n\n</think>\n\n", "<think>")


def test_a_longer_marker_wins_over_one_that_it_begins_with() -> None:
    scanner = MarkerScanner(("<a>", "</a>"), ("<a>>", "</a>"))
    assert scanner.feed(b"<a>") == []
    assert [piece.kind for piece in scanner.feed(b">x")] == [TextKind.TOOL_CALL] * 2
    assert scanner.kind is TextKind.TOOL_CALL
    assert scanner.finish() == []
    assert Part.START.value == "start"
