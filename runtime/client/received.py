"""What a caller has received of a reply, over all processes that generated it. Pure.

A reply may come in several runs: the process that generated it died, and another one continued.
Each run begins at the start, because it is unknown which of the last events arrived. An event holds
the token and the character at which it begins, so what was received already is left out exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from actors.messages import SpanEnded, TextKind, TokensDelivered, ToolCallDelivered
from cache import tokens as token_bytes
from runtime.client.results import Event, SpanEvent, TokenEvent, ToolCallEvent

if TYPE_CHECKING:
    from native.backend import Logprobs


class PartMissing(Exception):
    """An event begins beyond what was received: something before it was lost."""


class Received:
    """The reply so far."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._logprobs: list[Logprobs | None] = []
        self._text: list[str] = []
        self._n_chars = 0
        self._spans: list[SpanEvent] = []
        self._pages: list[SpanEnded] = []
        self._calls: list[ToolCallEvent] = []

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def logprobs(self) -> tuple[Logprobs | None, ...]:
        return tuple(self._logprobs)

    @property
    def text(self) -> str:
        """Without thinking and tool calls, where the request separates them."""
        return "".join(self._text)

    @property
    def spans(self) -> tuple[SpanEvent, ...]:
        return tuple(self._spans)

    @property
    def calls(self) -> tuple[ToolCallEvent, ...]:
        """Each with all of its arguments so far."""
        return tuple(self._calls)

    def restore(self, event: Event) -> None:
        """Count an event as received, which an earlier reader of this reply had."""
        match event:
            case TokenEvent(index) if index >= 0:
                self._tokens += event.tokens
                self._logprobs += event.logprobs
                self._n_chars += len(event.text)
                if event.kind == TextKind.TEXT.value:
                    self._text.append(event.text)
            case ToolCallEvent() if event.index == len(self._calls):
                self._calls.append(event)
            case ToolCallEvent():
                known = self._calls[event.index]
                arguments = known.arguments + event.arguments
                self._calls[event.index] = replace(
                    known, arguments=arguments, is_end=known.is_end or event.is_end
                )
            case SpanEvent():
                self._spans.append(event)
            case _:
                pass

    def take_part(self, message: object) -> ToolCallEvent | SpanEvent | None:
        """What is new in a message about a tool call or a span; None for any other message."""
        if isinstance(message, ToolCallDelivered):
            return self.take_call(message)
        return self.take_span(message) if isinstance(message, SpanEnded) else None

    def take_call(self, more: ToolCallDelivered) -> ToolCallEvent | None:
        """What is new of a tool call, or None. Its first id stays, across processes."""
        if more.number > len(self._calls):
            raise PartMissing(f"tool call {more.number} came after {len(self._calls)}")
        if more.number == len(self._calls):
            self._calls.append(ToolCallEvent(more.number, more.id, more.name, ""))
            is_new = True
        else:
            is_new = False
        known = self._calls[more.number]
        if more.at > len(known.arguments):
            raise PartMissing(f"a part of the arguments of tool call {more.number} is missing")
        piece = more.arguments[len(known.arguments) - more.at :]
        is_end = more.is_end and not known.is_end
        if not (is_new or piece or is_end):
            return None
        whole = replace(known, arguments=known.arguments + piece, is_end=known.is_end or is_end)
        self._calls[more.number] = whole
        return replace(whole, arguments=piece, is_end=is_end)

    def take_span(self, page: SpanEnded) -> SpanEvent | None:
        """The span that is complete with this page, unless it was received already."""
        if page.number < len(self._spans):
            return None
        if page.page == 0:
            self._pages.clear()
        if page.number > len(self._spans) or page.page != len(self._pages):
            raise PartMissing(f"page {page.page} of span {page.number} came out of order")
        self._pages.append(page)
        if not page.last:
            return None
        content = b"".join(one.content for one in self._pages)
        packed = b"".join(one.tokens for one in self._pages)
        self._pages.clear()
        self._spans.append(
            SpanEvent(
                page.kind.value,
                content,
                content[page.n_start : len(content) - page.n_end],
                tuple(token_bytes.unpack(packed)),
                page.is_closed,
                page.signature,
            )
        )
        return self._spans[-1]

    def take(self, event: TokensDelivered) -> TokenEvent | None:
        """What is new in it, or None; raises PartMissing where it does not follow."""
        index, at = len(self._tokens), self._n_chars
        if event.index > index or event.at > at:
            raise PartMissing(
                f"token {event.index}, character {event.at} came after {index} and {at}"
            )
        ids = tuple(token_bytes.unpack(event.tokens))
        if event.index == index and event.at == at and not event.logprobs:  # nearly always
            return self._added(index, ids, event.text, (), event.kind)
        logprobs: tuple[Logprobs | None, ...] = ()
        if event.logprobs:
            from actors.messages.logprob_records import unpack

            logprobs = unpack(event.logprobs, len(ids))[index - event.index :]
        ids = ids[index - event.index :]
        text = event.text[at - event.at :]
        return self._added(index, ids, text, logprobs, event.kind)

    def _added(
        self,
        index: int,
        ids: tuple[int, ...],
        text: str,
        logprobs: tuple[Logprobs | None, ...],
        kind: TextKind,
    ) -> TokenEvent | None:
        if not ids and not text:
            return None
        self._tokens += ids
        self._logprobs += logprobs
        if kind is TextKind.TEXT:
            self._text.append(text)
        self._n_chars += len(text)
        return TokenEvent(index, ids, text, logprobs, kind.value)
