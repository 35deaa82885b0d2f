"""Samplers of the llama backend: conversion of parameters, histories and probabilities for C."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from native import _faults
from native._checks import whole
from native._llama import ffi, lib
from native.backend import Logprobs, Sampler
from native.errors import InvalidParam
from native.sampling_params import (
    MAX_LOGPROBS,
    NUMERIC_FIELDS,
    SAMPLERS,
    SamplingParams,
)


class LlamaSampler:
    """Parameters and recent tokens of one request; memory of its own, freed with this object.

    ``lock`` and ``live`` are its backend's: ``live`` raises once the backend is closed.
    """

    __slots__ = ("_live", "_lock", "chosen", "handle")

    def __init__(self, lock: threading.RLock, live: Callable[[], Any], handle: Any) -> None:
        self._lock = lock
        self._live = live
        self.handle = handle
        self.chosen = ffi.new("int32_t *")  # where C writes the next one

    def accept(self, token: int) -> None:
        with self._lock:
            self._live()
            _accept(self.handle, (token,), is_reply=True)


def own_sampler(sampler: Sampler) -> LlamaSampler:
    """The same sampler, if a backend of this kind made it; ``InvalidParam`` otherwise."""
    if not isinstance(sampler, LlamaSampler):
        raise InvalidParam("sampler", type(sampler).__name__, "made by new_sampler of this backend")
    return sampler


def make_sampler(
    model: Any,
    params: SamplingParams,
    biases: Sequence[tuple[int, float]],
    prompt: Sequence[int],
    grammar: Any | None,
    before: bytes = b"",
) -> Any:
    """The handle of a new sampler; ``grammar`` is the compiled one, if there is one.

    ``before``: what there is already of the text that it describes. The caller keeps the model open
    during the call.
    """
    numbers = ffi.new("la_sampling *", {name: getattr(params, name) for name in NUMERIC_FIELDS})
    texts = ffi.new("la_sampling_texts *")
    kept = _fill(texts, params, biases)
    begun = ffi.from_buffer("char[]", before)
    texts.grammar = ffi.NULL if grammar is None else grammar
    texts.grammar_before, texts.n_grammar_before = begun, len(before)
    out = ffi.new("la_sampler **")
    status = lib.la_sampler_new(model, numbers, texts, out)
    del kept
    if status == lib.LA_GRAMMAR:
        raise InvalidParam("tools", "…", " ".join(_faults.last_text().split()))
    if status:
        _faults.raise_status(status)
    handle = ffi.gc(out[0], lib.la_sampler_free)
    _accept(handle, prompt, is_reply=False)
    return handle


def _accept(handle: Any, tokens: Sequence[int], *, is_reply: bool) -> None:
    """Add tokens to the sampler's history; a grammar applies only to those of the reply."""
    try:
        column = array("i", tokens)
    except (OverflowError, TypeError):
        raise InvalidParam("tokens", tokens, "a sequence of 32-bit numbers") from None
    status = lib.la_sampler_accept(
        handle, ffi.from_buffer("int32_t[]", column), len(column), is_reply
    )
    if status == lib.LA_GRAMMAR:
        raise InvalidParam("reply", int(lib.la_error_value()), _faults.last_text())
    if status:
        _faults.raise_status(status)


def logprobs_of(model: Any, logits: Any, token: int, n: int) -> Logprobs:
    """Logarithms of probabilities from ``logits``, a pointer to n_vocab floats in C."""
    whole("token", token, 0, (1 << 31) - 1)
    whole("n", n, 0, MAX_LOGPROBS)
    of_token = ffi.new("double *")
    tokens = ffi.new("int32_t[]", max(n, 1))
    values = ffi.new("double[]", max(n, 1))
    status = lib.la_logprobs(model, logits, token, n, of_token, tokens, values)
    if status:
        _faults.raise_status(status)
    pairs = zip(ffi.unpack(tokens, n), ffi.unpack(values, n), strict=True) if n else ()
    return Logprobs(of_token[0], tuple((one, value) for one, value in pairs if one >= 0))


def _fill(texts: Any, params: SamplingParams, biases: Sequence[tuple[int, float]]) -> list[Any]:
    """Write the lists and texts; the memory they lie in must outlive the call."""
    tokens = ffi.new("int32_t[]", [token for token, _ in biases])
    values = ffi.new("double[]", [bias for _, bias in biases])
    stages = ffi.new("int32_t[]", [SAMPLERS.index(one) for one in params.samplers])
    breakers = [ffi.new("char[]", text.encode()) for text in params.dry_breakers]
    table = ffi.new("char *[]", breakers)
    texts.n_bias, texts.bias_tokens, texts.bias_values = len(biases), tokens, values
    texts.n_stages, texts.stages = len(params.samplers), stages
    texts.n_breakers, texts.breakers = len(breakers), table
    return [tokens, values, stages, table, *breakers]
