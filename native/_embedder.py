"""Embeddings by llama.cpp: a small context beside the one that generates."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import Any

from native import _faults
from native._llama import ffi, lib
from native._load import RANK, new_embedder
from native.backend import ModelInfo
from native.errors import BackendClosed, InvalidParam, NotSupported, PromptTooLong
from native.model_params import POOLINGS, ModelParams

_SMALLEST = 256  # tokens; the context grows with the texts, up to params.embed_tokens


class LlamaEmbedder:
    """See ``native.backend.Embedder``. Has a lock of its own: generation continues meanwhile."""

    def __init__(
        self,
        model: Any,
        info: ModelInfo,
        params: ModelParams,
        default: str,
        n_positions: int | None,
    ) -> None:
        """``default`` is the pooling that the model file names.

        More than ``n_positions`` tokens would be looked up beyond the end of a table.
        """
        self._model = model
        self._info = info
        self._params = params
        self._default = default if params.pooling == "model" else params.pooling
        self._lock = threading.Lock()
        self._abort_flag = ffi.new("int32_t *")
        self._handle: Any = None
        self.n_tokens_max = min(params.embed_tokens, n_positions or params.embed_tokens)
        self._made_for: tuple[str, int] = ("", 0)

    def embed(self, tokens: Sequence[int], pooling: str = "model") -> array[float]:
        if pooling not in POOLINGS:
            raise InvalidParam("pooling", pooling, "one of " + ", ".join(POOLINGS))
        wanted = self._default if pooling == "model" else pooling
        if wanted == RANK:
            raise NotSupported(
                "this model ranks texts: call rerank(), or name a pooling to embed them anyway"
            )
        return self._compute(tokens, wanted)

    def score(self, tokens: Sequence[int]) -> float:
        if self._info.rank is None:
            raise NotSupported(
                f"{self._info.description} has no head that ranks texts (cls.weight or "
                "cls.output.weight); use a reranking model"
            )
        return self._compute(tokens, RANK)[0]  # of several scores the first, as llama-server does

    def _compute(self, tokens: Sequence[int], pooling: str) -> array[float]:
        n, most = len(tokens), self.n_tokens_max
        if n > most:
            raise PromptTooLong(n, most)
        if not n:
            raise InvalidParam("tokens", (), "at least one token")
        try:
            column = array("i", tokens)
        except (OverflowError, TypeError):
            raise InvalidParam("tokens", tokens, "a sequence of 32-bit numbers") from None
        with self._lock:
            self._live()
            self._make(pooling, n)
            out = array("f", bytes(4 * self._width(pooling) * (n if pooling == "none" else 1)))
            status = lib.la_embed(
                self._handle,
                n,
                ffi.from_buffer("int32_t[]", column),
                ffi.from_buffer("float[]", out),
                len(out),
            )
            if status:
                _faults.raise_status(status)
            return out

    def _width(self, pooling: str) -> int:
        if pooling != RANK:
            return self._info.n_embd_out
        facts = ffi.new("la_model_facts *")
        lib.la_model_describe(self._model, facts)
        return int(facts.n_cls_out)

    def _make(self, pooling: str, n: int) -> None:
        """Make a context for so many tokens; a small one first, since most texts are short."""
        if self._handle is not None and self._made_for[0] == pooling and n <= self._made_for[1]:
            return
        self._free()
        size = _SMALLEST
        while size < n:
            size *= 2
        size = min(size, self.n_tokens_max)
        self._handle = new_embedder(self._model, self._params, pooling, size, self._abort_flag)
        self._made_for = (pooling, size)

    def rest(self) -> None:
        with self._lock:
            self._free()

    @property
    def is_resting(self) -> bool:
        return self._handle is None

    def _free(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.la_embedder_free(handle)

    def close(self) -> None:
        self._abort_flag[0] = 1  # before taking the lock: it aborts a running text
        with self._lock:
            self._free()
            self._model = None

    def _live(self) -> None:
        if self._model is None:
            raise BackendClosed("the backend was closed")
