"""Tokens in answers that show log-probabilities, in OpenAI's two forms and llama.cpp's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from native.backend import Logprobs
from runtime.client.results import Completion, TokenEvent


def ids_of(event: TokenEvent | Completion) -> Iterator[int]:
    """Every token whose text an answer shows."""
    for token, found in zip(event.tokens, event.logprobs or (), strict=False):
        yield token
        if found is not None:
            yield from (other for other, _ in found.top)


def chat_logprobs(
    tokens: tuple[int, ...], logprobs: tuple[Logprobs | None, ...], pieces: Mapping[int, bytes]
) -> list[dict[str, Any]]:
    """``logprobs.content`` of a chat completion."""
    return [
        {
            **_one(token, 0.0 if found is None else found.chosen, pieces),
            "top_logprobs": [
                _one(other, value, pieces) for other, value in (found.top if found else ())
            ],
        }
        for token, found in zip(tokens, logprobs, strict=False)
    ]


def _one(token: int, logprob: float, pieces: Mapping[int, bytes]) -> dict[str, Any]:
    piece = pieces.get(token, b"")
    text = piece.decode("utf-8", "replace")
    return {"id": token, "token": text, "bytes": list(piece), "logprob": max(logprob, -9999.0)}


def text_logprobs(
    tokens: tuple[int, ...],
    logprobs: tuple[Logprobs | None, ...],
    pieces: Mapping[int, bytes],
    offset: int,
) -> dict[str, Any]:
    """``logprobs`` of a text completion, as OpenAI's older form has it.

    ``offset``: characters of the text before these tokens.
    """
    shown = [pieces.get(token, b"").decode("utf-8", "replace") for token in tokens]
    offsets = []
    for text in shown:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": shown,
        "token_logprobs": [None if one is None else max(one.chosen, -9999.0) for one in logprobs],
        "top_logprobs": [
            None
            if one is None
            else {
                pieces.get(other, b"").decode("utf-8", "replace"): max(value, -9999.0)
                for other, value in one.top
            }
            for one in logprobs
        ],
        "text_offset": offsets,
    }
