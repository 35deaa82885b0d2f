"""A backend without native code: deterministic, fast to load, and as strict as the real one.

For tests of all code above this package. It does not accept everything, as a mock would: cells are
kept per sequence and counted against ``n_ctx``, payloads are real bytes, and the next token depends
on the whole content of the sequence. KV restored at the wrong place, from another prefix or half
written therefore changes the continuation, exactly as it would with a model.

Text is bytes: token ``b`` in 0..255 is the byte, 256 begins and 257 ends a text. Continuations are
mostly printable ASCII. A text whose last byte is EOT (4) continues with end of text (257), so a
test can cause a natural stop at any point; otherwise 257 is never chosen at temperature 0.

A text that holds ``FATAL`` is poisonous: decoding its last byte aborts the process, as a failed
assertion in native code does. No exception is raised, and no clean-up runs. One that holds
``FATAL_TEXT`` aborts the process when it is tokenised.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from native._buffers import borrowed
from native._stub_adapters import StubAdapters
from native._stub_cells import CELL_BYTES, BlockFormat, CellPool
from native._stub_embedder import N_EMBD, StubEmbedder
from native._stub_sampler import (
    StubSampler,
    choose,
    logprobs_of,
    new_sampler,
    refuse_grammar,
)
from native.adapters import LoadedAdapter
from native.backend import (
    Batch,
    Buffer,
    Logprobs,
    MemoryUse,
    ModelInfo,
    RankFormat,
    Sampler,
)
from native.errors import (
    BackendClosed,
    DecodeAborted,
    InvalidParam,
    InvalidToken,
    NoKvSpace,
    NotSupported,
    PromptTooLong,
    StateRefused,
)
from native.model_params import check_scale
from native.params import ModelParams, SamplingParams
from native.sampling import Breaker, resolved_biases
from native.sampling_params import ReplyGrammar

BEGIN, END, N_VOCAB, EOT = 256, 257, 258, 4
_SPECIAL = {"<s>": BEGIN, "</s>": END}
_SPECIAL_PATTERN = re.compile(r"(<s>|</s>)")
_PRINTABLE_BONUS, _END_BONUS = 4.0, 100.0
FATAL = b"\x18fatal\x18"
"""With control characters (CAN) around it, so that no other text contains it by accident."""
FATAL_TEXT = "\x19fatal\x19"
UNCUTTABLE = "uncuttable"
"""A stub whose name begins so behaves as a recurrent model: no blocks, no partial removal."""
_PAD = 256  # llama.cpp rounds n_ctx up to this


class StubBackend:
    """See ``native.backend.Backend``. Create with ``load``.

    ``seconds_per_token`` makes every decoded row take that long; an abort ends the wait at once.
    """

    def __init__(
        self, info: ModelInfo, cells: CellPool, seconds_per_token: float, params: ModelParams
    ) -> None:
        self.info = info
        self._params = params
        self._adapters = StubAdapters()
        self._embedder = StubEmbedder(params, N_VOCAB)
        self.seconds_per_token = seconds_per_token
        self._cells = cells
        self._format = BlockFormat(info.kv_bytes_per_token)
        self._rows: dict[int, array[float]] = {}
        self._abort = threading.Event()
        self._lock = threading.RLock()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        params: ModelParams,
        *,
        progress: Callable[[float], None] | None = None,
        seconds_per_token: float = 0.0,
    ) -> StubBackend:
        """Make a stub. ``path`` is only a name: another name is another model (fingerprint)."""
        if params.control_vectors:
            raise NotSupported("the stub has no layers, and applies no control vectors")
        for done in (0.0, 1.0):
            if progress is not None:
                progress(done)
        n_ctx = 0 if params.vocab_only else -(-(params.n_ctx or 4096) // _PAD) * _PAD
        info = _info(str(path), params, n_ctx)
        backend = cls(info, CellPool(n_ctx, params.n_seq_max), seconds_per_token, params)
        for adapter, scale in params.lora:
            backend.load_adapter(adapter, scale)
        return backend

    # --- text ---------------------------------------------------------------------------------

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        self._live()
        if FATAL_TEXT in text:
            os.abort()
        tokens = [BEGIN] if add_special else []
        for part in _SPECIAL_PATTERN.split(text) if parse_special else [text]:
            if parse_special and part in _SPECIAL:
                tokens.append(_SPECIAL[part])
            else:
                tokens += _utf8(part)
        return tokens

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        return b"".join(self.piece(token, special=special) for token in tokens)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        self._live()
        if _known(token) < BEGIN:
            return bytes((token,))
        return {BEGIN: b"<s>", END: b"</s>"}[token] if special else b""

    # --- decoding -----------------------------------------------------------------------------

    def decode(self, batch: Batch) -> None:
        with self._lock:
            self._live()
            self._require_context()
            self._check_batch(batch)
            self._rows.clear()
            if not self._cells.has_room(len(batch)):
                raise NoKvSpace("no free KV cells for this batch: remove or shorten a sequence")
            rows = zip(batch.tokens, batch.positions, batch.seqs, batch.wants, strict=True)
            wanted: dict[int, array[float]] = {}
            for row, (token, position, seq, wants) in enumerate(rows):
                # The wait stands for the compute time; an abort sets the event and ends the decode.
                if self._abort.wait(self.seconds_per_token):
                    raise DecodeAborted("request_abort() was called; trim, then clear_abort()")
                self._cells.append(seq, position, token)
                if token == FATAL[-1] and self._ends_fatally(seq, position):
                    os.abort()
                if wants:
                    wanted[row] = _next_logits(self._cells.content(seq), token)
            self._rows = wanted

    def _ends_fatally(self, seq: int, position: int) -> bool:
        last = self._cells.tokens(seq, max(0, position + 1 - len(FATAL)), position + 1)
        return last == list(FATAL)

    def _check_batch(self, batch: Batch) -> None:
        if not 1 <= len(batch) <= self.info.n_batch:
            raise InvalidParam(
                "batch", len(batch), f"a batch holds 1 to n_batch rows: {self.info.n_batch}"
            )
        expected: dict[int, int] = {}
        for token, position, seq in zip(batch.tokens, batch.positions, batch.seqs, strict=True):
            _known(token)
            self._check_seq(seq)
            following = expected.get(seq)
            if following is None:
                following = self._cells.end(seq)
            if position != following:
                raise InvalidParam("position", position, f"{following} (they follow one another)")
            if following >= self.info.n_ctx:
                raise PromptTooLong(following + 1, self.info.n_ctx)
            expected[seq] = following + 1

    def logits(self, row: int) -> array[float]:
        with self._lock:
            self._live()
            found = self._rows.get(row)
            if found is None:
                raise InvalidParam("row", row, "the last decode made no logits for this row")
            return array("f", found)

    # --- sampling -----------------------------------------------------------------------------

    def new_sampler(
        self,
        params: SamplingParams,
        history: Sequence[int] = (),
        bound_by: ReplyGrammar | None = None,
    ) -> StubSampler:
        self._live()
        if bound_by is not None:
            params = replace(params, grammar=bound_by.text)
        breakers = [self._breaker(text) for text in params.dry_breakers if params.dry_multiplier]
        biases = resolved_biases(params, self._spelled, self.info.eog_tokens)
        return new_sampler(params, history, breakers, biases, N_VOCAB, self._live)

    def compile_grammar(self, params: SamplingParams | ReplyGrammar) -> None:
        if isinstance(params, ReplyGrammar):
            params = SamplingParams(grammar=params.text)
        refuse_grammar(params)

    def has_grammar(self, params: SamplingParams) -> bool:
        del params
        return False

    def sample(self, row: int, sampler: Sampler, index: int) -> int:
        return self.sample_from(self.logits(row), sampler, index)

    def sample_from(self, logits: array[float], sampler: Sampler, index: int) -> int:
        self._live()
        return choose(logits, sampler, index, N_VOCAB)

    def logprobs(self, row: int, token: int, n: int) -> Logprobs:
        return self.logprobs_from(self.logits(row), token, n)

    def logprobs_from(self, logits: array[float], token: int, n: int) -> Logprobs:
        self._live()
        return logprobs_of(logits, token, n, N_VOCAB)

    def _spelled(self, text: str) -> list[int]:
        return self.tokenize(text, add_special=False)

    def _breaker(self, text: str) -> Breaker:
        return Breaker.of(
            text,
            N_VOCAB,
            lambda token: self.piece(token, special=True),
            lambda sought: self.tokenize(sought, add_special=False, parse_special=True),
        )

    # --- sequences ----------------------------------------------------------------------------

    def seq_remove(self, seq: int, start: int, end: int = -1) -> bool:
        with self._lock:
            self._live()
            self._check_seq(seq)
            held = self._cells.end(seq)
            first, last = max(start, 0), end if end >= 0 else held
            if not self.info.can_cut and max(first, 0) < min(last, held) and last - first < held:
                return False  # as a recurrent memory: all or nothing
            self._cells.remove(seq, first, last)
        return True

    def seq_copy(self, src: int, dst: int, start: int = 0, end: int = -1) -> None:
        with self._lock:
            self._live()
            self._check_seq(src)
            self._check_seq(dst)
            start = max(start, 0)
            held = self._cells.end(src)
            end = held if end < 0 else end
            if src == dst or end <= start:
                return
            if end > held or start < self._cells.first(src):
                raise InvalidParam("range", end, f"the source ends before {held}")
            if self._cells.end(dst) != start:
                raise InvalidParam("position", start, f"{self._cells.end(dst)} (a copy continues)")
            if not self.info.can_cut and (start > 0 or end < held):
                raise StateRefused("only whole sequences of this model can be copied")
            self._cells.share(src, dst, start, end)

    def seq_range(self, seq: int) -> tuple[int, int] | None:
        with self._lock:
            self._live()
            self._check_seq(seq)
            end = self._cells.end(seq)
            return (self._cells.first(seq), end - 1) if end else None

    # --- state --------------------------------------------------------------------------------

    def block_bytes(self, n_tokens: int) -> int:
        self._live()
        if n_tokens < 1:
            raise InvalidParam("n_tokens", n_tokens, "at least 1")
        return self._format.size(n_tokens)

    def save_block(self, seq: int, start: int, end: int, into: Buffer) -> int:
        self._require_cut()
        return self._save(seq, start, end, into)

    def _save(self, seq: int, start: int, end: int, into: Buffer) -> int:
        with self._lock, borrowed(into, "into", writable=True) as memory:
            self._live()
            self._check_seq(seq)
            held = self._cells.end(seq)
            contents = self._cells.slice(seq, start, end) if 0 <= start < end <= held else None
            if contents is None:
                raise InvalidParam("range", end, f"the sequence ends before {held} or has a hole")
            size = self._format.size(end - start)
            if size > len(memory):
                raise InvalidParam("into", len(memory), f"at least {size} bytes")
            memory[:size] = self._format.pack(contents)
            return size

    def restore_block(self, seq: int, start: int, n_tokens: int, payload: Buffer) -> None:
        self.restore_blocks(seq, ((start, n_tokens, payload),))

    def restore_blocks(self, seq: int, blocks: Sequence[tuple[int, int, Buffer]]) -> None:
        self._require_cut()
        self._restore(seq, blocks)

    def _require_cut(self) -> None:
        self._live()
        if not self.info.can_cut:
            raise StateRefused("this model's memory cannot be cut into blocks")

    def _restore(self, seq: int, blocks: Sequence[tuple[int, int, Buffer]]) -> None:
        with self._lock:
            self._live()
            self._check_seq(seq)
            contents: list[bytes] = []
            end = self._cells.end(seq)
            for start, n_tokens, payload in blocks:
                if start != end:
                    raise StateRefused(f"a block starts at {start}, the sequence ends at {end}")
                contents += self._format.unpack(payload, start, n_tokens, N_VOCAB)
                end += n_tokens
            if end > self.info.n_ctx:
                raise PromptTooLong(end, self.info.n_ctx)
            if not self._cells.has_room(len(contents)):
                raise NoKvSpace("no free KV cells for this block: remove or shorten a sequence")
            self._cells.adopt(seq, contents)

    def checkpoint_bytes(self, seq: int) -> int:
        return self.block_bytes(self._whole(seq))

    def save_checkpoint(self, seq: int, into: Buffer) -> int:
        return self._save(seq, 0, self._whole(seq), into)

    def restore_checkpoint(self, seq: int, n_tokens: int, payload: Buffer) -> None:
        with self._lock:
            if self.seq_range(seq) is not None:
                raise InvalidParam("position", 0, "a checkpoint is restored into an empty sequence")
            self._restore(seq, ((0, n_tokens, payload),))

    def _whole(self, seq: int) -> int:
        """Number of tokens of ``seq``, which must hold some."""
        held = self.seq_range(seq)
        if held is None:
            raise InvalidParam("range", 0, "the sequence holds nothing")
        return held[1] + 1

    # --- adapters -----------------------------------------------------------------------------

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

    # --- embeddings and memory ----------------------------------------------------------------

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

    # --- life ---------------------------------------------------------------------------------

    def request_abort(self) -> None:
        self._live()
        self._abort.set()

    def clear_abort(self) -> None:
        self._live()
        self._abort.clear()

    def rebuild(self) -> None:
        with self._lock:
            self._live()
            self._require_context()
            self._cells = CellPool(self.info.n_ctx, self.info.n_seq_max)
            self._cells.salt = self._adapters.salt
            self._rows.clear()
            self._abort.clear()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._embedder.close()
            self._rows.clear()

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

    def _check_seq(self, seq: int) -> None:
        if not 0 <= seq < self.info.n_seq_max:
            raise InvalidParam("seq", seq, f"0 to {self.info.n_seq_max - 1}")


def _known(token: int) -> int:
    if not 0 <= token < N_VOCAB:
        raise InvalidToken(token, N_VOCAB)
    return token


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidParam(
            "text", error.object[error.start], "text without lone surrogates"
        ) from None


def _next_logits(content: bytes, last: int) -> array[float]:
    """Spread a hash of everything the sequence holds over the vocabulary, 0 to 4, as float32."""
    # One long hash: a benchmark of many streams must not measure how slow this is.
    words = struct.unpack(f"<{N_VOCAB}I", blake3(content).digest(length=4 * N_VOCAB))
    logits = array("f", [(word >> 8) * 2.0**-22 for word in words])
    for token in range(32, 127):
        logits[token] += _PRINTABLE_BONUS
    if last == EOT:
        logits[END] += _END_BONUS
    return logits


def _info(name: str, params: ModelParams, n_ctx: int) -> ModelInfo:
    kv_bytes = 2 * CELL_BYTES if params.type_k == "f32" else CELL_BYTES
    identity = {"build": "stub+state1", "type_k": params.type_k, "type_v": params.type_v}
    can_cut = not Path(name).name.startswith(UNCUTTABLE)
    return ModelInfo(
        description=f"stub {name}",
        architecture="stub",
        n_vocab=N_VOCAB,
        n_ctx=n_ctx,
        n_ctx_train=1 << 20,
        n_batch=min(params.n_batch, n_ctx),
        n_seq_max=params.n_seq_max,
        n_layer=1,
        n_params=0,
        model_bytes=0,
        fingerprint=blake3(b"llama-actors stub\0" + name.encode()).digest(),
        kv_identity=tuple(sorted(identity.items())),
        can_cut=can_cut,
        can_step_back=can_cut,
        add_bos=True,
        bos_token=BEGIN,
        eog_tokens=frozenset({END}),
        chat_template=None,
        kv_bytes_per_token=kv_bytes,
        memory="none" if params.vocab_only else "blocks" if can_cut else "checkpoint",
        memory_because="only its vocabulary was loaded" if params.vocab_only else "",
        can_generate=not params.vocab_only,
        n_embd=N_EMBD,
        n_embd_out=N_EMBD,
        n_head=1,
        n_head_kv=1,
        max_token_bytes=len("</s>"),
        rank=RankFormat((BEGIN,), (END,), (END,)),
    )
