"""Ollama's embeddings, in its present form and in the older one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runtime.client.answers import Embeddings
from runtime.gateway.wire.bodies import encode, read
from runtime.gateway.wire.failure import invalid


class EmbedBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /api/embed``."""

    input: str | list[str] | None = None
    model: str | None = None
    truncate: bool | None = None
    """Left out: true. A text that is too long is cut."""
    dimensions: int | None = None
    """So many numbers of each vector, made one unit long again."""
    options: dict[str, Any] | None = None
    keep_alive: int | float | str | None = None

    @property
    def texts(self) -> list[str]:
        """Empty where only the model is to be loaded."""
        return (
            [self.input] if isinstance(self.input, str) and self.input else list(self.input or ())
        )


class OldEmbeddingBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /api/embeddings``."""

    prompt: str | None = None
    model: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: int | float | str | None = None


def read_embed(body: bytes) -> EmbedBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body, EmbedBody)
    if not all(asked.texts):
        raise invalid("input has an empty text; leave it out", "input")
    if asked.dimensions is not None and asked.dimensions < 0:
        raise invalid(f"dimensions is {asked.dimensions}; it is 1 or more", "dimensions")
    return asked


def read_old_embedding(body: bytes) -> OldEmbeddingBody:
    """The body; Refused names the field that is wrong."""
    return read(body, OldEmbeddingBody)


def embed_json(asked: EmbedBody, name: str, found: Embeddings | None, took_s: float) -> bytes:
    """The answer; ``found`` None: there was no text."""
    vectors = () if found is None else found.vectors
    return encode(
        {
            "model": name,
            "embeddings": [shortened(vector, asked.dimensions) for vector in vectors],
            "total_duration": max(1, round(took_s * 1e9)),
            "load_duration": 1,
            "prompt_eval_count": 0 if found is None else found.n_tokens,
        }
    )


def old_embedding_json(found: Embeddings | None) -> bytes:
    """The older answer: one vector."""
    return encode({"embedding": [] if found is None else list(found.vectors[0])})


def shortened(vector: Sequence[float], dimensions: int | None) -> list[float]:
    """The first numbers, of unit length; the vector itself where it has no more."""
    if not dimensions or dimensions >= len(vector):
        return list(vector)
    first = list(vector[:dimensions])
    length = math.sqrt(math.fsum(one * one for one in first))
    return [one / length for one in first] if length else first


def longest(details: Mapping[str, Any]) -> int | None:
    """Tokens that a model embeds at once, by what it reports; None: not known."""
    params = details.get("params") or {}
    known = [params.get("embed_tokens"), details.get("n_ctx_train")]
    return min((one for one in known if one), default=None)


def cut(tokens: Sequence[int], plain: Sequence[int], most: int) -> list[int]:
    """At most so many tokens of a text. What the vocabulary adds at its ends stays.

    ``plain``: the same text without what is added.
    """
    if len(tokens) <= most:
        return list(tokens)
    before = next(
        (at for at in range(len(tokens)) if list(tokens[at : at + len(plain)]) == list(plain)), 0
    )
    end = list(tokens[before + len(plain) :])
    return list(tokens[: max(0, most - len(end))]) + end
