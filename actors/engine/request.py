"""One request inside a model: its tokens, its text, its figures.

State only: the engine decides what happens, the store talks to the cache.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors import messages as m
from actors.engine import resume
from actors.engine import speculation_state as guess
from actors.engine.batch_plan import Admission
from actors.engine.cell_sharing import Stretches
from actors.engine.sampling_control import Steering
from actors.kv.deferred_tails import LateTail
from actors.messages import errors
from actors.messages.journal import JournalWriter
from actors.text.reply_events import Event, EventEncoder, merged
from actors.text.reply_marks import SentText
from actors.text.reply_parser import ReplyParser
from cache import tokens as token_bytes
from cache.answers import Miss
from cache.rows import SaveReason
from cache.text_marks import RowMark
from native.backend import Backend
from native.errors import InvalidParam, InvalidToken
from native.params import SamplingParams

if TYPE_CHECKING:
    from actors.engine.reply_replay import Rendered
    from supervision import Address


RequestRefused = errors.RequestRefused


@dataclass(slots=True, eq=False)
class Request:
    """A request from its arrival to its end. Times are monotonic seconds."""

    request_id: str
    ref: str
    reply_to: Address
    text: str | None
    tokens: list[int]
    """Prompt and reply so far; the first ``n_kv`` of them are in the context."""
    max_tokens: int
    sampling: SamplingParams
    stream: ReplyParser
    teller: EventEncoder
    steering: Steering
    parent_key: bytes | None
    parse_special: bool
    arrived: float
    deadline: float | None
    session: str | None = None
    sent: SentText | None = None
    """What its caller sent, if that is all of the prompt and is text; see ``text.reply_marks``."""
    rendered: Rendered | None = None
    marks: list[RowMark] = field(default_factory=list)
    """Ends of replies, its own and the last one before it, that go into the rows that hold them."""
    journal_prompt: bool = False
    """The tokens of its prompt come from its journal."""
    continues: bool = False
    """The prompt is what follows ``parent_tokens``; False once it has been joined to them."""
    guessing: guess.Guessing = field(default_factory=guess.Guessing)
    # set when it starts
    seq: int | None = None
    n_cells: int = 0
    """Cells of prompt and whole reply; some of them may be shared, see ``stretches``."""
    stretches: Stretches = ()
    following: Request | None = None
    """It reads the same prompt and is ahead; its cells become this one's as they are filled."""
    share_upto: int = 0
    n_prompt: int = 0
    started: float = 0.0
    # when it was interrupted by the death of a process, see actors.engine.resume
    journal: JournalWriter | None = None
    is_resumed: bool = False
    said_before: list[int] = field(default_factory=list)
    """Reply tokens that exist already and were not taken up yet."""
    n_resumed: int = 0
    """Reply tokens that were taken up; they lie behind the prompt in ``tokens``."""
    replay: list[Event] = field(default_factory=list)
    ends_as: m.FinishReason | None = None
    """Its last token had ended it, but nobody knows whether its caller heard so."""
    # grows while it runs
    n_kv: int = 0
    n_generated: int = 0
    n_text_tokens: int = 0
    held: list[Event] = field(default_factory=list)
    """Events of one token each that wait to leave together."""
    delivered_at: float = 0.0
    prefilled: float = 0.0
    finished: float = 0.0
    finish_reason: m.FinishReason | None = None
    finish_key: bytes | None = None
    note: str | None = None
    # what the cache did
    n_reused: int = 0
    n_live: int = 0
    """Of those, tokens shared with another sequence of this context; always the first ones."""
    is_sticky: bool = False
    """What it shares is the sequence of its own session."""
    source: str = "none"
    restore_ms: float = 0.0
    lookup_ms: float = 0.0
    miss: Miss | None = None
    parent_tokens: list[int] | None = None
    awaited_ref: str | None = None
    awaited_since: float = 0.0
    wait_until: float | None = None
    asks_again: bool = False
    """It waits for a save of somebody else, and looks again when ``wait_until`` has come."""
    save_wait_until: float | None = None
    save_ref: str | None = None
    packed: bytes = b""
    keys: list[bytes] = field(default_factory=list)
    """Chain keys of the full blocks of ``tokens``, as far as they were needed."""
    first_logits: array[float] | None = None
    """Of the prompt's last position, known before anything is computed."""
    tip_logits: array[float] | None = None
    """The same, once its first token was drawn; may be stored with the prompt's last row."""
    logits_row: bytes = b""
    """Tokens of the stored row that they were read from."""
    n_stored_blocks: int = 0
    """Leading full blocks known to be in the cache."""
    is_offered_anew: bool = False
    stored_tail: bytes | None = None
    """Key of the tail row last offered, so that it is not offered twice."""
    late_tail: LateTail | None = None
    """Its end, which may be written but is not yet."""
    stored_keys: set[bytes] = field(default_factory=set)
    """Keys of rows that the cache is known to hold after an offer of this request."""
    states: dict[int, bytearray] = field(default_factory=dict)
    """Of a model that cannot be cut: states by position, until they are written."""
    save_reason: SaveReason = SaveReason.COLD
    save_upto: int = 0

    # ── what planning asks ──────────────────────────────────────────────────────────────────────

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_kv

    @property
    def n_usable(self) -> int:
        """How much of the prompt may be reused: the last token's logits choose the next one."""
        needs_logits = self.max_tokens > 0 and self.first_logits is None
        return len(self.tokens) - (1 if needs_logits else 0)

    @property
    def is_prefill_only(self) -> bool:
        return self.max_tokens == 0

    @property
    def is_generating(self) -> bool:
        """It decodes one token at a time; not so when it reads all again after a rollback."""
        return self.n_generated > 0 and self.n_pending <= 1

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_ready(self) -> bool:
        """Whether it can take part in a step now."""
        return (
            self.seq is not None
            and self.awaited_ref is None
            and self.following is None
            and not self.is_finished
        )

    @property
    def kv_seq(self) -> int:
        if self.seq is None:
            raise RuntimeError(f"request {self.request_id} has no sequence: a bug in the engine")
        return self.seq

    @property
    def packed_prompt(self) -> bytes:
        """What it started with as bytes; packed once, for all comparisons with new requests."""
        if not self.packed:
            n_known = self.n_prompt + self.n_resumed
            self.packed = token_bytes.pack(self.tokens[: n_known or None])
        return self.packed

    @property
    def packed_tokens(self) -> bytes:
        return self.packed_prompt

    def will_store(self, end: int) -> bool:
        """Whether a row that reaches beyond its first ``end`` tokens is stored, or will be."""
        return len(self.packed_prompt) > end * token_bytes.TOKEN_BYTES

    @property
    def prompt_save_reason(self) -> SaveReason:
        return SaveReason.CONTINUED if self.n_reused else SaveReason.COLD

    @property
    def n_visible(self) -> int:
        """Tokens from the start whose KV is worth keeping: what the caller could send again."""
        return min(self.n_kv, self.n_prompt + self.stream.visible_tokens())

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def start(self, seq: int, admission: Admission, backend: Backend, now: float) -> None:
        """Leave the queue: take a sequence and the cells of prompt and reply."""
        self.seq, self.max_tokens, self.n_cells = seq, admission.max_tokens, admission.n_cells
        self.n_prompt = self.n_prompt or len(self.tokens)
        self.started = now
        self.make_sampler(backend)
        if self.journal is not None:
            self.journal.begin(self.tokens[: self.n_prompt], self.tokens[self.n_prompt :])

    def make_sampler(self, backend: Backend) -> None:
        """Once the prompt is known: a grammar that cannot be used is refused before it costs."""
        if self.steering.has_begun:
            return
        n_prompt = self.n_prompt or len(self.tokens)
        prompt, said = self.tokens[:n_prompt], self.tokens[n_prompt:]
        try:
            self.steering.begin(backend, self.sampling, prompt, said, self.stream)
        except (InvalidParam, InvalidToken) as error:
            raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error

    def sample(self, backend: Backend, row: int) -> int:
        """The next token, from the logits of ``row`` of the last decode."""
        token = self.steering.choose(backend, row, self.n_generated, self.stream)
        n = self.sampling.n_logprobs
        if n is not None:
            self.teller.logprobs.note(backend.logprobs(row, token, n))
        return token

    def sample_known(self, logits: array[float], backend: Backend) -> int:
        """The first token, from logits that were kept."""
        token = self.steering.choose_from(backend, logits, self.n_generated)
        n = self.sampling.n_logprobs
        if n is not None:
            self.teller.logprobs.note(backend.logprobs_from(logits, token, n))
        return token

    def awaits(self, ref: str, *, until: float) -> None:
        self.awaited_ref, self.wait_until = ref, until

    def awaits_nothing(self) -> None:
        self.awaited_ref = self.wait_until = None

    def lose_context(self) -> None:
        """Its cells are gone; what it has said is not."""
        self.n_kv = self.n_reused = self.n_live = self.share_upto = 0
        self.following = self.first_logits = None
        self.logits_row = b""
        self.is_sticky, self.source = False, "none"

    def missed(self, why: Miss | None) -> None:
        """Note why the prompt was not wholly in the cache; ``None`` when it was."""
        self.miss = why

    def accept(self, token: int, backend: Backend, now: float) -> list[Event]:
        """Take a sampled token; what its caller hears of it, unless it is still undecided."""
        if not self.prefilled:
            self.prefilled = now
        if self.journal is not None and self.seq is not None:
            self.journal.append(token)  # before anybody hears of it
        if token in backend.info.eog_tokens:
            self.n_generated += 1
            self.stream.end_with(backend.piece(token, special=True))
            self.finish(m.FinishReason.STOP, now)
            return []
        self.tokens.append(token)
        self.n_generated += 1
        self.n_text_tokens += 1
        if self.guessing.candidates is not None:
            guess.judge(self, now)
            return []
        self.teller.logprobs.reach(self.n_text_tokens)
        said = self.stream.feed(token, *self._bytes_of(token, backend))
        self.steering.said(token, backend, self.stream)
        if self.stream.stopped_by is not None:
            self.finish(m.FinishReason.STOP, now)
        elif self.n_text_tokens >= self.max_tokens:
            self.finish(m.FinishReason.LENGTH, now)
        return self.teller.events(said)

    def _bytes_of(self, token: int, backend: Backend) -> tuple[bytes, bytes]:
        """What a token shows, and what is written for one that shows nothing."""
        shown = backend.piece(token)
        if shown or not self.stream.looks_for_markers:
            return shown, b""
        return shown, backend.piece(token, special=True)

    def hold(self, events: list[Event]) -> None:
        self.held += events

    def take_held(self, now: float) -> list[Event]:
        """What was held, in as few events as may be."""
        if not self.held:
            return []
        held, self.held = self.held, []
        self.delivered_at = now
        return merged(held, resume.PAGE_CHARS, resume.PAGE_TOKENS)

    def finish(self, reason: m.FinishReason, now: float) -> None:
        self.finish_reason, self.finished = reason, now

    def close_text(self) -> list[Event]:
        """What was held back and can be told now."""
        return self.teller.events(self.stream.finish())

    def close_journal(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    # ── reports ─────────────────────────────────────────────────────────────────────────────────

    def progress(self) -> m.PrefillProgress:
        n_known = self.n_prompt + self.n_resumed
        return m.PrefillProgress(self.ref, self.n_kv, n_known, self.n_reused)

    def completed(self, now: float) -> m.Completed | m.Verified:
        if self.guessing.candidates is not None:
            return guess.verified(self)
        return m.Completed(
            ref=self.ref,
            request_id=self.request_id,
            finish_reason=self.finish_reason or m.FinishReason.CANCELLED,
            finish_key=self.finish_key if self.finish_key in self.stored_keys else None,
            stop_sequence=self.stream.stopped_by,
            usage=m.Usage(
                len(self.tokens) - self.n_text_tokens,
                self.n_reused,
                self.n_text_tokens,
                drafted_tokens=self.guessing.n_drafted,
                accepted_tokens=self.guessing.n_accepted,
            ),
            cache=self._cache_report(),
            timings=self._timings(now),
        )

    def _cache_report(self) -> m.CacheReport:
        hit = m.HitKind.COLD
        if self.is_sticky:
            hit = m.HitKind.STICKY
        elif self.n_reused:
            hit = m.HitKind.PARTIAL if self.miss else m.HitKind.EXACT
        return m.CacheReport(
            hit=hit,
            source="live" if self.n_live and self.source == "none" else self.source,
            restore_ms=self.restore_ms,
            miss=self.miss,
            lookup_ms=self.lookup_ms,
            note=self.note,
        )

    def _timings(self, now: float) -> m.Timings:
        started = self.started or now
        prefilled = self.prefilled or now
        finished = self.finished or now
        decode_s = max(0.0, finished - prefilled)
        n_said = self.n_generated - self.n_resumed
        rate = (n_said - 1) / decode_s if n_said > 1 and decode_s else 0.0
        return m.Timings(
            queue_ms=1e3 * (started - self.arrived),
            ttft_ms=1e3 * (prefilled - self.arrived),
            prefill_ms=max(0.0, 1e3 * (prefilled - started) - self.restore_ms - self.lookup_ms),
            decode_ms=1e3 * decode_s,
            tokens_per_second=rate,
        )
