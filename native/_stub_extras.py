"""What the stub does besides generating: adapters and embeddings, as strict as the real ones."""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from blake3 import blake3

from native._stub_cells import CellPool
from native.adapters import LoadedAdapter, adapters_identity
from native.backend import MemoryUse, ModelInfo
from native.errors import (
    AdapterRefused,
    BackendClosed,
    InvalidParam,
    InvalidToken,
    ModelNotFound,
    NotSupported,
    PromptTooLong,
)
from native.model_params import POOLINGS, ModelParams, check_scale
from native.sampling import mix

N_EMBD = 8
MAGIC = b"stub adapter"
"""A file that begins so is an adapter of every stub."""


class StubAdapters:
    """Adapters of one stub. What is applied becomes part of every cell's content."""

    def __init__(self) -> None:
        self._known: dict[int, LoadedAdapter] = {}
        self._next = 1

    @property
    def all(self) -> tuple[LoadedAdapter, ...]:
        return tuple(self._known.values())

    @property
    def salt(self) -> bytes:
        return adapters_identity(self.all).encode()

    def load(self, path: str | Path, scale: float) -> LoadedAdapter:
        try:
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise ModelNotFound(path, f"cannot be read: {error}") from error
        if not data.startswith(MAGIC):
            raise AdapterRefused(path, f"it does not begin with {MAGIC!r}")
        known = LoadedAdapter(self._next, str(path), blake3(data).digest(), scale, len(data))
        self._next += 1
        self._known[known.id] = known
        return known

    def rescale(self, adapter: int, scale: float) -> None:
        self._known[adapter] = replace(self._find(adapter), scale=scale)

    def remove(self, adapter: int) -> None:
        self._find(adapter)
        del self._known[adapter]

    def _find(self, adapter: int) -> LoadedAdapter:
        found = self._known.get(adapter)
        if found is None:
            raise InvalidParam("adapter", adapter, "the id of an adapter that is loaded")
        return found


class StubEmbedder:
    """See ``native.backend.Embedder``: a token's vector is a hash of all tokens up to it."""

    def __init__(self, params: ModelParams, n_vocab: int) -> None:
        self._params = params
        self._n_vocab = n_vocab
        self._lock = threading.Lock()
        self._closed = False
        self.is_resting = True

    @property
    def n_tokens_max(self) -> int:
        return self._params.embed_tokens

    def embed(self, tokens: Sequence[int], pooling: str = "model") -> array[float]:
        if pooling not in POOLINGS:
            raise InvalidParam("pooling", pooling, "one of " + ", ".join(POOLINGS))
        wanted = self._params.pooling if pooling == "model" else pooling
        if not tokens:
            raise InvalidParam("tokens", (), "at least one token")
        if len(tokens) > self.n_tokens_max:
            raise PromptTooLong(len(tokens), self.n_tokens_max)
        for token in tokens:
            if not 0 <= token < self._n_vocab:
                raise InvalidToken(token, self._n_vocab)
        with self._lock:
            self._live()
            self.is_resting = False
            rows = _rows(tokens)
        match wanted:
            case "none":
                return array("f", (x for row in rows for x in row))
            case "cls":
                return rows[0]
            case "last":
                return rows[-1]
            case _:
                return array("f", (sum(column) / len(rows) for column in zip(*rows, strict=True)))

    def rest(self) -> None:
        self.is_resting = True

    def close(self) -> None:
        self._closed = True

    def _live(self) -> None:
        if self._closed:
            raise BackendClosed("the backend was closed")


def _rows(tokens: Sequence[int]) -> list[array[float]]:
    rows, seen = [], b""
    for token in tokens:
        seen = blake2b(seen + struct.pack("<i", token), digest_size=8).digest()
        seed = struct.unpack("<Q", seen)[0]
        rows.append(array("f", ((mix(seed ^ i) >> 40) * 2.0**-23 - 1.0 for i in range(N_EMBD))))
    return rows


class StubExtras:
    """A part of ``StubBackend``: the methods that only few callers know."""

    info: ModelInfo
    _params: ModelParams
    _cells: CellPool
    _rows: dict[int, array[float]]
    _abort: threading.Event
    _lock: threading.RLock
    _closed: bool
    _adapters: StubAdapters
    _embedder: StubEmbedder

    @property
    def adapters(self) -> tuple[LoadedAdapter, ...]:
        return self._adapters.all

    def load_adapter(self, path: str | Path, scale: float = 1.0) -> LoadedAdapter:
        check_scale(scale)
        with self._lock:
            self._require_empty()
            loaded = self._adapters.load(path, scale)
            self._cells.salt = self._adapters.salt
            return loaded

    def scale_adapter(self, adapter: int, scale: float) -> None:
        check_scale(scale)
        with self._lock:
            self._require_empty()
            self._adapters.rescale(adapter, scale)
            self._cells.salt = self._adapters.salt

    def remove_adapter(self, adapter: int) -> None:
        with self._lock:
            self._require_empty()
            self._adapters.remove(adapter)
            self._cells.salt = self._adapters.salt

    def embedder(self) -> StubEmbedder:
        self._live()
        if self._params.vocab_only:
            raise NotSupported("the model was loaded with vocab_only: it has no weights")
        return self._embedder

    def memory_use(self) -> MemoryUse:
        self._live()
        self._require_context()
        return MemoryUse(0, self.info.n_ctx * self.info.kv_bytes_per_token, 0, 0, 0, 0)

    def gpus(self) -> tuple[tuple[str, int, int], ...]:
        return ()

    def rebuild(self) -> None:
        with self._lock:
            self._live()
            self._require_context()
            self._cells = CellPool(self.info.n_ctx, self.info.n_seq_max)
            self._cells.salt = self._adapters.salt
            self._rows.clear()
            self._abort.clear()

    def _require_empty(self) -> None:
        self._live()
        self._require_context()
        if not self._cells.is_empty:
            raise InvalidParam("adapter", 0, "no sequence may hold KV of the other weights")

    def _require_context(self) -> None:
        if not self.info.can_generate:
            raise NotSupported(f"{self.info.description} has no context: it cannot generate")

    def _live(self) -> None:
        if self._closed:
            raise BackendClosed("the backend was closed")
