"""What a caller has of a reply, whoever sent it and however often. Pure.

A reply may come in several runs: the process that generated it died, and another one went on. Each
run begins at the start, because nobody knows which of the last events arrived; an event says at
which token and at which character it begins, so what is known already is left out, to the letter.
"""

from __future__ import annotations

from actors.messages import TokensDelivered
from actors.token_logprobs import unpack
from cache import tokens as token_bytes
from native.backend import Logprobs
from runtime.results import TokenEvent


class PartMissing(Exception):
    """An event goes on beyond what was received: something before it got lost."""


class Received:
    """The reply so far."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._logprobs: list[Logprobs | None] = []
        self._text: list[str] = []
        self._n_chars = 0

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
        return "".join(self._text)

    def take(self, event: TokensDelivered) -> TokenEvent | None:
        """What is new in it, or None; raises PartMissing where it does not follow."""
        index, at = len(self._tokens), self._n_chars
        if event.index > index or event.at > at:
            raise PartMissing(
                f"token {event.index}, character {event.at} came after {index} and {at}"
            )
        ids = tuple(token_bytes.unpack(event.tokens))
        logprobs = unpack(event.logprobs, len(ids))[index - event.index :]
        ids = ids[index - event.index :]
        text = event.text[at - event.at :]
        if not ids and not text:
            return None
        self._tokens += ids
        self._logprobs += logprobs
        self._text.append(text)
        self._n_chars += len(text)
        return TokenEvent(index, ids, text, logprobs)
