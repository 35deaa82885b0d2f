"""The peer: the same wrapper around llama.cpp, in a process of its own, without any actor.

One child process per ``BareModel``, so that a crash of llama.cpp does not end a benchmark silently
and nothing of it runs in the process that times the actors. Times are measured in the child.
"""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self, TypeVar

from cache.keys import BLOCK_TOKENS
from native import load_backend
from native.backend import Backend, Batch, MemoryUse, Rows
from native.params import ModelParams, SamplingParams
from supervision.process import die_with_parent

T = TypeVar("T")
_SEQ = 0
_FIRST_CELL, _CELL_BYTES = 16, 12
"""Where positions lie in a payload; see native/shim/state.cpp."""
_SWEEP_BYTES = 128 << 20
"""More than the last cache of the usual machine: what is copied next comes from memory."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a model that a benchmark needs to write prompts."""

    n_vocab: int
    eog_tokens: frozenset[int]
    can_cut: bool = True
    """Whether what is stored of a sequence can be used up to any of its tokens."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A reply, and the seconds between its first and its last token."""

    tokens: tuple[int, ...]
    seconds: float
    gaps_ms: tuple[float, ...]
    """From each token to the next."""


class BareModel:
    """A loaded model without actors; close it, or use it in a ``with``. Times in milliseconds."""

    def __init__(self, path: Path, params: ModelParams) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _load, (path, params)
        )
        self.facts: Facts = self._call(_Child.facts)

    def tokenize(self, text: str) -> list[int]:
        return self._call(_Child.tokenize, text)

    def parts_of_characters(self) -> tuple[int, ...]:
        """Tokens that are no whole characters by themselves."""
        return self._call(_Child.parts_of_characters)

    def fill(self, tokens: Sequence[int], rows: Rows = "any") -> float:
        """Prefill ``tokens`` into an empty context; returns the time to the first new token."""
        return self._call(_Child.fill, list(tokens), rows)

    def decode_together(self, prompts: Sequence[Sequence[int]], n_steps: int, rows: Rows) -> float:
        """Time of a step that decodes one token of each sequence: the median of ``n_steps``."""
        return self._call(_Child.decode_together, [list(one) for one in prompts], n_steps, rows)

    def decode_last(self) -> float:
        """Remove the last filled token and decode it again, with sampling."""
        return self._call(_Child.decode_last)

    def generate(self, prompt: Sequence[int], n_tokens: int, params: SamplingParams) -> Generated:
        """Decode and sample ``n_tokens``, fewer if the model ends its text."""
        return self._call(_Child.generate, list(prompt), n_tokens, params)

    def keep_blocks(self) -> int:
        """Save what is filled as blocks into shared memory; their size in bytes."""
        return self._call(_Child.keep_blocks)

    def keep_repeated(self, n_tokens: int) -> int:
        """Like ``keep_blocks``, for a sequence whose every block is a copy of the first filled one.

        The content of a block does not change the time that restoring it takes, and computing
        long prompts takes minutes.
        """
        return self._call(_Child.keep_repeated, n_tokens)

    def memory_use(self) -> MemoryUse:
        """Bytes that llama.cpp reports as allocated."""
        return self._call(_Child.memory_use)

    def restore(self, *, fresh: bool) -> float:
        """Restore the kept blocks; ``fresh`` through a mapping that was never read before."""
        return self._call(_Child.restore, fresh)

    def copy(self, *, fresh: bool) -> float:
        """memcpy the same bytes from the same memory into a buffer that was written before."""
        return self._call(_Child.copy, fresh)

    def close(self) -> None:
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Callable[..., T], *args: Any) -> T:
        answer: T = self._pool.submit(_run, method.__name__, args).result()
        return answer


class _Child:
    """The part in the child process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._batch = Batch()
        self._filled: list[int] = []
        self._kept: list[tuple[int, int, int, int]] = []
        """Blocks in shared memory: start, tokens, offset, bytes."""
        self._memory = -1
        self._memory_bytes = 0
        self._mapping: mmap.mmap | None = None
        self._target = bytearray()
        self._swept = bytearray()

    def facts(self) -> Facts:
        info = self._backend.info
        return Facts(info.n_vocab, info.eog_tokens, info.can_cut)

    def tokenize(self, text: str) -> list[int]:
        return self._backend.tokenize(text)

    def parts_of_characters(self) -> tuple[int, ...]:
        pieces = map(self._backend.piece, range(self._backend.info.n_vocab))
        return tuple(n for n, piece in enumerate(pieces) if not _is_text(piece))

    def fill(self, tokens: list[int], rows: Rows = "any") -> float:
        self._empty()
        started = time.perf_counter()
        row = self._prefill(tokens, rows)
        self._backend.sample(row, self._backend.new_sampler(SamplingParams()), 0)
        self._filled = tokens
        return 1e3 * (time.perf_counter() - started)

    def decode_last(self) -> float:
        position = len(self._filled) - 1
        self._backend.seq_remove(_SEQ, position)
        sampler = self._backend.new_sampler(SamplingParams(), self._filled)
        started = time.perf_counter()
        self._batch.clear()
        row = self._batch.add(self._filled[-1], position, _SEQ, True)
        self._backend.decode(self._batch)
        sampler.accept(self._backend.sample(row, sampler, 0))
        return 1e3 * (time.perf_counter() - started)

    def decode_together(self, prompts: list[list[int]], n_steps: int, rows: Rows) -> float:
        self._empty()
        for seq, prompt in enumerate(prompts):
            self._prefill(prompt, seq=seq)
        times: list[float] = []
        for step in range(n_steps):
            self._batch.clear()
            self._batch.rows = rows
            for seq, prompt in enumerate(prompts):
                self._batch.add(prompt[step % len(prompt)], len(prompt) + step, seq, True)
            started = time.perf_counter()
            self._backend.decode(self._batch)
            times.append(1e3 * (time.perf_counter() - started))
        for seq in range(len(prompts)):
            self._backend.seq_remove(seq, 0)
        return median(times)

    def generate(self, prompt: list[int], n_tokens: int, params: SamplingParams) -> Generated:
        self._empty()
        sampler = self._backend.new_sampler(params, prompt)
        row = self._prefill(prompt)
        tokens: list[int] = []
        times: list[float] = []
        while True:
            token = self._backend.sample(row, sampler, len(tokens))
            sampler.accept(token)
            times.append(time.perf_counter())
            if token not in self._backend.info.eog_tokens:
                tokens.append(token)
            if token in self._backend.info.eog_tokens or len(tokens) == n_tokens:
                gaps = tuple(1e3 * (b - a) for a, b in itertools.pairwise(times))
                return Generated(tuple(tokens), times[-1] - times[0], gaps)
            self._batch.clear()
            row = self._batch.add(token, len(prompt) + len(tokens) - 1, _SEQ, True)
            self._backend.decode(self._batch)

    def memory_use(self) -> MemoryUse:
        return self._backend.memory_use()

    def keep_blocks(self) -> int:
        spans = [
            (start, min(BLOCK_TOKENS, len(self._filled) - start))
            for start in range(0, len(self._filled), BLOCK_TOKENS)
        ]
        with memoryview(self._place(spans)) as view:
            for start, n_tokens, at, n_bytes in self._kept:
                with view[at : at + n_bytes] as into:
                    self._backend.save_block(_SEQ, start, start + n_tokens, into)
        return self._memory_bytes

    def keep_repeated(self, n_tokens: int) -> int:
        payload = bytearray(self._backend.block_bytes(BLOCK_TOKENS))
        self._backend.save_block(_SEQ, 0, BLOCK_TOKENS, payload)
        starts = range(0, n_tokens, BLOCK_TOKENS)
        with memoryview(self._place([(start, BLOCK_TOKENS) for start in starts])) as view:
            for start, _, at, n_bytes in self._kept:
                for index in range(BLOCK_TOKENS):
                    where = _FIRST_CELL + _CELL_BYTES * index
                    payload[where : where + 4] = (start + index).to_bytes(4, sys.byteorder)
                view[at : at + n_bytes] = payload
        return self._memory_bytes

    def _place(self, spans: Sequence[tuple[int, int]]) -> mmap.mmap:
        """Shared memory for blocks of these tokens; the mapping is for writing them once."""
        self._kept, offset = [], 0
        for start, n_tokens in spans:
            n_bytes = self._backend.block_bytes(n_tokens)
            self._kept.append((start, n_tokens, offset, n_bytes))
            offset += n_bytes
        if self._memory >= 0:
            os.close(self._memory)
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        self._memory_bytes = offset
        self._memory = os.memfd_create("bench")
        os.ftruncate(self._memory, offset)
        self._target = bytearray(offset)
        self._target[::4096] = b"\1" * len(self._target[::4096])  # touch every page
        return mmap.mmap(self._memory, offset)

    def restore(self, fresh: bool) -> float:
        self._backend.seq_remove(_SEQ, 0)
        self._sweep()
        with memoryview(self._map(fresh)) as view:
            started = time.perf_counter()
            blocks = [(start, n, view[at : at + size]) for start, n, at, size in self._kept]
            self._backend.restore_blocks(_SEQ, blocks)
            elapsed = time.perf_counter() - started
            for _, _, block in blocks:
                block.release()
        return 1e3 * elapsed

    def copy(self, fresh: bool) -> float:
        self._sweep()
        with memoryview(self._map(fresh)) as source, memoryview(self._target) as target:
            started = time.perf_counter()
            target[:] = source
            return 1e3 * (time.perf_counter() - started)

    def _sweep(self) -> None:
        """Fill the CPU's caches with other data, so that no order of runs is favoured."""
        if not self._swept:
            self._swept = bytearray(b"\1") * _SWEEP_BYTES
        self._swept.count(0)

    def _map(self, fresh: bool) -> mmap.mmap:
        if fresh or self._mapping is None:
            if self._mapping is not None:
                self._mapping.close()
            self._mapping = mmap.mmap(
                self._memory, self._memory_bytes, mmap.MAP_SHARED, mmap.PROT_READ
            )
        return self._mapping

    def _empty(self) -> None:
        self._backend.seq_remove(_SEQ, 0)
        self._filled = []

    def _prefill(self, tokens: list[int], rows: Rows = "any", seq: int = _SEQ) -> int:
        """Decode all tokens in steps of the batch size; the row of the last one's logits."""
        step, row = self._backend.info.n_batch, 0
        for at in range(0, len(tokens), step):
            self._batch.clear()
            self._batch.rows = rows
            part = tokens[at : at + step]
            found = self._batch.extend_prefill(part, at, seq, at + step >= len(tokens))
            self._backend.decode(self._batch)
            row = found if found is not None else row
        return row


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_child: _Child | None = None


def _load(path: Path, params: ModelParams) -> None:
    global _child  # noqa: PLW0603  # the pool's worker has no other place for its state
    # Linux shares CPU time among sessions first; the node has one of its own, so must its peer.
    os.setsid()
    die_with_parent(os.getppid())  # a benchmark that is killed leaves no peer behind
    _child = _Child(load_backend("llama", path, params))


def _run(method: str, args: tuple[Any, ...]) -> Any:
    return getattr(_child, method)(*args)
