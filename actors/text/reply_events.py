"""How the replies of one model are read: markers, the end of a thought, the key that signs it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from actors import messages as m
from actors.messages.errors import InvalidRequest, UnsupportedRequest
from actors.messages.logprob_records import LogprobsLog
from actors.messages.markers import Markers
from actors.text.format_parser import FormatParser
from actors.text.marker_scanner import is_open
from actors.text.reply_format import ReplyFormat
from actors.text.reply_parser import CallDelta, Item, ReplyParser, Span
from actors.text.thinking_signature import sign
from cache import tokens as token_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from native.backend import Backend

_ONE: Final = struct.Struct("<I")  # the usual case, twice as fast
TAIL_TOKENS: Final = 32  # of a prompt; more than any start marker and the line break after it
TAIL_CHARS: Final = 512
PAGE_BYTES: Final = 24 << 10
PAGE_CALL_CHARS: Final = 8192  # of up to 4 bytes each
PAGE_TOKENS: Final = 4096  # 16 KiB; both together stay below the 64 KiB of a message
Event = m.TokensDelivered | m.SpanEnded | m.ToolCallDelivered


class NoMarkers(UnsupportedRequest):
    """The request asks for what this model has no markers for."""


class BadBudget(InvalidRequest):
    """The thinking budget makes no sense."""


@dataclass(frozen=True, slots=True)
class ReplyRules:
    """Facts about one model. ``markers`` are decided: nothing in them is ``None``."""

    markers: Markers = field(default_factory=lambda: Markers((), ()))
    signing_key: bytes = b""
    end_of_thought: tuple[int, ...] = ()
    """The tokens that are forced when a thinking budget is used up."""
    markers_are_set: bool = False
    """They were given when the model was loaded, and replies are read by them alone."""

    @classmethod
    def of(cls, backend: Backend, markers: Markers, signing_key: bytes) -> ReplyRules:
        """Look into the model's templates for markers that were not set."""
        named = [source for _, source in backend.info.named_templates]
        decided = markers.for_template("\n".join([backend.info.chat_template or "", *named]))
        end: tuple[int, ...] = ()
        if decided.thinking:
            marker = decided.thinking[1]
            end = tuple(backend.tokenize(marker, add_special=False, parse_special=True))
        is_set = markers.thinking is not None or markers.tool_call is not None
        return cls(decided, signing_key, end, is_set)

    def stream(
        self,
        asked: m.Complete,
        backend: Backend,
        text: str | None,
        tokens: Sequence[int],
        found: ReplyFormat | None = None,
        call_ids: bytes = b"",
        *,
        in_thought: bool = False,
    ) -> ReplyParser | FormatParser:
        """What reads the reply to this request; NoMarkers, BadBudget.

        ``found``: the format of its chat template, if it has one that is known. ``call_ids``: what
        ids of tool calls are made of. ``in_thought``: the prompt ends inside a thought.
        """
        budget = asked.thinking_budget_tokens
        if budget is not None and (budget < 0 or not asked.thinking):
            raise BadBudget(
                f"thinking_budget_tokens is {budget}; it is 0 or more, and needs thinking=True"
            )
        if found is not None:
            return FormatParser(
                found.reader,
                asked.stop,
                lazy=found.lazy,
                in_thought=found.in_thought,
                thinking_budget=budget,
                call_ids=call_ids,
            )
        must_think = asked.thinking and not asked.thinking_is_optional
        for wanted, markers, name in (
            (must_think, self.markers.thinking, "thinking"),
            (asked.tool_calls, self.markers.tool_call, "tool_call"),
        ):
            if wanted and not markers:
                raise NoMarkers(
                    f"no {name}_markers are set for this model: its chat template shows none, "
                    f"and none were set when it was loaded"
                )
        thinking = (self.markers.thinking or ()) if asked.thinking else ()
        return ReplyParser(
            asked.stop,
            thinking=thinking,
            tool_call=(self.markers.tool_call or ()) if asked.tool_calls else (),
            opened=m.TextKind.THINKING
            if in_thought and thinking
            else _opened(thinking, backend, text, tokens),
            thinking_budget=budget,
        )

    def ended(self, ref: str, span: Span) -> Iterator[m.SpanEnded]:
        """The messages about a span that has ended, in pages."""
        signature = sign(self.signing_key, span.body) if span.kind is m.TextKind.THINKING else b""
        packed, step = token_bytes.pack(span.tokens), PAGE_TOKENS * token_bytes.TOKEN_BYTES
        n_pages = max(1, -(-len(span.content) // PAGE_BYTES), -(-len(packed) // step))
        for page in range(n_pages):
            yield m.SpanEnded(
                ref=ref,
                number=span.number,
                kind=span.kind,
                page=page,
                content=span.content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES],
                tokens=packed[page * step : (page + 1) * step],
                n_start=span.n_start,
                n_end=span.n_end,
                signature=signature,
                last=page == n_pages - 1,
                is_closed=span.is_closed,
            )


@dataclass(slots=True)
class EventEncoder:
    """Makes the messages of one reply: tokens and characters are numbered without gaps."""

    ref: str
    rules: ReplyRules
    n_tokens: int = 0
    n_chars: int = 0
    logprobs: LogprobsLog = field(default_factory=LogprobsLog)
    n_call_chars: dict[int, int] = field(default_factory=dict)
    """Characters of the arguments of each tool call."""

    def events(self, parts: list[Item]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, Span):
                events += self.rules.ended(self.ref, part)
                continue
            if isinstance(part, CallDelta):
                events += self._call(part)
                continue
            packed = (
                _ONE.pack(*part.tokens) if len(part.tokens) == 1 else token_bytes.pack(part.tokens)
            )
            events.append(
                m.TokensDelivered(
                    self.ref, self.n_tokens, packed, part.text, self.n_chars, part.kind,
                    self.logprobs.take(len(part.tokens)),
                )
            )  # fmt: skip
            self.n_tokens += len(part.tokens)
            self.n_chars += len(part.text)
        return events

    def _call(self, part: CallDelta) -> Iterator[m.ToolCallDelivered]:
        """The messages about more of a tool call, in pages."""
        arguments = part.arguments
        for start in range(0, max(1, len(arguments)), PAGE_CALL_CHARS):
            piece = arguments[start : start + PAGE_CALL_CHARS]
            at = self.n_call_chars.get(part.number, 0)
            self.n_call_chars[part.number] = at + len(piece)
            yield m.ToolCallDelivered(
                self.ref, part.number, part.id, part.name, at, piece, part.is_end, part.is_whole
            )


def merged(events: list[Event], max_chars: int, max_tokens: int) -> list[Event]:
    """Neighbours of one kind as one event, as long as it stays small."""
    out: list[Event] = []
    group: list[m.TokensDelivered] = []
    n_chars = n_bytes = 0

    def close() -> None:
        if group:
            first = group[0]
            packed = b"".join(one.tokens for one in group)
            text = "".join(one.text for one in group)
            logprobs = b"".join(one.logprobs for one in group)
            out.append(
                m.TokensDelivered(
                    first.ref, first.index, packed, text, first.at, first.kind, logprobs
                )
            )
            group.clear()

    for event in events:
        if isinstance(event, m.SpanEnded | m.ToolCallDelivered):
            close()
            out.append(event)
            continue
        n_event = len(event.tokens) + len(event.logprobs)
        n_chars, n_bytes = n_chars + len(event.text), n_bytes + n_event
        is_big = n_chars > max_chars or n_bytes > max_tokens * token_bytes.TOKEN_BYTES
        if group and (is_big or event.kind is not group[0].kind):
            close()
        if not group:
            n_chars, n_bytes = len(event.text), n_event
        group.append(event)
    close()
    return out


def _opened(
    thinking: tuple[str, ...], backend: Backend, text: str | None, tokens: Sequence[int]
) -> m.TextKind:
    if not thinking:
        return m.TextKind.TEXT
    tail = (
        text[-TAIL_CHARS:].encode("utf-8", "replace")
        if text
        else backend.detokenize(tokens[-TAIL_TOKENS:], special=True)
    )
    return m.TextKind.THINKING if is_open(tail, thinking[0]) else m.TextKind.TEXT
