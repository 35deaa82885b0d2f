"""One reply in the format of its chat template: tokens in; deltas, tool calls, ends of spans out.

Pure. A reader (``native.chat_reply.Reader``) takes the bytes of a reply apart; it begins at the
first byte each time. So that a token costs the same however long the reply is, what was delivered
is left out of what it reads (``_Window``), and inside a long tool call it is asked again only when
the call has grown by a part of its length.

Nothing is lost: where a reply is not in its format, the rest of it is delivered as text, with a
note. What was delivered is never taken back.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import string
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from actors.messages.text_kind import TextKind
from actors.text.incremental_text import IncrementalText
from actors.text.positions import Positions, Visible, Written
from actors.text.reply_parser import CallDelta, Delta, Item, Span, ThinkingBudget, joined
from native.chat_reply import (
    CALL,
    CONTENT,
    FAILED,
    REASONING,
    WHOLE,
    CallRead,
    FormatFacts,
    Reader,
    ReplyRead,
)
from native.errors import NativeError
from native.sampling_params import ReplyGrammar

if TYPE_CHECKING:
    from actors.text.reply_format import LazyGrammar

KEEP_BYTES: Final = 32
"""Of what was delivered, kept at either end: a marker may include the blanks beside it."""
MIN_LEFT_OUT: Final = 192
MIN_GROWTH: Final = 8
GROWTH: Final = 64
"""A call of n bytes is read again when it has n / GROWTH more, and at least so many."""
MANY_CALLS: Final = 2
"""Calls that the reader gets at once; of more, those in the middle are left out."""
MAX_MARKERS: Final = 96
"""Bytes of markers that may end a reply."""
_IN_PLACE: Final = "actors.text.format_parser"
_ALPHABET: Final = string.ascii_letters + string.digits
_SAFE: Final = _ALPHABET.encode() + b",.'-" + bytes(range(0x80, 0x100))
_NOT_IN_FORMAT: Final = (
    "a part of the reply came as text: it is not in the format of this model's chat template"
)
_KINDS: Final = {REASONING: TextKind.THINKING, CALL: TextKind.TOOL_CALL}


class _Window:
    """The bytes that the reader gets, and where they stand in the reply."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._cuts: list[int] = []
        """Positions in ``data`` at which something is left out."""
        self._left_out: list[int] = []
        """Bytes that are left out up to there."""

    def at(self, position: int) -> int:
        """A position in ``data``, counted in the whole reply."""
        index = bisect_right(self._cuts, position)
        return position + (self._left_out[index - 1] if index else 0)

    def cut(self, first: int, last: int) -> None:
        """Leave out ``data[first:last]``, which is at the last cut or after it."""
        before = self._left_out[-1] if self._left_out else 0
        del self.data[first:last]
        if self._cuts and self._cuts[-1] == first:
            self._left_out[-1] = before + last - first
        else:
            self._cuts.append(first)
            self._left_out.append(before + last - first)

    def leave_out(self, start: int, end: int) -> None:
        """Leave out most of ``data[start:end]``, which is all after the last cut."""
        first, last = start + KEEP_BYTES, end - KEEP_BYTES
        if self._cuts:
            first = max(first, self._cuts[-1])
        if last - first < MIN_LEFT_OUT - 2 * KEEP_BYTES:
            return
        while first < last and self.data[first] & 0xC0 == 0x80:
            first += 1  # at the beginning of a character
        while last > first and self.data[last] & 0xC0 == 0x80:
            last -= 1
        self.cut(first, last)


class Bound(NamedTuple):
    """From where on a grammar holds a reply."""

    n_tokens: int
    """Tokens of the reply before that."""
    grammar: ReplyGrammar


@dataclass(slots=True)
class _Thought:
    start: int
    end: int
    n_marker: int
    text: IncrementalText = field(default_factory=IncrementalText)


@dataclass(slots=True)
class _Call:
    """A tool call that has begun."""

    number: int
    start: int
    end: int
    """As it was read last: what looks like a value may turn out to be the marker behind it."""
    id: str = ""
    name: str = ""
    arguments: bytes = b""
    """As far as they were delivered."""


class FormatParser:
    """The visible parts of one reply."""

    looks_for_markers = True

    def __init__(
        self,
        reader: Reader,
        stops: tuple[str, ...] = (),
        *,
        lazy: LazyGrammar | None = None,
        in_thought: bool | None = None,
        thinking_budget: int | None = None,
        call_ids: bytes = b"",
    ) -> None:
        """``lazy``: the grammar of a tool call, which ``bound`` has once the call has begun.

        ``in_thought``: whether it begins inside a thought; None: as the generation prompt has it.

        ``call_ids``: what the ids of tool calls are made of where the format has none before a
        call's arguments.
        """
        self._reader = reader
        self._stops = stops + reader.facts.stops
        self._lazy = lazy
        self.bound: Bound | None = None
        self._call_ids = call_ids
        self._thinking_ends = _thinking_ends(reader.facts)
        self._window = _Window()
        self._bytes = bytearray()
        self._positions = Positions()
        self._done = Written(0)
        """The bytes before it were delivered, or are markers."""
        self._text = IncrementalText(self._stops)
        self._text_at = Visible(0)
        self._thought: _Thought | None = None
        self._call: _Call | None = None
        self._n_calls = self._n_spans = self._n_calls_left_out = 0
        self._plain = _plain_text(reader.facts)
        self._is_plain = False
        """The last read ended inside of text or a thought, all of which is delivered."""
        self._next_read = self._n_read = 0
        self._is_raw = False
        """It is not in its format, and all that follows is text."""
        self.note: str | None = None
        """Why a part of it came as text."""
        self._budget = None if thinking_budget is None else ThinkingBudget(thinking_budget)
        self.was_opened = _is_opened(reader.facts) if in_thought is None else in_thought
        self.opened_tokens: int | None = None
        self.n_tokens = 0
        self._said: dict[TextKind, list[str]] = {TextKind.TEXT: [], TextKind.THINKING: []}
        self.calls: list[tuple[str, str, str]] = []
        """Tool calls that are whole: id, name, arguments."""
        self._is_finished = False
        if self.was_opened:
            self._thought = _Thought(0, 0, 0)

    # ── what the engine asks ────────────────────────────────────────────────────────────────────

    @property
    def stopped_by(self) -> str | None:
        return self._text.stopped_by

    @property
    def kind(self) -> TextKind:
        """Of the next byte, as far as is known."""
        if self._call is not None:
            return TextKind.TOOL_CALL
        return TextKind.TEXT if self._thought is None else TextKind.THINKING

    @property
    def is_structure(self) -> bool:
        """Inside a tool call, and not in a text among its arguments."""
        return self._call is not None and not _in_text(self._call.arguments)

    @property
    def must_stop_thinking(self) -> bool:
        """The budget is used up inside a thought."""
        if self._budget is None or self._thought is None or self._call is not None:
            return False
        return self._budget.is_used_up(may_end=self._done < len(self._bytes))

    @property
    def written(self) -> bytes:
        """All bytes so far, control tokens as they are written."""
        return bytes(self._bytes)

    def said(self, kind: TextKind) -> str:
        """All text, or all thinking, that was delivered."""
        return "".join(self._said[kind])

    def visible_tokens(self) -> int:
        """How many of the tokens lie wholly in the released text; see ``IncrementalText``."""
        if self.stopped_by is None:
            return self.n_tokens
        return self._positions.ending_by(Visible(self._text_at + self._text.released_bytes))

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────

    def feed(self, token: int, visible: bytes, written: bytes | None = None) -> list[Item]:
        """Add a token. ``written`` is what stands for a control token that shows nothing."""
        self.n_tokens += 1
        data = visible or written or b""
        self._positions.add(token, visible, written or b"")
        was_thinking = self._thought is not None
        self._bytes += data
        self._window.data += data
        if self._lazy is not None and self.bound is None and data:
            self._look_for_call(self._lazy, len(data))
        out: list[Item] = []
        if self.stopped_by is None and data:
            out = self._raw() if self._is_raw else self._read_if_due(data)
        if self._budget is not None and was_thinking and self.kind is TextKind.THINKING:
            self._budget.n_tokens += 1
        is_stopped = self.stopped_by is not None
        rest = self._positions.take_all() if is_stopped else self._positions.take_empty(self._done)
        if rest:
            out.append(Delta(self.kind, rest, ""))
        return self._noted(joined(out))

    def end_with(self, written: bytes) -> None:
        """The token that ends the reply is no part of it, but may be a marker of the format."""
        if written and not self._is_raw and written.decode("utf-8", "replace") in self._ends():
            self._window.data += written

    def finish(self) -> list[Item]:
        """No more tokens: what was held back, and the end of a span that was open."""
        if self._is_finished:
            return []
        self._is_finished = True
        out: list[Item] = []
        if self.stopped_by is None and not self._is_raw:
            out += self._read(is_partial=False)
        if self.stopped_by is None and self._is_raw:
            out += self._raw()
        out += self._close_thought() + self._close_call()
        text = self._text.finish()
        last = Delta(TextKind.TEXT, self._positions.take_all(), text)
        return self._noted(joined([*out, last]))

    def _noted(self, out: list[Item]) -> list[Item]:
        for item in out:
            if isinstance(item, Delta) and item.text and item.kind in self._said:
                self._said[item.kind].append(item.text)
        return out

    def _look_for_call(self, lazy: LazyGrammar, n_new: int) -> None:
        """Whether a word that begins a tool call is complete with the last ``n_new`` bytes."""
        longest = max(map(len, lazy.words))
        tail = bytes(self._bytes[-(n_new + longest - 1) :])
        found = [at for word in lazy.words if (at := tail.find(word)) >= 0]
        if found:
            before = tail[min(found) :]
            self.bound = Bound(self.n_tokens, replace(lazy.grammar, before=before))

    def _ends(self) -> tuple[str, ...]:
        return self._reader.facts.thinking_ends + self._reader.facts.markers

    # ── reading ─────────────────────────────────────────────────────────────────────────────────

    def _read_if_due(self, data: bytes) -> list[Item]:
        if self._is_plain and self._plain.fullmatch(data):
            kind = CONTENT if self._thought is None else REASONING
            return self._on_text(kind, self._done, len(self._bytes))
        if self._call is not None and len(self._window.data) < self._next_read:
            return []
        return self._read(is_partial=True)

    def _read(self, *, is_partial: bool) -> list[Item]:
        data = bytes(self._window.data)
        if is_partial:
            data = _whole_characters(data)
        found = self._ask(data)
        self._next_read = len(data) + max(MIN_GROWTH, len(data) // GROWTH)
        if found is not None:
            self._n_read = len(data)
            out = self._deliver(found)
            return out if is_partial else out + self._after(found)
        n_good, found = self._longest_good(data)
        out = [] if found is None else self._deliver(found)
        return out if self.stopped_by is not None else out + self._give_up(n_good)

    def _ask(self, data: bytes) -> ReplyRead | None:
        """What the reader finds; None where no reply in the format begins like this."""
        try:
            found = self._reader.read(_as_characters(data), is_partial=True)
        except NativeError as error:
            self.note = f"a part of the reply came as text: {error}"
            return None
        if found.status == FAILED or (found.status == WHOLE and found.end < len(data)):
            return None
        return found

    def _longest_good(self, data: bytes) -> tuple[int, ReplyRead | None]:
        """The longest beginning that may be one of a reply in its format: what was in order.

        Its length, and what it holds beyond what was read before. Where a beginning is in order,
        all shorter ones are.
        """
        good, bad, best = min(self._n_read, len(data)), len(data), None
        while bad - good > 1:
            middle = (good + bad) // 2
            found = self._ask(_whole_characters(data[:middle]))
            if found is None:
                bad = middle
            else:
                good, best = middle, found
        return good, best

    def _deliver(self, found: ReplyRead) -> list[Item]:
        out: list[Item] = []
        self._is_plain = False
        last = len(found.parts) - 1
        calls: list[int] = []
        """Where they end."""
        for index, (kind, start, end) in enumerate(found.parts):
            if kind == CALL:
                call = found.calls[len(calls)] if len(calls) < len(found.calls) else None
                number = len(calls) + (self._n_calls_left_out if calls else 0)
                calls.append(end)
                out += self._on_call(number, start, end, call, is_over=index < last)
                continue
            if kind == REASONING and index == last and start == end and self._thought is None:
                break  # there may be blanks after the marker
            out += self._on_text(kind, self._window.at(start), self._window.at(end))
            if self.stopped_by is not None:
                return out
            if index == last and self._window.at(end) == self._done:
                self._is_plain = self._done == len(self._bytes) and self._call is None
                self._window.leave_out(start, end)
        if self._thought is not None and self._call is None:
            out += self._end_of_thought()
        if len(calls) > MANY_CALLS and all(
            kind == CALL for kind, _, _ in found.parts[-len(calls) :]
        ):
            self._window.cut(calls[0], calls[-2])  # the first and the last one show the format
            self._n_calls_left_out += len(calls) - 2
        return out

    def _after(self, found: ReplyRead) -> list[Item]:
        """The reply has ended. What was not delivered is markers, or the beginning of one."""
        if found.status == WHOLE:
            return []
        if self._call is not None:
            self._call.end = len(self._bytes)
            visible, tokens = self._take(len(self._bytes))
            return [Delta(TextKind.TOOL_CALL, tokens, visible.decode("utf-8", "replace"))]
        if self._thought is not None:
            return self._on_text(REASONING, self._thought.start, len(self._bytes))
        return self._rest(len(self._window.data))

    def _on_text(self, kind: int, start: int, end: int) -> list[Item]:
        """Deliver what is new of a part from byte ``start`` to ``end`` of the reply."""
        end = min(end, len(self._bytes))
        if end <= self._done:
            return []
        out: list[Item] = []
        if kind == REASONING:
            if self._thought is None:
                out += self._end_text() + self._close_call()
                begin = max(start, self._done)  # what was read as a call may turn out to be thought
                self._thought = _Thought(begin, begin, self._n_start(begin))
        elif self._thought is not None or self._call is not None:
            out += self._close_thought(self._n_end(start)) + self._close_call()
        if start > self._done:
            out += self._marker(_KINDS.get(kind, TextKind.TEXT), start)
        visible, tokens = self._take(end)
        if kind != REASONING or self._thought is None:
            out.append(Delta(TextKind.TEXT, tokens, self._text.feed(visible)))
        else:
            self._thought.end = end
            text = self._thought.text.feed(visible)
            out.append(Delta(TextKind.THINKING, tokens, text))
        return out

    def _on_call(
        self, number: int, start: int, end: int, read: CallRead | None, *, is_over: bool
    ) -> list[Item]:
        if number < self._n_calls:
            return []
        start, end = self._window.at(start), min(self._window.at(end), len(self._bytes))
        out: list[Item] = []
        if self._call is None:
            if read is None:
                return []  # its name is not complete: it may be none
            out += self._end_text() + self._close_thought(self._n_end(start))
            self._call = _Call(number, start, end)
        self._call.end = end
        if start > self._done:
            out += self._marker(TextKind.TOOL_CALL, start)
        if end > self._done:
            visible, tokens = self._take(end)
            out.append(Delta(TextKind.TOOL_CALL, tokens, visible.decode("utf-8", "replace")))
        if read is not None:
            out += self._value(self._call, read)
        if is_over:
            out += self._close_call()
        return out

    def _value(self, call: _Call, read: CallRead) -> list[Item]:
        is_new = not call.name
        if is_new:
            call.name = read.name.decode("utf-8", "replace")
            call.id = read.id.decode("utf-8", "replace") or call_id(self._call_ids, call.number)
        more = b""
        if read.arguments.startswith(call.arguments):
            more = _whole_characters(read.arguments[len(call.arguments) :])
            call.arguments += more
        if not (is_new or more):
            return []
        return [CallDelta(call.number, call.id, call.name, more.decode("utf-8", "replace"))]

    def _end_of_thought(self) -> list[Item]:
        """Its end marker has come, and nothing after it yet."""
        begin = self._done if self._thought is None else self._thought.end
        rest = bytes(self._bytes[max(self._done, begin) :]).lstrip()
        for end in self._thinking_ends:
            if rest.startswith(end):
                at = self._bytes.index(end, begin) + len(end)
                return self._marker(TextKind.THINKING, at) + self._close_thought(at - begin)
        return []

    # ── the ends of parts ───────────────────────────────────────────────────────────────────────

    def _end_text(self) -> list[Item]:
        """A span begins: the text before it is complete."""
        text = self._text.finish()
        return [Delta(TextKind.TEXT, (), text)] if text else []

    def _close_thought(self, n_end: int = 0) -> list[Item]:
        """A thought ends, and ``n_end`` bytes after it are its end marker."""
        thought, self._thought = self._thought, None
        if thought is None:
            return []
        if self.was_opened and self.opened_tokens is None:
            self.opened_tokens = self.n_tokens
        begin = thought.start - thought.n_marker
        end = max(thought.end + n_end, thought.end)
        out: list[Item] = []
        rest = thought.text.finish()
        if rest:
            out.append(Delta(TextKind.THINKING, (), rest))
        if end > begin:
            out.append(self._span(TextKind.THINKING, begin, end, thought.n_marker, n_end))
        self._restart_text(end)
        return out

    def _close_call(self) -> list[Item]:
        call, self._call = self._call, None
        if call is None:
            return []
        self._n_calls += 1
        is_whole = _is_object(call.arguments)
        out: list[Item] = [
            CallDelta(call.number, call.id, call.name, "", is_end=True, is_whole=is_whole)
        ]
        if is_whole:
            self.calls.append((call.id, call.name, call.arguments.decode("utf-8", "replace")))
        else:
            self.note = self.note or "the last tool call is not complete"
        end = max(call.end, call.start)
        self._done = Written(min(self._done, end))
        span = self._span(TextKind.TOOL_CALL, call.start, end)
        out.append(replace(span, ends_without_marker=is_whole))
        self._restart_text(end)
        return out

    def _span(self, kind: TextKind, start: int, end: int, n_start: int = 0, n_end: int = 0) -> Span:
        tokens = self._positions.holding(Written(start), Written(end))
        span = Span(self._n_spans, kind, bytes(self._bytes[start:end]), tokens, n_start, n_end)
        self._n_spans += 1
        return span

    def _restart_text(self, at: int) -> None:
        self._text = IncrementalText(self._stops)
        self._text_at = self._positions.visible_at(Written(min(at, len(self._bytes))))

    # ── the format is left ──────────────────────────────────────────────────────────────────────

    def _give_up(self, n_good: int) -> list[Item]:
        """The rest is text. ``n_good``: the bytes of the window before it were in order."""
        self._is_raw = True
        out = [] if self._thought is None else self._end_of_thought()
        out += self._close_thought() + self._close_call()
        rest = self._rest(n_good)
        if rest:
            self.note = self.note or _NOT_IN_FORMAT
        return out + rest

    def _rest(self, n_good: int) -> list[Item]:
        """All that was not delivered as text, but for markers."""
        whole = self._longest_whole(n_good)
        if not self._bytes[whole:].strip():
            return self._marker(TextKind.TEXT, whole) if whole > self._done else []
        is_marker = bool(self._bytes[self._done : whole].strip())
        return (self._marker(TextKind.TEXT, whole) if is_marker else []) + self._raw()

    def _longest_whole(self, n_good: int) -> int:
        """Where the longest beginning that is a whole reply ends: what is left of it is markers."""
        for n in range(n_good, max(0, n_good - MAX_MARKERS), -1):
            at = self._window.at(n)
            if at <= self._done:
                break
            found = self._ask(bytes(self._window.data[:n]))
            if found is not None and found.status == WHOLE:
                return min(at, len(self._bytes))
        return int(self._done)

    def _raw(self) -> list[Item]:
        if len(self._bytes) <= self._done:
            return []
        visible, tokens = self._take(len(self._bytes))
        return [Delta(TextKind.TEXT, tokens, self._text.feed(visible))]

    # ── bytes and tokens ────────────────────────────────────────────────────────────────────────

    def _marker(self, kind: TextKind, end: int) -> list[Item]:
        """Pass over a marker that ends at ``end``: its tokens are delivered, its bytes are not."""
        _, tokens = self._take(end)
        return [Delta(kind, tokens, "")] if tokens else []

    def _take(self, end: int) -> tuple[bytes, tuple[int, ...]]:
        """The bytes up to ``end`` that a caller may see, and the tokens not delivered before it."""
        data = bytes(self._bytes[self._done : end])
        visible = self._positions.visible_part(self._done, data)
        self._done = Written(end)
        return visible, self._positions.take_before(self._done)

    def _n_start(self, start: int) -> int:
        """Bytes of the marker that ends before ``start``, blanks after it included."""
        marker = self._reader.facts.thinking_start.encode()
        before = bytes(self._bytes[self._done : start])
        at = before.rfind(marker) if marker else -1
        return len(before) - at if at >= 0 else 0

    def _n_end(self, start: int) -> int:
        """Bytes between the end of a thought and what follows it, if its end marker is there."""
        if self._thought is None:
            return 0
        between = bytes(self._bytes[self._thought.end : start])
        for end in self._thinking_ends:
            at = between.find(end)
            if at >= 0:
                return at + len(end)
        return 0


def _thinking_ends(facts: FormatFacts) -> tuple[bytes, ...]:
    """What is written after thoughts; what begins a tool call ends them, too, but is no part."""
    calls = tuple(text for _, text in facts.triggers)
    return tuple(
        end.encode()
        for end in facts.thinking_ends
        if end and not any(call.startswith(end) or end.startswith(call) for call in calls if call)
    )


def _plain_text(facts: FormatFacts) -> re.Pattern[bytes]:
    """Bytes with which no marker begins, and which end with no blank that may belong to one."""
    texts = [*facts.markers, *facts.thinking_ends, *facts.stops, facts.thinking_start]
    special = {text.strip()[:1] for text in texts}
    for kind, text in facts.triggers:
        special |= {text.strip()[:1]} if kind == "word" else set(text)
    firsts = {one.encode()[:1] for one in special if one}
    if facts.grammar and not facts.grammar_is_lazy:
        return re.compile(rb"(?!)")  # nothing is known of what may follow
    safe = [bytes((one,)) for one in _SAFE if bytes((one,)) not in firsts]
    inner = b"".join(map(re.escape, safe))
    return re.compile(b"[ " + inner + b"]*[" + inner + b"]")


def _is_opened(facts: FormatFacts) -> bool:
    """Whether the reply begins inside a thought."""
    prompt, start = facts.generation_prompt, facts.thinking_start
    begun = prompt.rfind(start) if start else -1
    return begun >= 0 and not any(
        prompt.find(one, begun + len(start)) >= 0 for one in facts.thinking_ends if one
    )


def call_id(secret: bytes, number: int) -> str:
    """Nine letters and digits, which is what the strictest templates take; 53 bits."""
    digest = hashlib.blake2b(number.to_bytes(4, "little"), key=secret[:64], digest_size=9).digest()
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest)


def _in_text(arguments: bytes) -> bool:
    """Whether this beginning of JSON ends inside a text."""
    plain = arguments.replace(b"\\\\", b"").replace(b'\\"', b"")
    return plain.count(b'"') % 2 == 1


def _is_object(arguments: bytes) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _in_place(error: UnicodeDecodeError) -> tuple[str, int]:
    return "?" * (error.end - error.start), error.end


codecs.register_error(_IN_PLACE, _in_place)  # type: ignore[arg-type]  # only decoding


def _as_characters(data: bytes) -> bytes:
    """The same with ``?`` for each byte that is no part of a character: a format has only those."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode(errors=_IN_PLACE).encode()
    return data


def _whole_characters(data: bytes) -> bytes:
    """Without an unfinished character at its end."""
    for n in range(1, min(4, len(data)) + 1):
        lead = data[-n]
        if lead & 0xC0 == 0x80:
            continue
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        return data if n >= length else data[:-n]
    return data
