"""The llama backend's samplers: from parameters to the shim's, and its answers."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import Any

from native import _faults
from native._checks import whole
from native._llama import ffi, lib
from native.backend import Logprobs, ModelInfo, Sampler
from native.errors import InvalidParam
from native.sampling_params import MAX_LOGPROBS, NUMERIC_FIELDS, SamplingParams
from native.schema import grammar_of


class LlamaSampler:
    """Parameters and recent tokens of one request; memory of its own, freed with this object."""

    __slots__ = ("_owner", "chosen", "handle")

    def __init__(self, owner: Samplers, handle: Any) -> None:
        self._owner = owner
        self.handle = handle
        self.chosen = ffi.new("int32_t *")  # where C writes the next one

    def accept(self, token: int) -> None:
        with self._owner._lock:
            self._owner._live()
            tell(self.handle, (token,), is_reply=True)


class Samplers:
    """The part of a backend that chooses tokens."""

    info: ModelInfo
    _lock: threading.RLock
    _context: Any

    def _live(self) -> Any:
        raise NotImplementedError

    def new_sampler(self, params: SamplingParams, history: Sequence[int] = ()) -> LlamaSampler:
        with self._lock:
            return LlamaSampler(self, make(self._live(), params, history))

    def sample(self, row: int, sampler: Sampler, index: int) -> int:
        one = _ours(sampler)
        with self._lock:
            self._live()
            try:
                status = lib.la_sample(self._context, row, one.handle, index, one.chosen)
            except OverflowError:
                raise InvalidParam("row or index", (row, index), "32 and 64 bits") from None
            if status:
                _faults.raise_status(status)
            return int(one.chosen[0])

    def sample_from(self, logits: array[float], sampler: Sampler, index: int) -> int:
        one, numbers = _ours(sampler), self._numbers(logits)
        with self._lock:
            self._live()
            try:
                status = lib.la_sample_from(one.handle, numbers, index, one.chosen)
            except OverflowError:
                raise InvalidParam("index", index, "a whole number of 64 bits") from None
            if status:
                _faults.raise_status(status)
            return int(one.chosen[0])

    def logprobs(self, row: int, token: int, n: int) -> Logprobs:
        logits = ffi.new("const float **")
        _check_row(row)
        with self._lock:
            model = self._live()
            status = lib.la_logits(self._context, row, logits)
            if status:
                _faults.raise_status(status)
            return logprobs(model, logits[0], token, n)

    def logprobs_from(self, logits: array[float], token: int, n: int) -> Logprobs:
        numbers = self._numbers(logits)
        with self._lock:
            return logprobs(self._live(), numbers, token, n)

    def grammars_compiled(self) -> int:
        """How many grammars and schemas were compiled so far, and not taken from memory."""
        with self._lock:
            return int(lib.la_grammars_compiled(self._live()))

    def _numbers(self, logits: array[float]) -> Any:
        if logits.typecode != "f" or len(logits) != self.info.n_vocab:
            raise InvalidParam("logits", len(logits), f"{self.info.n_vocab} float32 numbers")
        return ffi.from_buffer("float[]", logits, require_writable=True)


def _ours(sampler: Sampler) -> LlamaSampler:
    if not isinstance(sampler, LlamaSampler):
        raise InvalidParam("sampler", type(sampler).__name__, "made by new_sampler of this backend")
    return sampler


def _check_row(row: int) -> None:
    if not 0 <= row < 1 << 31:
        raise InvalidParam("row", row, "a row of the last decode")


def make(model: Any, params: SamplingParams, prompt: Sequence[int]) -> Any:
    """A sampler's handle. The model is alive and stays so for the length of the call."""
    wishes = ffi.new("la_sampling *", {name: getattr(params, name) for name in NUMERIC_FIELDS})
    texts = ffi.new("la_sampling_texts *")
    kept = _fill(texts, params)
    out = ffi.new("la_sampler **")
    status = lib.la_sampler_new(model, wishes, texts, out)
    del kept
    if status == lib.LA_GRAMMAR:
        name = "grammar" if params.grammar is not None else "json_schema"
        raise InvalidParam(name, _begin(getattr(params, name)), _reason())
    if status:
        _faults.raise_status(status)
    handle = ffi.gc(out[0], lib.la_sampler_free)
    tell(handle, prompt, is_reply=False)
    return handle


def tell(handle: Any, tokens: Sequence[int], *, is_reply: bool) -> None:
    """Let the sampler know tokens of the text; only those of the reply concern a grammar."""
    try:
        column = array("i", tokens)
    except (OverflowError, TypeError):
        raise InvalidParam("tokens", tokens, "a sequence of 32-bit numbers") from None
    status = lib.la_sampler_accept(
        handle, ffi.from_buffer("int32_t[]", column), len(column), is_reply
    )
    if status == lib.LA_GRAMMAR:
        raise InvalidParam("reply", int(lib.la_error_value()), _reason())
    if status:
        _faults.raise_status(status)


def logprobs(model: Any, logits: Any, token: int, n: int) -> Logprobs:
    """Of ``logits``, a pointer to n_vocab floats."""
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


def _fill(texts: Any, params: SamplingParams) -> list[Any]:
    """Write the lists and texts; the memory they lie in must outlive the call."""
    tokens = ffi.new("int32_t[]", [token for token, _ in params.logit_bias])
    values = ffi.new("double[]", [bias for _, bias in params.logit_bias])
    breakers = [ffi.new("char[]", text.encode()) for text in params.dry_breakers]
    table = ffi.new("char *[]", breakers)
    texts.n_bias, texts.bias_tokens, texts.bias_values = len(params.logit_bias), tokens, values
    texts.n_breakers, texts.breakers = len(breakers), table
    kept = [tokens, values, table, *breakers]
    grammar = params.grammar
    if params.json_schema is not None:
        grammar = grammar_of(params.json_schema)
    if grammar is not None:
        kept.append(ffi.new("char[]", grammar.encode()))
        texts.grammar = kept[-1]
    return kept


def _begin(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


def _reason() -> str:
    return " ".join(_faults.last_text().split())
