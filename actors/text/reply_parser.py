"""One reply on its way to its caller: tokens in, deltas of one kind each and ends of spans out.

Pure. ``marker_scanner`` separates text from thinking and tool calls, ``incremental_text`` makes
whole characters of either, ``positions`` counts. Stop strings act on text alone, and a span between
two texts separates them: no stop string spans it. Each token is delivered once, with the first
delta that shows something of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from actors.messages.text_kind import TextKind
from actors.text.incremental_text import IncrementalText
from actors.text.marker_scanner import MarkerScanner, Part, Piece
from actors.text.positions import Positions, Visible, Written

GRACE_TOKENS = 8
"""Tokens that a thought may take beyond its budget while its last bytes may be the end marker."""


class Delta(NamedTuple):
    """Tokens and text of one kind; either may be empty."""

    kind: TextKind
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """A thinking block or tool call that has ended, or that ended with the reply."""

    number: int
    """Of the spans of this reply, from 0."""
    kind: TextKind
    content: bytes
    """Its exact bytes, markers included, control tokens as they are written."""
    tokens: tuple[int, ...]
    """All tokens that hold a byte of it; the first and the last may hold others, too."""
    n_start: int
    """Bytes of the start marker; 0 where the prompt had opened it."""
    n_end: int
    """Bytes of the end marker; 0 where the reply ended before it."""
    ends_without_marker: bool = False
    """It is complete, although its format has no marker that ends it."""

    @property
    def is_closed(self) -> bool:
        """False where the reply ended inside it."""
        return self.ends_without_marker or self.n_end > 0

    @property
    def body(self) -> bytes:
        return self.content[self.n_start : len(self.content) - self.n_end]


@dataclass(slots=True)
class _OpenSpan:
    """A thinking block or tool call that has begun and not ended."""

    start: Written
    n_start: int = 0
    content: bytearray = field(default_factory=bytearray)
    text: IncrementalText = field(default_factory=IncrementalText)


class CallDelta(NamedTuple):
    """More of a tool call as a value; the first has its name, the last has ``is_end``."""

    number: int
    """Of the calls of this reply, from 0."""
    id: str
    name: str
    arguments: str
    """A piece of JSON; all pieces together are an object, if the call ``is_whole``."""
    is_end: bool = False
    is_whole: bool = False
    """At the end: the reply ended after it, and its arguments are an object."""


Item = Delta | Span | CallDelta


@dataclass(slots=True)
class ThinkingBudget:
    """Tokens that a reply may think, and how many it has thought."""

    limit: int
    n_tokens: int = 0

    def is_used_up(self, *, may_end: bool) -> bool:
        """``may_end``: the last bytes may be the beginning of the end marker."""
        grace = GRACE_TOKENS if may_end and self.limit else 0
        return self.n_tokens - self.limit >= grace


class ReplyParser:
    """The visible parts of one reply."""

    def __init__(
        self,
        stops: tuple[str, ...] = (),
        *,
        thinking: tuple[str, ...] = (),
        tool_call: tuple[str, ...] = (),
        opened: TextKind = TextKind.TEXT,
        thinking_budget: int | None = None,
    ) -> None:
        """Without markers, everything is text. ``thinking_budget`` counts tokens of thinking."""
        self._stops = stops
        self._scanner = (
            MarkerScanner(thinking, tool_call, opened=opened) if thinking or tool_call else None
        )
        self.n_tokens = 0
        self._positions = Positions()
        """Of all tokens, where markers are looked for; else of none."""
        self._at = Written(0)
        """The bytes before it are of a known kind, and were passed on."""
        self._text = IncrementalText(stops)
        self._text_at = Visible(0)
        """Where the present stretch of text began."""
        self._span = None if opened is TextKind.TEXT else _OpenSpan(self._at)
        self._n_spans = 0
        self._budget = None if thinking_budget is None else ThinkingBudget(thinking_budget)
        self.note: str | None = None
        """Always: everything is in the format of markers."""
        self.bound: None = None
        """No grammar of a format holds it."""
        self.was_opened = opened is not TextKind.TEXT
        self.opened_tokens: int | None = None
        """Tokens until the end of the span that the prompt had opened; ``None`` while it lasts."""
        self._final_pieces: list[Piece] = []
        self._is_finished = False

    # ── what the engine asks ────────────────────────────────────────────────────────────────────

    @property
    def stopped_by(self) -> str | None:
        return self._text.stopped_by

    @property
    def looks_for_markers(self) -> bool:
        return self._scanner is not None

    @property
    def kind(self) -> TextKind:
        """Of the next byte, as far as is known."""
        return TextKind.TEXT if self._scanner is None else self._scanner.kind

    @property
    def is_structure(self) -> bool:
        """Inside a tool call, and not in its payload."""
        scanner = self._scanner
        return scanner is not None and scanner.kind is TextKind.TOOL_CALL and not scanner.in_payload

    @property
    def must_stop_thinking(self) -> bool:
        """The budget is used up inside a thought."""
        scanner = self._scanner
        if self._budget is None or scanner is None or scanner.kind is not TextKind.THINKING:
            return False
        return self._budget.is_used_up(may_end=scanner.holds_back)

    def visible_tokens(self) -> int:
        """How many of the tokens lie wholly in the released text; see ``IncrementalText``."""
        if self.stopped_by is None:
            return self.n_tokens
        if self._scanner is None:
            return self._text.visible_tokens()
        return self._positions.ending_by(Visible(self._text_at + self._text.released_bytes))

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────

    def feed(self, token: int, visible: bytes, written: bytes | None = None) -> list[Item]:
        """Add a token. ``written`` is what stands for a control token that shows nothing."""
        self.n_tokens += 1
        if self._scanner is None:
            return [Delta(TextKind.TEXT, (token,), self._text.feed(visible))]
        self._positions.add(token, visible, written or b"")
        was_thinking = self._scanner.kind is TextKind.THINKING
        out = self._pass_on(self._scanner.feed(visible or written or b""))
        if self._budget is not None and was_thinking and self.kind is TextKind.THINKING:
            self._budget.n_tokens += 1
        # Nothing after a stop is looked at; its tokens still count.
        is_stopped = self.stopped_by is not None
        rest = self._positions.take_all() if is_stopped else self._positions.take_empty(self._at)
        if rest:
            out.append(Delta(self.kind, rest, ""))
        return joined(out)

    def end_with(self, written: bytes) -> None:
        """The token that ends the reply is no part of it, but may be written as an end marker."""
        if self._scanner is not None and written and written == self._scanner.end_marker:
            self._final_pieces = self._scanner.feed(written)

    def finish(self) -> list[Item]:
        """No more tokens: what was held back, and the end of a span that was open."""
        if self._is_finished:
            return []
        self._is_finished = True
        if self._scanner is None:
            return joined([Delta(TextKind.TEXT, (), self._text.finish())])
        kind = self._scanner.kind
        out = self._pass_on(self._final_pieces + self._scanner.finish())
        if self._span is not None:
            out += self._close(self._span, kind, 0)
        text = self._text.finish()
        return joined([*out, Delta(TextKind.TEXT, self._positions.take_all(), text)])

    # ── pieces ──────────────────────────────────────────────────────────────────────────────────

    def _pass_on(self, pieces: list[Piece]) -> list[Item]:
        """What a caller gets for bytes whose kind is known now."""
        out: list[Item] = []
        for kind, part, data in pieces:
            if self.stopped_by is not None:
                break
            if part is Part.START:
                out += self._end_text()
                self._span = _OpenSpan(self._at, n_start=len(data))
            visible = self._positions.visible_part(self._at, data)
            self._at = Written(self._at + len(data))
            tokens = self._positions.take_before(self._at)
            span = self._span
            if kind is TextKind.TEXT or span is None:
                out.append(Delta(kind, tokens, self._text.feed(visible)))
                continue
            span.content += data
            is_marker = part in (Part.START, Part.END)
            out.append(Delta(kind, tokens, "" if is_marker else span.text.feed(visible)))
            if part is Part.END:
                out += self._close(span, kind, len(data))
        return out

    def _end_text(self) -> list[Item]:
        """A span begins: the text before it is complete."""
        text = self._text.finish()
        return [Delta(TextKind.TEXT, (), text)] if text else []

    def _close(self, span: _OpenSpan, kind: TextKind, n_end: int) -> list[Item]:
        """A span ends: with its marker of ``n_end`` bytes, or with the reply."""
        tokens = self._positions.holding(span.start, self._at)
        ended = Span(self._n_spans, kind, bytes(span.content), tokens, span.n_start, n_end)
        rest = span.text.finish()
        if self.was_opened and not self._n_spans:
            self.opened_tokens = self.n_tokens
        self._n_spans += 1
        self._span = None
        self._text = IncrementalText(self._stops)
        self._text_at = self._positions.visible_at(self._at)
        return [Delta(kind, (), rest), ended] if rest else [ended]


def joined(parts: list[Item]) -> list[Item]:
    """Neighbouring deltas of one kind as one; without empty ones."""
    out: list[Item] = []
    for part in parts:
        before = out[-1] if out else None
        if isinstance(part, Delta) and not part.tokens and not part.text:
            continue
        if isinstance(part, Delta) and isinstance(before, Delta) and before.kind is part.kind:
            out[-1] = Delta(part.kind, before.tokens + part.tokens, before.text + part.text)
        else:
            out.append(part)
    return out
