"""OpenAI's embeddings."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Any, Literal

import msgspec

from runtime.client.answers import Embeddings
from runtime.gateway.wire.bodies import encode, read
from runtime.gateway.wire.failure import invalid
from runtime.gateway.wire.openai_completions import prompts_of


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/embeddings``."""

    input: str | list[Any]
    """A text, token ids of this model's vocabulary, or a list of texts or of lists of ids."""
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def read_embedding(body: bytes) -> EmbeddingBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body, EmbeddingBody)
    if not asked.input:
        raise invalid("input is empty; send a text, or a list of them", "input")
    return asked


def inputs_of(asked: EmbeddingBody) -> list[Any]:
    """Texts, or lists of token ids of the model's own vocabulary."""
    return prompts_of(asked.input, "input")


def embeddings_json(asked: EmbeddingBody, model: str, found: Embeddings) -> bytes:
    """The answer; Refused where another number of dimensions is wanted than the model has."""
    if asked.dimensions is not None and asked.dimensions != found.n_embd:
        raise invalid(
            f"dimensions is {asked.dimensions}; the vectors of this model have {found.n_embd}, and "
            "a part of one means nothing; leave dimensions out",
            "dimensions",
        )
    as_text = asked.encoding_format == "base64"
    return encode(
        {
            "object": "list",
            "model": model,
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64_of(vector) if as_text else list(vector),
                }
                for index, vector in enumerate(found.vectors)
            ],
            "usage": {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens},
        }
    )


def base64_of(vector: array[float]) -> str:
    """Numbers of 32 bits, little-endian."""
    little = vector
    if sys.byteorder == "big":
        little = array("f", vector)
        little.byteswap()
    return base64.b64encode(little.tobytes()).decode("ascii")
