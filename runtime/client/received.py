"""What a caller has received of a reply, over all processes that generated it. Pure.

A reply may come in several runs: the process that generated it died, and another one continued.
Each run begins at the start, because it is unknown which of the last events arrived. An event holds
the token and the character at which it begins, so what was received already is left out exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.messages import SpanEnded, TextKind, TokensDelivered
from cache import tokens as token_bytes
from runtime.client.results import SpanEvent, TokenEvent

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
                page.n_end > 0,
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
        logprobs: tuple[Logprobs | None, ...] = ()
        if event.logprobs:
            from actors.messages.logprob_records import unpack

            logprobs = unpack(event.logprobs, len(ids))[index - event.index :]
        ids = ids[index - event.index :]
        text = event.text[at - event.at :]
        if not ids and not text:
            return None
        self._tokens += ids
        self._logprobs += logprobs
        if event.kind is TextKind.TEXT:
            self._text.append(text)
        self._n_chars += len(text)
        return TokenEvent(index, ids, text, logprobs, event.kind.value)
