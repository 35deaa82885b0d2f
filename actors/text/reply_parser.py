"""One reply on its way to its caller: tokens in, deltas of one kind each and ends of spans out.

Pure. In front of ``text_stream`` it tells text from thinking and tool calls; stop strings act on
text alone, and a span between two texts separates them: no stop string spans it. Each token is
delivered once, with the first delta that shows something of it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from actors.messages.text_kind import TextKind
from actors.text.incremental_text import TextStream
from actors.text.marker_scanner import MarkerScanner, Part, Piece

GRACE_TOKENS = 8
"""Beyond its budget that a thought may take while its last bytes may be the end marker."""


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

    @property
    def body(self) -> bytes:
        return self.content[self.n_start : len(self.content) - self.n_end]


class ReplyStream:
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
        self._text = TextStream(stops)
        self._inner = TextStream()
        self._budget = thinking_budget
        self._n_thinking = 0
        # All tokens with the positions where their written and their visible bytes end.
        self._tokens: list[int] = []
        self._ends: list[int] = []
        self._visible_ends: list[int] = []
        self._silent: list[tuple[int, int]] = []
        """Where the text of control tokens lies among the written bytes; it is not shown."""
        self._at = 0
        """Written bytes whose kind is known."""
        self._n_delivered = 0
        self._section_at = 0
        """Visible bytes before the present stretch of text."""
        self._n_spans = 0
        self._span_at = 0
        self._n_start = 0
        self._content = bytearray()
        self._is_open = self.was_opened = opened is not TextKind.TEXT
        self.opened_tokens: int | None = None
        """Tokens until the end of the span that the prompt had opened; ``None`` while it lasts."""
        self._last_words: list[Piece] = []
        self._finished = False

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
        over = self._n_thinking - self._budget
        return over >= (GRACE_TOKENS if scanner.holds_back and self._budget else 0)

    def visible_tokens(self) -> int:
        """How many of the tokens lie wholly in what the caller saw; see ``TextStream``."""
        if self.stopped_by is None:
            return len(self._tokens)
        if self._scanner is None:
            return self._text.visible_tokens()
        seen = self._section_at + self._text.released_bytes
        return bisect_right(self._visible_ends, seen)

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────

    def feed(self, token: int, visible: bytes, written: bytes | None = None) -> list[Delta | Span]:
        """Add a token. ``written`` is what stands for a control token that shows nothing."""
        self._tokens.append(token)
        if self._scanner is None:
            return [Delta(TextKind.TEXT, (token,), self._text.feed(visible))]
        data = visible or written or b""
        start = self._ends[-1] if self._ends else 0
        self._ends.append(start + len(data))
        self._visible_ends.append(
            len(visible) + (self._visible_ends[-1] if self._visible_ends else 0)
        )
        if data and not visible:
            self._silent.append((start, start + len(data)))
        thought = self._scanner.kind is TextKind.THINKING
        out = self._take(self._scanner.feed(data))
        self._n_thinking += thought and self._scanner.kind is TextKind.THINKING
        return _joined(out + self._due(self._scanner.kind))

    def end_with(self, written: bytes) -> None:
        """The token that ends the reply is no part of it, but may be written as an end marker."""
        if self._scanner is not None and written and written == self._scanner.end_marker:
            self._last_words = self._scanner.feed(written)

    def finish(self) -> list[Delta | Span]:
        """No more tokens: what was held back, and the end of a span that was open."""
        if self._finished:
            return []
        self._finished = True
        out: list[Delta | Span] = []
        if self._scanner is not None:
            kind = self._scanner.kind
            out = self._take(self._last_words + self._scanner.finish())
            if self._is_open:
                out += self._close(kind, 0)
        text = self._text.finish()
        rest = tuple(self._tokens[self._n_delivered :]) if self._scanner is not None else ()
        self._n_delivered = len(self._tokens)
        if text or rest:
            out.append(Delta(TextKind.TEXT, rest, text))
        return _joined(out)

    # ── pieces ──────────────────────────────────────────────────────────────────────────────────

    def _take(self, pieces: list[Piece]) -> list[Delta | Span]:
        out: list[Delta | Span] = []
        for kind, part, data in pieces:
            if self.stopped_by is not None:
                break
            if part is Part.START:
                out += self._open()
            visible = self._shown(data)
            self._at += len(data)
            if kind is TextKind.TEXT:
                out.append(Delta(kind, self._reached(), self._text.feed(visible)))
                continue
            self._content += data
            text = "" if part in (Part.START, Part.END) else self._inner.feed(visible)
            out.append(Delta(kind, self._reached(), text))
            if part is Part.START:
                self._n_start = len(data)
            elif part is Part.END:
                out += self._close(kind, len(data))
        return out

    def _open(self) -> list[Delta | Span]:
        """A span begins: the text before it is complete."""
        text = self._text.finish()
        self._is_open, self._span_at = True, self._at
        return [Delta(TextKind.TEXT, (), text)] if text else []

    def _close(self, kind: TextKind, n_end: int) -> list[Delta | Span]:
        rest = self._inner.finish()
        out: list[Delta | Span] = [Delta(kind, (), rest)] if rest else []
        first = bisect_right(self._ends, self._span_at)
        last = bisect_right(self._ends, self._at - 1) + 1 if self._at > self._span_at else first
        tokens = tuple(self._tokens[first:last])
        content = bytes(self._content)
        out.append(Span(self._n_spans, kind, content, tokens, self._n_start, n_end))
        if self.was_opened and not self._n_spans:
            self.opened_tokens = len(self._tokens)
        self._n_spans += 1
        self._content.clear()
        self._inner, self._n_start, self._is_open = TextStream(), 0, False
        self._text = TextStream(self._stops)
        self._section_at = self._visible_before(self._at)
        return out

    def _shown(self, data: bytes) -> bytes:
        """Without the text of control tokens. ``data`` begins at ``_at``."""
        start, end = self._at, self._at + len(data)
        shown, at = b"", start
        while self._silent and self._silent[0][0] < end:
            first, last = self._silent[0]
            shown += data[at - start : max(at, first) - start]
            at = min(last, end)
            if last > end:
                break
            del self._silent[0]
        return shown + data[at - start :]

    def _visible_before(self, at: int) -> int:
        """Visible bytes before the written position ``at``."""
        index = bisect_right(self._ends, at)
        before = self._visible_ends[index - 1] if index else 0
        start = self._ends[index - 1] if index else 0
        is_shown = index < len(self._ends) and self._visible_ends[index] > before
        return before + (at - start if is_shown else 0)

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────

    def _reached(self) -> tuple[int, ...]:
        """Tokens that begin before ``_at`` and were not delivered yet."""
        first = self._n_delivered
        while self._n_delivered < len(self._tokens) and self._start(self._n_delivered) < self._at:
            self._n_delivered += 1
        return tuple(self._tokens[first : self._n_delivered])

    def _due(self, kind: TextKind) -> list[Delta | Span]:
        """Tokens without any bytes, at a place whose kind is known."""
        first = self._n_delivered
        while (
            self._n_delivered < len(self._tokens)
            and self._start(self._n_delivered) == self._ends[self._n_delivered] <= self._at
        ):
            self._n_delivered += 1
        silent = tuple(self._tokens[first : self._n_delivered])
        if self.stopped_by is not None:  # nothing after a stop is looked at; its tokens still count
            silent = tuple(self._tokens[first:])
            self._n_delivered = len(self._tokens)
        return [Delta(kind, silent, "")] if silent else []

    def _start(self, index: int) -> int:
        return self._ends[index - 1] if index else 0


def _joined(parts: list[Delta | Span]) -> list[Delta | Span]:
    """Neighbouring deltas of one kind as one; without those that say nothing."""
    out: list[Delta | Span] = []
    for part in parts:
        before = out[-1] if out else None
        if isinstance(part, Delta) and not part.tokens and not part.text:
            continue
        if isinstance(part, Delta) and isinstance(before, Delta) and before.kind is part.kind:
            out[-1] = Delta(part.kind, before.tokens + part.tokens, before.text + part.text)
        else:
            out.append(part)
    return out
