"""What makes two requests the same: what a model's process computes from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from blake3 import blake3

from actors.messages.completion import Complete
from actors.messages.embedding import Embed
from actors.messages.payload import Payload, PayloadGone, Spilled, read_payload
from actors.messages.prompts import Continuation, TextPrompt, payload_of, with_payload
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
        elif isinstance(request.question, Embed):
            inputs = json.loads(read_payload(request.question.inputs))
            for one in inputs if isinstance(inputs, list) else ():
                if isinstance(one, str):
                    yield _text_digest(request.model, _raw(one))
    except (*_UNREADABLE, ValueError, RecursionError):
        return  # the model refuses it


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
