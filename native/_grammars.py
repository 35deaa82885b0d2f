"""Grammars of the llama backend: compiled once, on any thread, and kept for the next request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

from native import _faults
from native._llama import ffi, lib
from native.errors import InvalidParam
from native.sampling_params import ReplyGrammar, SamplingParams
from native.schema import grammar_of

MAX_KEPT = 256
MAX_KEPT_BYTES = 64 << 20


class _Key(NamedTuple):
    option: str
    """Which one holds the text."""
    text: str
    shown: tuple[int, ...] = ()
    """Control tokens that have a text for it."""


class Grammars:
    """The compiled grammars of one model, least recently used first.

    Its methods are for any thread. The caller keeps the model open during a call.
    """

    def __init__(self) -> None:
        self.compiled = 0
        """How many were compiled, and not found here."""
        self._kept: OrderedDict[_Key, Any] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()  # held for moments: not while one is compiled

    def find(self, params: SamplingParams | ReplyGrammar) -> Any | None:
        """The compiled grammar of ``params``, if it is here."""
        key = _key(params)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        return found

    def take(self, model: Any, params: SamplingParams | ReplyGrammar) -> Any:
        """The compiled grammar of ``params``, which have one; InvalidParam if it cannot be used."""
        found = self.find(params)
        if found is None:
            found = _compiled(model, params)
            with self._lock:
                self._keep(_key(params), found)
        return found

    def _keep(self, key: _Key, compiled: Any) -> None:
        self.compiled += 1
        if key not in self._kept:  # else another thread was faster
            self._kept[key] = compiled
            self._n_bytes += _size(key, compiled)
        while len(self._kept) > MAX_KEPT or (
            self._n_bytes > MAX_KEPT_BYTES and len(self._kept) > 1
        ):
            self._n_bytes -= _size(*self._kept.popitem(last=False))


def _key(params: SamplingParams | ReplyGrammar) -> _Key:
    if isinstance(params, ReplyGrammar):
        return _Key("tools", params.text, params.shown)
    if params.grammar is not None:
        return _Key("grammar", params.grammar)
    return _Key("json_schema", params.json_schema or "")


def _size(key: _Key, compiled: Any) -> int:
    return len(key.text) + int(lib.la_grammar_bytes(compiled))


def _compiled(model: Any, params: SamplingParams | ReplyGrammar) -> Any:
    option, text, tokens = _key(params)
    rules = grammar_of(text) if option == "json_schema" else text
    out, shown_tokens = ffi.new("la_grammar **"), ffi.new("int32_t[]", tokens)
    rule_bytes = ffi.new("char[]", rules.encode())
    status = lib.la_grammar_new(model, rule_bytes, shown_tokens, len(tokens), out)
    if status == lib.LA_GRAMMAR:
        shown = text if len(text) <= 60 else text[:60] + "…"
        raise InvalidParam(option, shown, " ".join(_faults.last_text().split()))
    if status:
        _faults.raise_status(status)
    return ffi.gc(out[0], lib.la_grammar_free)
