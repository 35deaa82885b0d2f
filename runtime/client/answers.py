"""What a model answers to questions that are no completions."""

from __future__ import annotations

from array import array

from supervision.frozen import frozen


@frozen
class ChatPrompt:
    """What a conversation looks like to the model.

    Tokenising ``text`` anew may give other tokens, where a caller's text looks like a control
    token.
    """

    text: str
    tokens: tuple[int, ...]


@frozen
class Embeddings:
    """Vectors of some inputs, in their order."""

    vectors: tuple[array[float], ...]
    """float32 each, ``n_embd`` long. One per input; with pooling ``none`` one per token of all."""
    rows: tuple[int, ...]
    """How many vectors each input has: 1 where they are pooled."""
    n_embd: int
    n_tokens: int
    """Of all inputs together."""

    def of(self, index: int) -> tuple[array[float], ...]:
        """The vectors of one input."""
        start = sum(self.rows[:index])
        return self.vectors[start : start + self.rows[index]]


@frozen
class Verdict:
    """What a model says of guesses: the first ``accepted`` are what it says itself, greedily."""

    accepted: int
    next_token: int | None
    """What it says after them; None: the text ends there."""
    finish_reason: str
    cached_tokens: int
    """Of the prefix, what was not computed for this."""


@frozen
class WarmPrefix:
    """How many leading tokens of a prompt need not be computed."""

    live: int
    """In the model's context now."""
    stored: int
    """In the cache, in any tier."""

    @property
    def n_tokens(self) -> int:
        return max(self.live, self.stored)


@frozen
class VramInfo:
    """Bytes of GPU memory, over all GPUs and of each: name, free, total."""

    free: int
    total: int
    gpus: tuple[tuple[str, int, int], ...]
