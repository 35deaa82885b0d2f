"""What makes two requests the same: what a model's process computes from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from blake3 import blake3

from actors.messages.completion import Complete
from actors.messages.embedding import Embed, Rerank
from actors.messages.payload import Payload, PayloadGone, Spilled, read_payload
from actors.messages.prompts import (
    Continuation,
    InfillPrompt,
    TextPrompt,
    payload_of,
    with_payload,
)
from actors.messages.questions import Ask, Question
from actors.messages.text import Tokenize

_UNREADABLE = (PayloadGone, AttributeError, TypeError)


def digest_of(request: Complete | Ask) -> bytes | None:
    """BLAKE3 over model, prompt and sampling, or over model and question.

    ``None`` when the holder of the prompt or the grammar is gone, or it is no payload at all. How
    much is generated, until when and from which stored rows is left out: it decides how far the
    engine gets with a computation, not which one it is.
    """
    try:
        if isinstance(request, Ask):
            return _digest_of_question(request.model, request.question)
        raw = _raw(payload_of(request.prompt))
        grammar = request.grammar
        rules = b"" if grammar is None else blake3(read_payload(grammar.rules)).digest()
    except _UNREADABLE:
        return None
    how = (
        request.model,
        with_payload(request.prompt, b""),
        request.thinking,
        request.tool_calls,
        request.candidates,
    )
    sampling = dataclasses.astuple(request.sampling)
    known = repr((how, sampling, rules, len(raw))).encode()
    return blake3(known + raw).digest()


def part_digests(request: Complete | Ask) -> Iterator[bytes]:
    """Digests of the questions that answering this one includes: its texts are tokenised.

    So a text that crashes the tokeniser is recognised, in whatever request it comes.
    """
    try:
        if isinstance(request, Complete):
            prompt = request.prompt
            if isinstance(prompt, Continuation):
                prompt = prompt.more
            if isinstance(prompt, TextPrompt):
                yield _text_digest(request.model, _raw(prompt.text))
            elif isinstance(prompt, InfillPrompt):
                yield from _digests_of_texts(request.model, json.loads(_raw(prompt.parts)))
        elif isinstance(request.question, Embed):
            yield from _digests_of_texts(request.model, json.loads(_raw(request.question.inputs)))
        elif isinstance(request.question, Rerank):
            yield from _digests_of_texts(request.model, json.loads(_raw(request.question.texts)))
    except (*_UNREADABLE, ValueError, RecursionError):
        return  # the model refuses it


def _digests_of_texts(model: str, value: Any) -> Iterator[bytes]:
    """Of every text in lists and tables."""
    if isinstance(value, str):
        yield _text_digest(model, _raw(value))
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _digests_of_texts(model, one)


def _digest_of_question(model: str, question: Question) -> bytes:
    if isinstance(question, Tokenize):
        return _text_digest(model, _raw(question.text))
    fields = {one.name: getattr(question, one.name) for one in dataclasses.fields(question)}
    del fields["ref"]
    plain = {
        name: read_payload(value) if isinstance(value, Spilled) else value
        for name, value in fields.items()
    }
    return blake3(repr((model, type(question).__name__, plain)).encode()).digest()


def _text_digest(model: str, raw: bytes) -> bytes:
    return blake3(repr((model, "Tokenize", len(raw))).encode() + raw).digest()


def _raw(text: Payload | str) -> bytes:
    return text.encode("utf-8", "replace") if isinstance(text, str) else read_payload(text)
