"""What a llama.cpp backend does besides generating: adapters, embeddings, a new context."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from native import _describe, _faults
from native._embedder import LlamaEmbedder
from native._llama import ffi, lib
from native._load import gpus, new_context
from native._lora import Adapters
from native.adapter_file import check_adapter
from native.adapters import LoadedAdapter
from native.backend import MemoryUse, ModelInfo
from native.errors import BackendClosed, InvalidParam, NotSupported
from native.estimate import n_positions
from native.model_params import check_scale

if TYPE_CHECKING:
    from native.gguf_header import GgufSummary
    from native.params import ModelParams


class Extras:
    """A part of ``LlamaBackend``: the methods that only few callers know."""

    info: ModelInfo
    _model: Any
    _context: Any
    _abort_flag: Any
    _lock: threading.RLock
    _params: ModelParams
    _headers: Sequence[GgufSummary]
    _adapters: Adapters
    _embedder: LlamaEmbedder | None

    def seq_range(self, seq: int) -> tuple[int, int] | None:
        raise NotImplementedError

    # --- adapters -----------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[LoadedAdapter, ...]:
        return self._adapters.all

    def load_adapter(self, path: str | Path, scale: float = 1.0) -> LoadedAdapter:
        check_scale(scale)
        with self._lock:
            self._require_empty()
            loaded = self._adapters.load(check_adapter(path, self._headers), scale)
            self._adapters.apply(self._context)
            return loaded

    def scale_adapter(self, adapter: int, scale: float) -> None:
        check_scale(scale)
        with self._lock:
            self._require_empty()
            self._adapters.rescale(adapter, scale)
            self._adapters.apply(self._context)

    def remove_adapter(self, adapter: int) -> None:
        with self._lock:
            self._require_empty()
            self._adapters.remove(adapter, self._context)

    def _require_empty(self) -> None:
        self._live()
        for seq in range(self.info.n_seq_max):
            if self.seq_range(seq) is not None:
                raise InvalidParam("adapter", seq, "no sequence may hold KV of the other weights")

    # --- embeddings, figures ------------------------------------------------------------------

    def embedder(self) -> LlamaEmbedder:
        with self._lock:
            model = self._weights()
            if self._params.vocab_only:
                raise NotSupported("the model was loaded with vocab_only: it has no weights")
            if self._embedder is None:
                pooling, most = _describe.default_pooling(model), n_positions(self._headers)
                self._embedder = LlamaEmbedder(model, self.info, self._params, pooling, most)
            return self._embedder

    def memory_use(self) -> MemoryUse:
        use = ffi.new("la_memory_use *")
        with self._lock:
            self._live()
            status = lib.la_context_memory(self._context, use)
            if status:
                _faults.raise_status(status)
        return MemoryUse(*(int(getattr(use, name)) for name in MemoryUse.__dataclass_fields__))

    def gpus(self) -> tuple[tuple[str, int, int], ...]:
        return gpus()

    # --- a new context ------------------------------------------------------------------------

    def rebuild(self) -> None:
        with self._lock:
            self._live()
            context, self._context = self._context, None
            lib.la_context_free(context)
            self._abort_flag[0] = 0
            lib.la_log_clear()
            self._context = new_context(self._model, self._params, self._abort_flag)
            self._adapters.apply(self._context)

    def _live(self) -> Any:
        """The model, if there is a context to compute with."""
        model = self._weights()
        if self._context is None:
            raise NotSupported(f"{self.info.description} has no context: it cannot generate")
        return model

    def _weights(self) -> Any:
        if self._model is None:
            raise BackendClosed("the backend was closed")
        return self._model
