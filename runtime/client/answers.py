"""Answers of models to questions other than completions."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from supervision.frozen import frozen

if TYPE_CHECKING:
    from actors.messages import ChatPart


@frozen
class ChatPrompt:
    """The prompt that a model's chat template makes of a conversation."""

    text: str
    tokens: tuple[int, ...]
    """The prompt's token ids. Tokenising ``text`` may give others, where a message contains what
    looks like a control token."""
    parts: tuple[ChatPart, ...] = ()
    """What each part of the conversation has written, in order and without gaps."""
    unknown: tuple[str, ...] = ()
    """Names of messages and other things that were sent and have no part: where they are is not
    known, or they are nowhere."""


@frozen
class Embeddings:
    """Vectors of some inputs, in their order.

    >>> found = node.embed("demo", ["a fox", "an owl"])                     # doctest: +SKIP
    >>> len(found.vectors), found.rows, len(found.vectors[0]) == found.n_embd  # doctest: +SKIP
    (2, (1, 1), True)
    """

    vectors: tuple[array[float], ...]
    """float32 each, ``n_embd`` long. One per input; with pooling ``none`` one per token of all."""
    rows: tuple[int, ...]
    """How many vectors each input has: 1 where they are pooled."""
    n_embd: int
    """Numbers in a vector."""
    n_tokens: int
    """Tokens of all inputs together."""

    def of(self, index: int) -> tuple[array[float], ...]:
        """The vectors of the input with this number, counted from 0."""
        start = sum(self.rows[:index])
        return self.vectors[start : start + self.rows[index]]


@frozen
class Ranked:
    """One document of a ``Ranking``."""

    index: int
    """Its number among the documents that were given, from 0."""
    score: float
    """How well it fits the query: higher is better, on the model's own scale."""


@frozen
class Ranking:
    """Documents by how well they fit a query, best first.

    >>> found = node.rerank("ranker", "a bird", ["an owl", "a spade"])      # doctest: +SKIP
    >>> found.results[0].index                                              # doctest: +SKIP
    0
    """

    results: tuple[Ranked, ...]
    """As many as were asked for. Equal scores keep the order that was given."""
    n_tokens: int
    """Tokens of all documents together, each with the query."""


@frozen
class Verdict:
    """How many candidate tokens a model would have generated itself, greedily."""

    accepted: int
    """That many of the first candidates are the model's own choice."""
    next_token: int | None
    """The token that it generates after them; None: the text ends there."""
    finish_reason: str
    """``stop | length | cancelled``."""
    cached_tokens: int
    """Tokens of the prefix that were not computed for this."""


@frozen
class WarmPrefix:
    """How many leading tokens of a prompt need not be computed."""

    live: int
    """Tokens in the model's context now."""
    stored: int
    """Tokens in the cache, in any tier."""
    n_prompt: int
    """Tokens of the whole prompt."""

    @property
    def n_tokens(self) -> int:
        """The larger of the two."""
        return max(self.live, self.stored)


@frozen
class VramInfo:
    """GPU memory as llama.cpp reports it, in bytes."""

    free: int
    """Over all GPUs."""
    total: int
    """Over all GPUs."""
    gpus: tuple[tuple[str, int, int], ...]
    """Of each GPU: name, free, total."""
