"""Embeddings of the stub backend, as strict as the real ones."""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from native.errors import BackendClosed, InvalidParam, InvalidToken, PromptTooLong
from native.model_params import POOLINGS, ModelParams
from native.sampling import mix

N_EMBD = 8
N_BYTES = 256  # tokens that are bytes; the others begin and end texts


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
        rows = self._rows(tokens)
        match wanted:
            case "none":
                return array("f", (x for row in rows for x in row))
            case "cls":
                return rows[0]
            case "last":
                return rows[-1]
            case _:
                return array("f", (sum(column) / len(rows) for column in zip(*rows, strict=True)))

    def score(self, tokens: Sequence[int]) -> float:
        """The share of the query's bytes that the text has, too."""
        self._rows(tokens)
        parts: list[set[int]] = [set()]
        for token in tokens:
            if token < N_BYTES:
                parts[-1].add(token)
            else:
                parts.append(set())
        nothing: set[int] = set()
        query, text, *_ = [*filter(None, parts), nothing, nothing]
        return len(query & text) / max(1, len(query))

    def _rows(self, tokens: Sequence[int]) -> list[array[float]]:
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
            return _rows(tokens)

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
