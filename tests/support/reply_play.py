"""A reply played through ``FormatParser``: what a caller gets of it, and what is missing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from actors.messages.text_kind import TextKind
from actors.text.format_parser import FormatParser
from actors.text.reply_parser import CallDelta, Delta, Item, Span
from native.chat_reply import FormatFacts, Reader

BLANKS: Final = b" \t\r\n\v\f"


@dataclass
class PlayedCall:
    """One tool call, its pieces joined."""

    id: str
    name: str
    arguments: str = ""
    is_end: bool = False
    is_whole: bool = False

    @property
    def value(self) -> Any:
        """The arguments as JSON has them."""
        return json.loads(self.arguments)


@dataclass
class Played:
    """All of one reply."""

    text: str = ""
    thinking: str = ""
    calls: list[PlayedCall] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    note: str | None = None
    chunks: list[bytes | str] = field(default_factory=list)
    """Texts and contents of spans in order: with markers between them, they are the reply."""

    @property
    def values(self) -> tuple[object, ...]:
        """What may not depend on where tokens end."""
        calls = [(one.id, one.name, one.arguments, one.is_whole) for one in self.calls]
        spans = [
            (one.kind, one.content, one.n_start, one.n_end, one.is_closed) for one in self.spans
        ]
        return self.text, self.thinking, calls, spans


def play(reader: Reader, pieces: Iterable[bytes], **options: Any) -> Played:
    """Feed the pieces as tokens 0, 1, …; AssertionError where one is not delivered once."""
    parser = FormatParser(reader, call_ids=b"test", **options)
    played, n_tokens = Played(), 0
    for token, piece in enumerate(pieces):
        n_tokens += 1
        _add(played, parser.feed(token, piece))
    _add(played, parser.finish())
    assert parser.finish() == []
    assert played.tokens == list(range(n_tokens)), "a token was not delivered once, in order"
    played.note = parser.note
    return played


def _add(played: Played, items: Iterable[Item]) -> None:
    for item in items:
        if isinstance(item, Span):
            assert item.number == len(played.spans)
            played.spans.append(item)
            played.chunks.append(item.content)
        elif isinstance(item, CallDelta):
            _add_call(played.calls, item)
        else:
            _add_delta(played, item)


def _add_call(calls: list[PlayedCall], item: CallDelta) -> None:
    if item.number == len(calls):
        calls.append(PlayedCall(item.id, item.name))
    call = calls[item.number]
    assert (item.id, item.name) == (call.id, call.name)
    assert not call.is_end, "more of a call after its end"
    call.arguments += item.arguments
    call.is_end, call.is_whole = item.is_end, item.is_whole


def _add_delta(played: Played, item: Delta) -> None:
    played.tokens += item.tokens
    if item.kind is TextKind.THINKING:
        played.thinking += item.text
    elif item.kind is TextKind.TEXT:
        played.text += item.text
        last = played.chunks[-1] if played.chunks else None
        if isinstance(last, str):
            played.chunks[-1] = last + item.text
        elif item.text:
            played.chunks.append(item.text)


# ── pieces ──────────────────────────────────────────────────────────────────────────────────────


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def split_at_random(data: bytes, chance: random.Random, longest: int = 12) -> list[bytes]:
    pieces, at = [], 0
    while at < len(data):
        end = at + chance.randint(1, longest)
        pieces.append(data[at:end])
        at = end
    return pieces


# ── what is missing ─────────────────────────────────────────────────────────────────────────────


def markers_of(facts: FormatFacts, *more: str) -> list[bytes]:
    """The texts that a reply in this format may have beside what a caller sees, longest first."""
    texts = {facts.thinking_start, *facts.thinking_ends, *facts.markers, *facts.stops, *more}
    return sorted({one.strip().encode() for one in texts if one.strip()}, key=len, reverse=True)


def first_missing(data: bytes, played: Played, markers: list[bytes]) -> str | None:
    """None where the chunks are all of ``data`` but for markers and blanks; else where not."""
    ends = {0}
    for chunk in played.chunks:
        starts = _over_markers(data, ends, markers)
        ends = {end for start in starts for end in _ends(data, start, chunk, markers)}
        if not ends:
            return f"{chunk!r} does not follow byte {min(starts)}: {data[min(starts) :][:80]!r}"
    if len(data) in _over_markers(data, ends, markers):
        return None
    return f"after byte {max(ends)}: {data[max(ends) :][:120]!r}"


def _over_markers(
    data: bytes, starts: Iterable[int], markers: list[bytes], blanks: bytes = BLANKS
) -> set[int]:
    found, todo = set(starts), list(starts)
    while todo:
        at = todo.pop()
        nexts = [at + len(one) for one in markers if data.startswith(one, at)]
        if at < len(data) and data[at] in blanks:
            nexts.append(at + 1)
        for one in nexts:
            if one not in found:
                found.add(one)
                todo.append(one)
    return found


def _ends(data: bytes, start: int, chunk: bytes | str, markers: list[bytes]) -> Iterable[int]:
    raw = chunk.encode() if isinstance(chunk, str) else chunk
    if isinstance(chunk, bytes):
        return {start + len(raw)} if data.startswith(raw, start) else ()
    long = [one for one in markers if len(one) > 3]
    if "\ufffd" in chunk:
        return _ends_of_invalid(data, start, chunk, long)
    return _ends_of_text(data, start, raw, long)


def _ends_of_text(data: bytes, start: int, raw: bytes, markers: list[bytes]) -> set[int]:
    """A marker may have been passed over inside of the text."""
    places = {start}
    for byte in raw:
        places = _over_markers(data, places, markers, b"")
        places = {at + 1 for at in places if at < len(data) and data[at] == byte}
    return places


def _ends_of_invalid(data: bytes, start: int, text: str, markers: list[bytes]) -> set[int]:
    """Python makes one U+FFFD of up to three bytes that are no character."""
    places = {start}
    for character in text:
        places = _over_markers(data, places, markers, b"")
        raw = character.encode()
        found = {at + len(raw) for at in places if data.startswith(raw, at)}
        if character == "\ufffd":
            found |= {
                at + n
                for at in places
                for n in (1, 2, 3)
                if at + n <= len(data) and data[at : at + n].decode("utf-8", "replace") == "\ufffd"
            }
        places = found
    return places
