"""Our own API: tokens, vectors and ranks, as the runtime returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from runtime.client.answers import Embeddings, Ranking
from runtime.gateway.wire.bodies import are_token_ids, encode, read
from runtime.gateway.wire.failure import invalid

MAX_TEXTS = 2048


class TokenizeBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/tokenize``: a text, a conversation, or token ids."""

    model: str
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    tokens: list[int] | None = None
    add_special: bool | None = None
    """With the tokens that the model puts around a text; default: yes."""
    parse_special: bool | None = None
    """Read control tokens that are written in the text; default: no."""


class EmbedBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/embed``."""

    model: str
    inputs: list[str | list[Any]]
    pooling: str | None = None
    normalise: bool | None = None


class RankBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/rerank``."""

    model: str
    query: str
    documents: list[str]
    top_n: int | None = None


def read_tokenize(body: bytes) -> TokenizeBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body, TokenizeBody)
    if sum(one is not None for one in (asked.text, asked.messages, asked.tokens)) != 1:
        raise invalid("send one of text, messages and tokens", "text")
    return asked


def read_embed(body: bytes) -> EmbedBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body, EmbedBody)
    _check_number(asked.inputs, "inputs")
    for at, one in enumerate(asked.inputs):
        if isinstance(one, list) and not are_token_ids(one):
            raise invalid(f"inputs[{at}] is neither a text nor a list of token ids", "inputs")
    return asked


def read_rank(body: bytes) -> RankBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body, RankBody)
    _check_number(asked.documents, "documents")
    return asked


def _check_number(given: Sequence[object], name: str) -> None:
    if not 1 <= len(given) <= MAX_TEXTS:
        raise invalid(f"{len(given)} {name}; send 1 to {MAX_TEXTS}", name)


def tokens_json(tokens: Sequence[int], pieces: Sequence[bytes]) -> bytes:
    """Ids, and the bytes of each as base64."""
    return encode({"tokens": tokens, "pieces": pieces})


def vectors_json(found: Embeddings) -> bytes:
    """Vectors with as many digits as a float has."""
    return encode(
        {
            "n_embd": found.n_embd,
            "n_tokens": found.n_tokens,
            "rows": found.rows,
            "vectors": [list(one) for one in found.vectors],
        }
    )


def ranks_json(found: Ranking) -> bytes:
    """Documents by their numbers, best first."""
    return encode(found)
