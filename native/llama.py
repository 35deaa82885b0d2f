"""The llama.cpp backend: owns one model and one context, and everything that depends on them.

Lifetime rules are numbered in docs/native-safety.md. The two that shape this file: objects are
freed in reverse order of creation (samplers, context, model), and no pointer reaches C after
``close``.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# ggml forks a debugger to print a backtrace when it aborts. In a model process that only delays the
# exit, and with it the restart by its supervisor.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from native import _describe, _faults, _llama
from native._buffers import borrowed
from native._embedder import LlamaEmbedder
from native._grammars import Grammars
from native._llama import ffi, lib
from native._load import check_placement, gpus, load_model, new_context
from native._lora import LoraAdapters
from native._sampler import LlamaSampler, logprobs_of, make_sampler, own_sampler
from native._users import Users
from native.adapter_file import check_adapter
from native.adapters import LoadedAdapter
from native.backend import Batch, Buffer, Logprobs, MemoryUse, ModelInfo, Rows, Sampler
from native.control_vector import ControlVector, read_control_vectors
from native.errors import BackendClosed, ControlVectorRefused, InvalidParam, NotSupported
from native.estimate import Room, n_positions, plan
from native.file_kind import require_model
from native.fingerprint import Fingerprints
from native.gguf_header import GgufSummary
from native.model_params import check_scale
from native.overrides import model_headers
from native.params import ModelParams, SamplingParams
from native.sampling import resolved_biases
from native.sampling_params import ReplyGrammar

_INT32_MAX = (1 << 31) - 1
_ROWS: dict[Rows, int] = {"any": 0, "many": 1, "alone": 2}  # enum la_rows in kernels/rows.h
_TEXT_SHARE = 4  # share of the available memory that tokenising one text may take
_LOG_LEVELS = {"debug": 1, "info": 2, "warn": 3, "error": 4}

# llama.cpp is silent; its last warnings are kept for error texts. To see all of it on stderr:
lib.la_log_forward(_LOG_LEVELS.get(os.environ.get("LLAMA_ACTORS_LLAMA_LOG", ""), 0))

# Portable builds keep a library for each instruction set beside the extension module.
_status = lib.la_backends_load(os.fsencode(Path(_llama.__file__).parent))
if _status:
    raise NotSupported(_faults.last_text())

model_build_id = _describe.build_id
cpu_features = _describe.cpu_features
cpu_variant = _describe.cpu_variant


class LlamaBackend:
    """See ``native.backend.Backend``. Create with ``load``."""

    def __init__(
        self,
        model: Any,
        context: Any,
        abort_flag: Any,
        info: ModelInfo,
        params: ModelParams,
        headers: Sequence[GgufSummary],
        control_vector: ControlVector | None,
    ) -> None:
        self._model = model
        self._context = context
        self._params = params
        self._headers = headers
        self._control_vector = control_vector
        self._adapters = LoraAdapters(model)
        self._grammars = Grammars()
        self._embedder: LlamaEmbedder | None = None
        self._abort_flag = abort_flag  # read by C while decoding; lives as long as this object
        self._lock = threading.RLock()
        self._vocabulary = Users()
        self._pointer_out = ffi.new("const float **")
        self._first_out = ffi.new("int32_t *")
        self._last_out = ffi.new("int32_t *")
        self.info = info

    @classmethod
    def load(
        cls,
        path: str | Path,
        params: ModelParams,
        *,
        progress: Callable[[float], None] | None = None,
        fingerprints: Fingerprints | None = None,
        memory_available: int | None = None,
    ) -> LlamaBackend:
        """Check the file, load it, create the context, and decode two tokens as a proof.

        ``memory_available`` is in bytes; ``NotEnoughMemory`` before anything is loaded.
        """
        headers = model_headers(path, params.metadata_overrides)
        require_model(headers, vocab_only=params.vocab_only)
        check_placement(params, headers)
        here = gpus()
        room = Room(memory_available, sum(free for _, free, _ in here) if here else None)
        params = params.with_n_ctx(plan(headers, params, room).n_ctx or 1)
        digest = (fingerprints or Fingerprints()).of([Path(one.path) for one in headers])
        lib.la_log_clear()
        model = load_model(path, params, progress)
        if memory_available is not None:  # a text that takes all of it would end the process
            lib.la_model_spare_memory(model, max(0, memory_available) // _TEXT_SHARE)
        abort_flag = ffi.new("int32_t *")
        try:
            vector = _control_vector(model, params)
            context = None if params.vocab_only else new_context(model, params, abort_flag)
        except BaseException:
            lib.la_model_free(model)
            raise
        identity = vector.identity if vector is not None else ""
        info = _describe.model_info(model, context, params, digest, headers, identity)
        backend = cls(model, context, abort_flag, info, params, headers, vector)
        try:
            backend._steer(prove=True)
            for adapter, scale in params.lora:
                backend.load_adapter(adapter, scale)
        except BaseException:
            backend.close()
            raise
        return backend

    # --- text ---------------------------------------------------------------------------------
    # Without the lock: a running decode holds it for seconds, and the vocabulary never changes.

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        with self._vocabulary:
            return _tokenize(self._weights(), text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        column = _column(tokens)
        capacity, n_bytes = 16 * len(column) + 64, ffi.new("int64_t *")
        with self._vocabulary:
            model = self._weights()
            while True:
                out = ffi.new("char[]", capacity)
                self._check(
                    lib.la_detokenize(
                        model, ffi.from_buffer("int32_t[]", column), len(column), out, capacity,
                        special, n_bytes,
                    )
                )  # fmt: skip
                if n_bytes[0] <= capacity:
                    return bytes(ffi.buffer(out, n_bytes[0]))
                capacity = n_bytes[0]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return self.detokenize((token,), special=special)

    def compile_grammar(self, params: SamplingParams | ReplyGrammar) -> None:
        with self._vocabulary:
            self._grammars.take(self._weights(), params)

    def has_grammar(self, params: SamplingParams) -> bool:
        return self._grammars.find(params) is not None

    # --- decoding -----------------------------------------------------------------------------

    def decode(self, batch: Batch) -> None:
        with self._lock:
            self._live()
            status = lib.la_decode(
                self._context,
                _ROWS[batch.rows],
                len(batch.tokens),
                ffi.from_buffer("int32_t[]", batch.tokens),
                ffi.from_buffer("int32_t[]", batch.positions),
                ffi.from_buffer("int32_t[]", batch.seqs),
                ffi.from_buffer("int8_t[]", batch.wants),
            )
            if status:
                self._refuse(status)

    def logits(self, row: int) -> array[float]:
        _int32(row=row)
        with self._lock:
            self._live()
            status = lib.la_logits(self._context, row, self._pointer_out)
            if status:
                self._refuse(status)
            return array("f", bytes(ffi.buffer(self._pointer_out[0], 4 * self.info.n_vocab)))

    # --- sampling -----------------------------------------------------------------------------

    def new_sampler(
        self,
        params: SamplingParams,
        history: Sequence[int] = (),
        bound_by: ReplyGrammar | None = None,
    ) -> LlamaSampler:
        biases = resolved_biases(params, self._spelled, self.info.eog_tokens)
        with self._lock:
            model = self._live()
            grammar: Any = None
            if bound_by is not None:
                grammar = self._grammars.take(model, bound_by)
            elif params.is_constrained:
                grammar = self._grammars.take(model, params)
            before = b"" if bound_by is None else bound_by.before
            handle = make_sampler(model, params, biases, history, grammar, before)
            return LlamaSampler(self._lock, self._live, handle)

    def _spelled(self, text: str) -> list[int]:
        return self.tokenize(text, add_special=False)

    def sample(self, row: int, sampler: Sampler, index: int) -> int:
        one = own_sampler(sampler)
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
        one, numbers = own_sampler(sampler), self._numbers(logits)
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
            return logprobs_of(model, logits[0], token, n)

    def logprobs_from(self, logits: array[float], token: int, n: int) -> Logprobs:
        numbers = self._numbers(logits)
        with self._lock:
            return logprobs_of(self._live(), numbers, token, n)

    def grammars_compiled(self) -> int:
        """How many grammars and schemas were compiled so far, and not taken from memory."""
        return self._grammars.compiled

    def _numbers(self, logits: array[float]) -> Any:
        if logits.typecode != "f" or len(logits) != self.info.n_vocab:
            raise InvalidParam("logits", len(logits), f"{self.info.n_vocab} float32 numbers")
        return ffi.from_buffer("float[]", logits, require_writable=True)

    # --- sequences ----------------------------------------------------------------------------

    def seq_remove(self, seq: int, start: int, end: int = -1) -> bool:
        removed = ffi.new("int *")
        _int32(seq=seq, start=start, end=end)
        with self._lock:
            self._live()
            self._check(lib.la_seq_remove(self._context, seq, start, end, removed))
        return bool(removed[0])

    def seq_copy(self, src: int, dst: int, start: int = 0, end: int = -1) -> None:
        _int32(src=src, dst=dst, start=start, end=end)
        with self._lock:
            self._live()
            self._check(lib.la_seq_copy(self._context, src, dst, start, end))

    def seq_range(self, seq: int) -> tuple[int, int] | None:
        _int32(seq=seq)
        with self._lock:
            self._live()
            status = lib.la_seq_range(self._context, seq, self._first_out, self._last_out)
            self._check(status)
            first, last = self._first_out[0], self._last_out[0]
        return None if last < 0 else (first, last)

    # --- state --------------------------------------------------------------------------------

    def block_bytes(self, n_tokens: int) -> int:
        if not 1 <= n_tokens <= _INT32_MAX:
            raise InvalidParam("n_tokens", n_tokens, "at least 1")
        with self._lock:
            self._live()
            size: int = lib.la_block_bytes(self._context, n_tokens)
        return size

    def save_block(self, seq: int, start: int, end: int, into: Buffer) -> int:
        written = ffi.new("size_t *")
        _int32(seq=seq, start=start, end=end)
        with self._lock, borrowed(into, "into", writable=True) as memory:
            self._live()
            status = lib.la_save_block(
                self._context, seq, start, end, ffi.from_buffer("uint8_t[]", memory), len(memory),
                written,
            )  # fmt: skip
            self._check(status)
        return int(written[0])

    def restore_block(self, seq: int, start: int, n_tokens: int, payload: Buffer) -> None:
        self.restore_blocks(seq, ((start, n_tokens, payload),))

    def restore_blocks(self, seq: int, blocks: Sequence[tuple[int, int, Buffer]]) -> None:
        table = ffi.new("la_block[]", len(blocks))
        _int32(seq=seq)
        held: list[Any] = []  # plain references: a context manager each costs more than the call
        with self._lock:
            self._live()
            try:
                for entry, (start, n_tokens, payload) in zip(table, blocks, strict=True):
                    data = _payload(payload)
                    held.append(data)
                    _faults.fill_block(entry, start, n_tokens, data, len(data))
                self._check(lib.la_restore_blocks(self._context, seq, table, len(blocks)))
            finally:
                for data in held:
                    ffi.release(data)

    def checkpoint_bytes(self, seq: int) -> int:
        size = ffi.new("uint64_t *")
        _int32(seq=seq)
        with self._lock:
            self._live()
            self._check(lib.la_checkpoint_bytes(self._context, seq, size))
        return int(size[0])

    def save_checkpoint(self, seq: int, into: Buffer) -> int:
        written = ffi.new("size_t *")
        _int32(seq=seq)
        with self._lock, borrowed(into, "into", writable=True) as memory:
            self._live()
            with ffi.from_buffer("uint8_t[]", memory) as data:
                status = lib.la_save_checkpoint(self._context, seq, data, len(memory), written)
            self._check(status)
        return int(written[0])

    def restore_checkpoint(self, seq: int, n_tokens: int, payload: Buffer) -> None:
        _int32(seq=seq, n_tokens=n_tokens)
        with self._lock, borrowed(payload, "payload") as memory:
            self._live()
            with ffi.from_buffer("uint8_t[]", memory) as data:
                status = lib.la_restore_checkpoint(self._context, seq, n_tokens, data, len(memory))
            self._check(status)

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

    def _steer(self, *, prove: bool) -> None:
        """Apply the control vector; ``prove``: refuse one that changes nothing."""
        vector = self._control_vector
        if vector is None:
            return
        self._live()
        first, last = self._params.control_vector_layers or (1, self.info.n_layer - 1)
        numbers = ffi.from_buffer("float[]", vector.numbers)
        status = lib.la_control_vector_apply(
            self._context, numbers, len(vector.numbers), vector.n_embd, first, last, prove
        )
        if status == lib.LA_ADAPTER:
            path = self._params.control_vectors[0][0]
            raise ControlVectorRefused(path, _faults.last_text())
        self._check(status)

    def _require_empty(self) -> None:
        self._live()
        for seq in range(self.info.n_seq_max):
            if self.seq_range(seq) is not None:
                raise InvalidParam("adapter", seq, "no sequence may hold KV of the other weights")

    # --- embeddings and memory -----------------------------------------------------------------

    def embedder(self) -> LlamaEmbedder:
        with self._lock:
            model = self._weights()
            if self._params.vocab_only:
                raise NotSupported("the model was loaded with vocab_only: it has no weights")
            if self._embedder is None:
                pooling = _describe.default_pooling(self._headers[0])
                most = n_positions(self._headers)
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

    # --- life ---------------------------------------------------------------------------------

    def request_abort(self) -> None:
        self._weights()
        self._abort_flag[0] = 1

    def clear_abort(self) -> None:
        self._weights()
        self._abort_flag[0] = 0

    def rebuild(self) -> None:
        with self._lock:
            self._live()
            context, self._context = self._context, None
            lib.la_context_free(context)
            self._abort_flag[0] = 0
            lib.la_log_clear()
            self._context = new_context(self._model, self._params, self._abort_flag)
            self._steer(prove=False)
            self._adapters.apply(self._context)

    def close(self) -> None:
        if self._embedder is not None:
            self._embedder.close()  # before taking the lock: it aborts a running text
        self._vocabulary.close()
        with self._lock:
            context, model = self._context, self._model
            self._context = self._model = None
            if context is not None:
                lib.la_context_free(context)
            if model is not None:
                self._adapters.close()
                lib.la_model_free(model)

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            self.close()

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

    def _check(self, status: int) -> None:
        if status:
            self._refuse(status)

    def _refuse(self, status: int) -> NoReturn:
        _faults.raise_status(status)


def _control_vector(model: Any, params: ModelParams) -> ControlVector | None:
    """What the files of ``params`` add to this model; None if that is nothing."""
    if not params.control_vectors:
        return None
    facts = ffi.new("la_model_facts *")
    lib.la_model_describe(model, facts)
    layers = params.control_vector_layers
    if layers is not None and layers[1] > facts.n_layer:
        wanted = f"layers from 1 to {facts.n_layer}, as many as the model has"
        raise InvalidParam("control_vector_layers", layers, wanted)
    return read_control_vectors(params.control_vectors, layers, facts.n_embd, facts.n_layer)


def _tokenize(
    model: Any, text: str, add_special: bool = True, parse_special: bool = False
) -> list[int]:
    """Ids of ``text``. The caller keeps the model open during the call."""
    data = _utf8(text)
    capacity, n_out = len(data) + 8, ffi.new("int32_t *")
    while True:
        out = ffi.new("int32_t[]", capacity)
        status = lib.la_tokenize(
            model, data, len(data), out, capacity, add_special, parse_special, n_out
        )
        if status:
            _faults.raise_status(status)
        n = n_out[0]
        if n >= 0:
            return ffi.unpack(out, n) if n else []
        capacity = -n


def _check_row(row: int) -> None:
    if not 0 <= row < 1 << 31:
        raise InvalidParam("row", row, "a row of the last decode")


def _payload(source: Buffer) -> Any:
    try:
        return ffi.from_buffer("uint8_t[]", source)
    except (TypeError, ValueError, BufferError):
        raise InvalidParam("payload", type(source).__name__, "contiguous bytes") from None


def _int32(**numbers: int) -> None:
    """Refuse numbers that do not fit C's 32 bits, by name."""
    for name, number in numbers.items():
        if not -_INT32_MAX <= number <= _INT32_MAX:
            raise InvalidParam(name, number, "a 32-bit number")


def _column(tokens: Sequence[int]) -> array[int]:
    try:
        return array("i", tokens)
    except (OverflowError, TypeError):
        raise InvalidParam("tokens", tokens, "a sequence of 32-bit numbers") from None


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidParam(
            "text", error.object[error.start], "text without lone surrogates"
        ) from None
