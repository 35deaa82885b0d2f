"""What the cache did for one request, what it is being asked for, and what is stored of it.

Written by ``actors.kv``; the engine reads it, and calls the methods below.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from actors import messages as m
from actors.kv.namespace import PLAIN, Namespace
from actors.kv.restore_plan import Restored
from actors.kv.timeline import Timeline
from cache import tokens as token_bytes
from cache.answers import Miss
from cache.finish_keys import NO_ENDS
from cache.rows import SaveReason
from cache.text_marks import RowMark
from cache.tokens import TokenIds


@dataclass(frozen=True, slots=True)
class Grant:
    """Memory of the arena for one row."""

    offset: int
    incarnation: int
    """Of the cache_meta that granted it."""
    root: bytes
    """Root key of the namespace that the row lies in."""
    ends: bytes = NO_ENDS
    """Where shorter tails end that the row contains, see ``cache.finish_keys``."""


@dataclass(slots=True, eq=False)
class DeferredTail:
    """A row that may be written, and where."""

    row: m.RowWanted
    grant: Grant
    logits: tuple[int, array[float]] | None = None
    """Of the prompt's last position, and how many tokens of the row come before its end."""
    due_at: float = 0.0
    """Seconds on the engine's clock."""

    @property
    def end(self) -> int:
        return self.row.start + token_bytes.count(self.row.tokens)


@dataclass(slots=True, eq=False)
class RequestCache:
    """The cache's part of one request. Times are seconds on the engine's clock."""

    line: Timeline
    parent_key: bytes | None = None
    """Key of a row; a caller with a salt has another one for it."""
    reads_only: bool = False
    """Whether the request asks for no token, so that its prompt's logits are not needed."""
    namespace: Namespace = PLAIN
    """Which requests it may share with, and where its rows lie."""
    parent_tokens: TokenIds | None = None
    """What its prompt continues: the tokens of its session or of ``parent_key``."""
    marks: list[RowMark] = field(default_factory=list)
    """Ends of replies, its own and the last one before it, that go into the rows that hold them."""
    restarts: tuple[int, ...] = ()
    """Tokens before which another prompt is most likely to share all: see ``text.parts``."""
    # an open question to cache_meta
    awaited_ref: str | None = None
    awaited_since: float = 0.0
    wait_until: float | None = None
    asks_again: bool = False
    """Another process is saving its prefix; the lookup is repeated at ``wait_until``."""
    save_wait_until: float | None = None
    # what was found
    source: str = "none"
    restore_ms: float = 0.0
    lookup_ms: float = 0.0
    miss: Miss | None = None
    """Why the prompt was not wholly in the cache; ``None`` when it was."""
    note: str | None = None
    """Something to report to its caller."""
    first_logits: array[float] | None = None
    """Of the prompt's last position, known before anything is computed."""
    tip_logits: array[float] | None = None
    """The same, once its first token was drawn; may be stored with the prompt's last row."""
    logits_row: bytes = b""
    """Tokens of the stored row that they were read from."""
    # what is stored of it
    keys: list[bytes] = field(default_factory=list)
    """Chain keys of the full blocks of its tokens, as far as they were needed."""
    n_stored_blocks: int = 0
    """Leading full blocks known to be in the cache."""
    stored_tail: bytes | None = None
    """Key of the tail row last offered, so that it is not offered twice."""
    stored_keys: set[bytes] = field(default_factory=set)
    """Keys of rows that the cache is known to hold after an offer of this request."""
    deferred_tail: DeferredTail | None = None
    """Its end, which may be written but is not yet."""
    states: dict[int, bytearray] = field(default_factory=dict)
    """Of a model that cannot be cut: states by position, until they are written."""
    # an open offer of rows
    save_ref: str | None = None
    save_reason: SaveReason = SaveReason.COLD
    save_upto: int = 0
    is_offered_again: bool = False
    """Whether all was offered a second time, since rows before it had been evicted."""
    is_finished: bool = False
    """Whether the reply has ended, so that its tip is what is being saved."""
    is_leaving: bool = False
    """Whether it steps aside, so that all it has in the context is being saved."""
    finish_key: bytes | None = None

    # ── queries ─────────────────────────────────────────────────────────────────────────────────

    @property
    def n_usable(self) -> int:
        """How much of the prompt may be reused: the last token's logits choose the next one."""
        needs_logits = not self.reads_only and self.first_logits is None
        return len(self.line.tokens) - needs_logits

    @property
    def may_use_logits(self) -> bool:
        """Whether kept logits are of use: they are of a prompt's last position."""
        return not self.line.n_generated

    @property
    def is_waiting(self) -> bool:
        """Whether an answer of cache_meta is awaited."""
        return self.awaited_ref is not None

    @property
    def is_ending(self) -> bool:
        """Whether it needs its sequence only until the cache has answered."""
        return self.is_finished or self.is_leaving

    def is_due(self, now: float) -> bool:
        """Whether what it waits for has not come in time, or is to be asked for again."""
        return self.wait_until is not None and now >= self.wait_until

    @property
    def prompt_save_reason(self) -> SaveReason:
        return SaveReason.CONTINUED if self.line.n_reused else SaveReason.COLD

    @property
    def seq(self) -> int | None:
        return self.line.seq

    @property
    def packed_tokens(self) -> bytes:
        """Prompt, and reply from before an interruption, as bytes."""
        return self.line.packed_prompt

    def will_store(self, end: int) -> bool:
        """Whether a row that reaches beyond its first ``end`` tokens is stored, or will be."""
        return len(self.line.packed_prompt) > end * token_bytes.TOKEN_BYTES

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def continues(self, tokens: TokenIds | None) -> None:
        """The prompt continues these tokens; ``None`` where they are not known."""
        self.parent_tokens = tokens

    def restarts_at(self, positions: tuple[int, ...]) -> None:
        """Other prompts are most likely to part from this one at these positions."""
        self.restarts = positions

    def add_mark(self, mark: RowMark) -> None:
        """A reply ends within its tokens."""
        self.marks.append(mark)

    def awaits(self, ref: str, *, until: float) -> None:
        """A question or an offer was sent to cache_meta."""
        self.awaited_ref, self.wait_until = ref, until

    def awaits_nothing(self) -> None:
        """It was answered, or nothing will come."""
        self.awaited_ref = self.wait_until = None

    def lookup_took(self, now: float) -> None:
        """A lookup ended, or is about to be repeated."""
        self.lookup_ms += 1e3 * (now - self.awaited_since)
        self.awaited_since = now

    def missed(self, why: Miss | None) -> None:
        """Note why the prompt was not wholly in the cache; ``None`` when it was."""
        self.miss = why

    def stored_upto(self, n_blocks: int) -> None:
        """So many leading full blocks are in the cache."""
        self.n_stored_blocks = max(self.n_stored_blocks, n_blocks)

    def was_restored(self, restored: Restored) -> None:
        """Rows were read, or found not worth reading."""
        self.miss, self.n_stored_blocks = restored.miss, restored.n_stored_blocks
        if restored.n_kv is None:
            return
        self.line.restored(restored.n_kv, shared=restored.base)
        self.source, self.restore_ms = restored.source, 1e3 * restored.seconds
        if restored.first_logits is not None:
            self.first_logits, self.logits_row = restored.first_logits, restored.logits_row

    def leaves(self) -> None:
        """The request steps aside: what is in the context is about to be saved."""
        self.is_leaving, self.asks_again = True, False
        self.save_reason, self.save_upto = SaveReason.EVICT, self.line.n_kv

    def left(self) -> None:
        """The sequence is free. What is stored will be looked up again."""
        self.is_leaving, self.save_ref, self.save_wait_until = False, None, None
        self.states.clear()
        self.lost_context()

    def lost_context(self) -> None:
        """The cells are gone, and what was restored into them."""
        self.first_logits = None
        self.logits_row, self.source = b"", "none"

    def namespace_changed(self) -> None:
        """Other adapters are applied: keys and logits were those of the old weights."""
        self.keys.clear()
        self.first_logits = None

    def take_first_logits(self) -> array[float] | None:
        """Logits of the prompt's last position, once; a token is about to be drawn from them."""
        logits, self.first_logits = self.first_logits, None
        return logits

    def keep_tip_logits(self, logits: array[float]) -> None:
        """These logits of the prompt's last position may be stored with its last row."""
        self.tip_logits = logits
