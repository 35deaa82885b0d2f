"""The backend protocol: one interface to a model, whichever engine runs it.

Terms: a *sequence* is one timeline of tokens, positions 0, 1, 2 …; *cells* hold the KV of one token
each and are shared by all sequences of a backend; a *row* is one token of a batch.

``Backend`` is the sum of five protocols, so that code may ask for the part that it uses:
``Vocabulary``, ``Decoder``, ``SamplerFactory``, ``KvMemory``, ``Adapters``.

A backend is used by one thread at a time (it locks, so a mistake costs time and not memory safety).
``request_abort``, ``clear_abort``, reading ``info``, the vocabulary (``tokenize``, ``detokenize``,
``piece``) and grammars (``compile_grammar``, ``has_grammar``) are for any thread at any time; a
running decode does not delay them.

Two implementations pass the same contract tests, ``tests/model/test_native_contract.py``:
``native.llama.LlamaBackend`` and ``native.stub.StubBackend``.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Literal, Protocol, TypeAlias

from native.adapters import LoadedAdapter
from native.errors import InvalidParam
from native.params import SamplingParams
from native.sampling_params import ReplyGrammar

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap
"""A payload's memory, contiguous; writable where a method writes into it."""

MemoryKind: TypeAlias = Literal["blocks", "checkpoint", "none"]

Rows: TypeAlias = Literal["any", "many", "alone"]
"""How the rows of a decode are computed, see ``Batch.rows``."""

_INT32 = range(-(1 << 31), 1 << 31)


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """Token ids with which a model fills in the middle of a text."""

    prefix: int
    """What comes before the middle follows it."""
    suffix: int
    """What comes after the middle follows it."""
    middle: int
    """The middle follows it: what the model generates."""
    repository: int | None = None
    """A name of the whole follows it."""
    file: int | None = None
    """The name of a file and its text follow it."""


@dataclass(frozen=True, slots=True)
class RankFormat:
    """How a query and a text are put to a model that scores how well they fit."""

    before: tuple[int, ...]
    """Tokens before the query."""
    between: tuple[int, ...]
    """Tokens between the query and the text."""
    after: tuple[int, ...]
    """Tokens after the text."""
    template: str | None = None
    """In place of all three: a text with ``{query}`` and ``{document}``, and control tokens."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a loaded model. Counts are tokens, sizes are bytes.

    ``n_seq_max`` counts usable sequences. ``fingerprint`` is the BLAKE3 of the file (of the digests
    of all files, if split). ``kv_identity`` lists everything else that changes KV bytes: together
    they decide whether a stored payload may be restored here. ``can_cut``: ranges of a sequence can
    be saved, restored and copied; when False, only whole sequences can be copied.
    ``memory`` is how KV may be saved: in "blocks", as a "checkpoint" of a whole sequence (possible
    for every model with blocks too), or not at all: "none", for the reason in ``memory_because``
    (which is empty otherwise). ``state_grows`` is False when the state of a long sequence is no
    larger than that of a short one. ``can_generate`` is False for a model without a context: loaded
    with ``vocab_only``, or one that only embeds; ``n_ctx`` and ``n_batch`` are 0 then.
    ``n_embd_out`` counts the numbers of an embedding.
    """

    description: str
    architecture: str
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_batch: int
    n_seq_max: int
    n_layer: int
    n_params: int
    model_bytes: int
    fingerprint: bytes
    kv_identity: tuple[tuple[str, str], ...]
    can_cut: bool
    add_bos: bool
    bos_token: int | None
    eog_tokens: frozenset[int]
    chat_template: str | None
    kv_bytes_per_token: int
    memory: MemoryKind = "blocks"
    state_grows: bool = True
    can_step_back: bool = True
    """Whether the last token of a sequence can be removed: of all memories but recurrent ones."""
    can_generate: bool = True
    n_embd: int = 0
    n_embd_out: int = 0
    n_head: int = 0
    n_head_kv: int = 0
    eos_token: int | None = None
    max_token_bytes: int = 0
    """Most bytes of text that one token can stand for; 0: unknown."""
    memory_because: str = ""
    named_templates: tuple[tuple[str, str], ...] = ()
    """(name, chat template) of further templates, such as ``tool_use`` and ``rag``."""
    infill: InfillTokens | None = None
    """None: it cannot fill in the middle of a text."""
    rank: RankFormat | None = None
    """None: it has no head that scores how well a text fits a query."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that the engine has allocated, on the host and summed over GPUs."""

    host_model: int
    host_context: int
    host_compute: int
    device_model: int
    device_context: int
    device_compute: int


class Batch:
    """The rows of one decode, as columns. Reuse one object: ``clear`` keeps its memory.

    Ids, positions and sequences are checked by ``decode``, against the facts of the model.

    ``rows`` chooses how. Matrix kernels compute groups of rows and single rows in different orders,
    so the last bits of a row's numbers may depend on how many rows there are. ``many``: each row
    has the numbers that it has among many others, however many there are; ``alone``: those that it
    has in a decode of its own; ``any``: whatever is fastest.
    """

    __slots__ = ("positions", "rows", "seqs", "tokens", "wants")

    def __init__(self) -> None:
        self.rows: Rows = "any"
        self.tokens = array("i")
        self.positions = array("i")
        self.seqs = array("i")
        self.wants = array("b")

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, token: int, position: int, seq: int, want_logits: bool) -> int:
        """Append one row and return its index, the ``row`` of ``sample`` and ``logits``."""
        row = len(self.tokens)
        try:
            self.tokens.append(token)
            self.positions.append(position)
            self.seqs.append(seq)
        except (OverflowError, TypeError):
            del self.tokens[row:], self.positions[row:], self.seqs[row:]
            raise InvalidParam(
                "row", (token, position, seq), "token, position and seq are 32-bit numbers"
            ) from None
        self.wants.append(1 if want_logits else 0)
        return row

    def extend_prefill(
        self, tokens: Sequence[int], start: int, seq: int, logits_last: bool
    ) -> int | None:
        """Append ``tokens`` at positions ``start`` … of ``seq``.

        Returns the row of the last token when ``logits_last`` asks for its logits, else None.
        """
        n = len(tokens)
        if n == 0:
            return None
        if start not in _INT32 or start + n not in _INT32 or seq not in _INT32:
            raise InvalidParam("row", (start, seq), "position and seq are 32-bit numbers")
        try:
            column = array("i", tokens)
        except (OverflowError, TypeError):
            raise InvalidParam("tokens", tokens, "a sequence of 32-bit numbers") from None
        self.tokens.extend(column)
        self.positions.extend(range(start, start + n))
        self.seqs.extend(array("i", (seq,)) * n)
        self.wants.extend(array("b", (0,)) * n)
        if not logits_last:
            return None
        self.wants[-1] = 1
        return len(self.tokens) - 1

    def clear(self) -> None:
        """Remove all rows; they are computed as ``any`` again."""
        self.rows = "any"
        del self.tokens[:], self.positions[:], self.seqs[:], self.wants[:]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of probabilities at temperature 1, before anything changed them."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token, its logarithm) of the likeliest tokens, likeliest first."""


class Sampler(Protocol):
    """The state of one request's sampling: its parameters and the last accepted tokens."""

    def accept(self, token: int) -> None:
        """Add a token to the reply.

        ``InvalidToken``; ``InvalidParam`` when the grammar does not allow it there.
        """


class Embedder(Protocol):
    """Embeddings with one model, in memory of its own. Any thread may use it, one at a time."""

    @property
    def n_tokens_max(self) -> int:
        """The longest text, in tokens."""

    @property
    def is_resting(self) -> bool:
        """Whether it holds no memory at present."""

    def embed(self, tokens: Sequence[int], pooling: str = "model") -> array[float]:
        """The embedding of a text: ``info.n_embd_out`` numbers, not normalised.

        ``pooling``: ``none`` gives so many numbers for each token, one after the other; ``mean``,
        ``cls`` (the first token), ``last``; ``model``: that of ``ModelParams.pooling``, else that
        of the model file, else the mean. ``PromptTooLong``, ``InvalidToken``,
        ``InvalidParam``, ``NotSupported``, ``DecodeAborted`` (the backend is being closed).
        Adapters and control vectors are not applied.
        """

    def score(self, tokens: Sequence[int]) -> float:
        """How well a text fits a query, put together as ``info.rank`` describes.

        Higher is better; the scale is the model's own. ``NotSupported`` if ``info.rank`` is None;
        else as ``embed``.
        """

    def rest(self) -> None:
        """Free the memory; the next text allocates it again."""


class Described(Protocol):
    """Anything with the facts of one model: the base of the protocols below."""

    info: ModelInfo
    """The code that loads the backend may replace its chat template; nothing else changes."""


class Vocabulary(Described, Protocol):
    """Text to token ids and back. For any thread at any time."""

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn text into ids.

        ``add_special`` adds the tokens that the model expects around a text (BOS);
        ``parse_special`` reads control tokens written in the text: never for untrusted text.
        """

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """Join the pieces of ``tokens``: always ``b"".join(piece(t) for t in tokens)``.

        Bytes, because a token may end inside a UTF-8 character. Vocabularies of the SentencePiece
        kind store words with a leading space, so the text of a tokenised ``"Hi"`` may come back as
        ``" Hi"``; stripping it here would break concatenation. ``special`` shows control tokens,
        which are empty otherwise.
        """

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token, possibly a fragment of a UTF-8 character."""


class Decoder(Described, Protocol):
    """Computes rows, and stops when asked to."""

    def decode(self, batch: Batch) -> None:
        """Compute the rows and append them to their sequences.

        Refused before anything is computed: ``InvalidToken``, ``InvalidParam`` (sequence, a
        position that does not continue its sequence, 0 or more than ``n_batch`` rows),
        ``PromptTooLong``. Then: ``NoKvSpace`` (memory as before), ``DecodeAborted``,
        ``DecodeFailed``. Logits of earlier decodes are gone in any case after that.
        """

    def logits(self, row: int) -> array[float]:
        """Copy the ``n_vocab`` float32 logits of ``row`` of the last decode."""

    def rebuild(self) -> None:
        """Replace the context by a new one of the same kind, without loading the weights again.

        For after a ``DecodeFailed``. All sequences are empty then, adapters apply as before, and a
        requested abort is forgotten. ``ContextCreateFailed``: nothing but ``close`` works any more.
        """

    def request_abort(self) -> None:
        """Make a running or the next decode raise ``DecodeAborted``. Any thread may call it."""

    def clear_abort(self) -> None:
        """Allow decoding again after ``request_abort``."""


class SamplerFactory(Protocol):
    """Makes samplers, and chooses tokens with them."""

    def new_sampler(
        self,
        params: SamplingParams,
        history: Sequence[int] = (),
        bound_by: ReplyGrammar | None = None,
    ) -> Sampler:
        """Make a sampler for a reply to ``history``, the prompt. ``bound_by``: beside ``params``.

        What a reply holds already is accepted token by token: penalties look at both, a grammar
        only at the reply. ``InvalidParam`` for a grammar or schema that cannot be used, with the
        reason; ``InvalidToken`` for a token of ``history`` or ``logit_bias``.
        """

    def compile_grammar(self, params: SamplingParams | ReplyGrammar) -> None:
        """Compile the grammar or schema of ``params`` and keep it for ``new_sampler``.

        For any thread at any time: it may take a second, and a decode does not wait for it. The
        grammars used last are kept. ``InvalidParam`` as by ``new_sampler``.
        """

    def has_grammar(self, params: SamplingParams) -> bool:
        """Whether the grammar or schema of ``params`` is kept. For any thread at any time."""

    def sample(self, row: int, sampler: Sampler, index: int) -> int:
        """Choose a token from the logits of ``row`` of the last decode.

        The randomness is a function of (seed, ``index``) alone. Does not accept the token.
        ``NoTokenLeft`` when bias or grammar leave none; ``DecodeFailed`` when the logits are not
        finite.
        """

    def sample_from(self, logits: array[float], sampler: Sampler, index: int) -> int:
        """The same from ``n_vocab`` float32 logits that were kept; they are as before after it."""

    def logprobs(self, row: int, token: int, n: int) -> Logprobs:
        """Logarithms of the probability of ``token`` and of the ``n`` likeliest (0 to 20)."""

    def logprobs_from(self, logits: array[float], token: int, n: int) -> Logprobs:
        """The same from logits that were kept."""


class KvMemory(Described, Protocol):
    """The KV of all sequences: removed, shared, saved and restored."""

    def seq_remove(self, seq: int, start: int, end: int = -1) -> bool:
        """Remove positions [start, end) of ``seq``, to its end if -1.

        False, with nothing changed, when this model's memory cannot do that exactly.
        """

    def seq_copy(self, src: int, dst: int, start: int = 0, end: int = -1) -> None:
        """Share cells [start, end) of ``src`` with ``dst``, which must end at ``start``.

        No KV is copied. ``InvalidParam`` if a range does not fit, ``StateRefused`` if the model
        cannot.
        """

    def seq_range(self, seq: int) -> tuple[int, int] | None:
        """Return the first and last position held by ``seq``, or None when it is empty."""

    def block_bytes(self, n_tokens: int) -> int:
        """Return the exact payload size of a block of ``n_tokens``."""

    def save_block(self, seq: int, start: int, end: int, into: Buffer) -> int:
        """Write the KV of positions [start, end) into the writable buffer ``into``, at its start.

        Returns the bytes written, ``block_bytes(end - start)``. ``InvalidParam`` when the sequence
        does not hold the range or the buffer is too small; ``StateRefused`` if not ``can_cut``.
        """

    def restore_block(self, seq: int, start: int, n_tokens: int, payload: Buffer) -> None:
        """Append a saved block to ``seq``, which must end at ``start``.

        ``StateRefused`` for anything but a payload of exactly this shape and range; ``NoKvSpace``;
        ``PromptTooLong``. In each case ``seq`` is as it was. Contents cannot be checked here: hand
        over only payloads whose checksum and tokens were verified.
        """

    def restore_blocks(self, seq: int, blocks: Sequence[tuple[int, int, Buffer]]) -> None:
        """Append many blocks (start, n_tokens, payload), all or none of them."""

    def checkpoint_bytes(self, seq: int) -> int:
        """Return the exact size that ``save_checkpoint`` of ``seq`` would write now."""

    def save_checkpoint(self, seq: int, into: Buffer) -> int:
        """Write the state of all of ``seq`` into the writable buffer ``into``, at its start.

        Returns the bytes written. ``InvalidParam`` when the sequence is empty or the buffer too
        small; ``StateRefused`` if ``memory`` is "none" or the state is not whole.
        """

    def restore_checkpoint(self, seq: int, n_tokens: int, payload: Buffer) -> None:
        """Bring a saved state of ``n_tokens`` tokens into ``seq``, which must be empty.

        ``StateRefused`` for anything but the state of so many tokens in this memory; ``NoKvSpace``;
        ``PromptTooLong``; ``InvalidParam``. In each case ``seq`` is empty and the context healthy.
        As with blocks: hand over only payloads whose checksum and tokens were verified.
        """


class Adapters(Protocol):
    """LoRA adapters, applied to every sequence alike."""

    @property
    def adapters(self) -> tuple[LoadedAdapter, ...]:
        """LoRA adapters that are loaded, in the order in which they were."""

    def load_adapter(self, path: str, scale: float = 1.0) -> LoadedAdapter:
        """Read a LoRA adapter and apply it, times ``scale``, from the next decode on.

        ``ModelFileError`` for the file; nothing of it is kept then. ``InvalidParam`` while a
        sequence holds anything: its KV is of other weights. Also for the two below.
        """

    def scale_adapter(self, adapter: int, scale: float) -> None:
        """Apply an adapter, by its id, times another ``scale``; 0 applies nothing."""

    def remove_adapter(self, adapter: int) -> None:
        """Unload an adapter, by its id."""


class Backend(Vocabulary, Decoder, SamplerFactory, KvMemory, Adapters, Protocol):
    """One model, one context. Every call after ``close`` raises ``BackendClosed``."""

    def embedder(self) -> Embedder:
        """The embedder of this model, always the same one; ``NotSupported``.

        Takes no memory before it is used, and may be used from another thread than this backend.
        """

    def memory_use(self) -> MemoryUse:
        """The memory that model and context take at present."""

    def gpus(self) -> tuple[tuple[str, int, int], ...]:
        """Name, free bytes and all bytes of each GPU of its own memory; empty without one."""

    def close(self) -> None:
        """Free everything. Calling it again does nothing."""
