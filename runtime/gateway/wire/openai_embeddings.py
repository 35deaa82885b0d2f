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
from runtime.gateway.wire.native_prompts import MAX_EMBEDDED, Prompt, native_prompts


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/embeddings``."""

    input: Any
    """A text, token ids of this model's vocabulary, or a list of these; see ``native_prompts``."""
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def read_embedding(body: bytes) -> EmbeddingBody:
    """The body; Refused names the field that is wrong."""
    return read(body, EmbeddingBody)


def inputs_of(asked: EmbeddingBody) -> list[Prompt]:
    """Texts, or lists of token ids of the model's own vocabulary."""
    return native_prompts(asked.input, "input", MAX_EMBEDDED)


def embeddings_json(asked: EmbeddingBody, model: str, found: Embeddings) -> bytes:
    """The answer; Refused where another number of dimensions is wanted than the model has."""
    if asked.dimensions is not None and asked.dimensions != found.n_embd:
        raise invalid(
            f"dimensions is {asked.dimensions}; the vectors of this model have {found.n_embd}, and "
            "a part of one means nothing; leave dimensions out",
            "dimensions",
        )
    if any(rows != 1 for rows in found.rows):
        raise invalid(
            "this model is loaded without pooling, so a text has a vector for each token; POST "
            "/embeddings returns those, and another pooling one for the text"
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
