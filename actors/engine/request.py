"""One request inside a model. Each of its values is written by one module.

| value | what | written by |
|---|---|---|
| ``spec`` | what was asked for | ``engine.request_builder``, once |
| ``prompt`` | a prompt that came as text | ``engine.prompt_tokens``, ``engine.reply_replay`` |
| ``line`` | tokens, and which of them are in the context | the methods of ``kv.timeline`` |
| ``cache`` | what the cache did, what is stored | ``actors.kv`` |
| ``reply`` | what chooses, reads and delivers its tokens | ``engine.reply`` |
| ``guessing`` | speculative decoding | ``engine.speculative_decoding`` |
| ``resume`` | an interruption by the death of a process | ``engine.resume`` |
| ``exact`` | how exact its reply is in effect | ``engine.request_builder``, and once at its start |
| ``clock`` | when things happened | this module, and the end of each step |
| ``turn`` | where it stands among others | ``engine.room``, ``engine.lifecycle``, ``engine.step`` |

State only: the engine decides what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from actors import messages as m
from actors.engine.clock import Clock
from actors.engine.prompt_text import PromptText
from actors.engine.reply import Reply
from actors.engine.resume import Resume
from actors.engine.room_policy import Admission, must_grow
from actors.engine.speculation_state import SpeculationState
from actors.engine.turn import Turn
from actors.kv.request_cache import RequestCache
from actors.kv.timeline import Timeline
from actors.messages.journal import JournalWriter
from actors.text.reply_events import Event
from native.backend import Backend
from supervision import Address


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """What was asked for."""

    request_id: str
    ref: str
    reply_to: Address
    max_tokens: int | None
    """``None``: what fits."""
    parent_key: bytes | None
    parse_special: bool
    session: str | None
    exact: m.Exact | None = None
    """By name; ``None``: the model's."""
    queue_events: bool = False
    """Whether its caller receives its place in the queue."""
    drop_live: bool = False
    """Whether its sequence is dropped at its end."""
    trace_id: str = ""
    """Of the trace that it is a part of."""


@dataclass(slots=True, eq=False)
class Request:
    """A request from its arrival to its end."""

    spec: RequestSpec
    prompt: PromptText
    line: Timeline
    cache: RequestCache
    reply: Reply
    guessing: SpeculationState
    resume: Resume
    clock: Clock
    turn: Turn
    exact: m.Exact = m.Exact.REPEAT
    """At least what was asked for."""
    journal: JournalWriter | None = None
    following: Request | None = None
    """It reads the same prompt and is ahead; its cells become this one's as they are filled."""

    # ── queries ─────────────────────────────────────────────────────────────────────────────────

    @property
    def is_prefill_only(self) -> bool:
        return self.spec.max_tokens == 0

    @property
    def is_finished(self) -> bool:
        return self.reply.finish_reason is not None

    @property
    def is_ready(self) -> bool:
        """Whether it can take part in a step now."""
        return (
            self.line.seq is not None
            and self.cache.awaited_ref is None
            and self.following is None
            and self.reply.finish_reason is None
            and len(self.line.tokens) <= self.line.n_cells
        )

    @property
    def must_grow(self) -> bool:
        """Whether its next token has no cell."""
        return must_grow(len(self.line.tokens), self.line.n_cells)

    @property
    def n_cells_most(self) -> int:
        """Cells of its prompt and the longest reply that it may have."""
        return self.line.n_prompt + self.reply.max_tokens

    @property
    def is_going(self) -> bool:
        """Whether it has ended or steps aside, and has its sequence only until that is saved."""
        return self.is_finished or self.cache.is_leaving

    @property
    def is_reading(self) -> bool:
        """Whether it has tokens of its prompt to read, or waits for the cache to know which."""
        return not self.is_going and not self.line.is_generating and self.following is None

    @property
    def n_visible(self) -> int:
        """Tokens from the start whose KV is worth keeping: what the caller could send again."""
        return min(self.line.n_kv, self.line.n_prompt + self.reply.stream.visible_tokens())

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def start(
        self, admission: Admission, backend: Backend, now: float, exact: m.Exact | None = None
    ) -> None:
        """Leave the queue, for the first time or again; it has a sequence and its first cells.

        ``exact`` is the level in effect, if it is another than the request must have.
        """
        self.exact = exact or self.exact
        self.reply.admitted(admission)
        self.line.fix_prompt()
        self.clock.start(now)
        self.turn.start()
        self.reply.make_sampler(backend, self.line)
        if self.journal is not None:
            n_prompt = self.line.n_prompt
            self.journal.begin(self.line.tokens[:n_prompt], self.line.tokens[n_prompt:])

    def take_up(self, admission: Admission, backend: Backend) -> None:
        """Put it where it was when it was interrupted; once, before it takes a sequence.

        If its last token had ended it already, it reads all of its text and then ends again.
        """
        left = self.resume.take_left()
        if not left:
            return
        self.line.fix_prompt()
        self.reply.admitted(admission)
        for token in left:
            if self.is_finished:
                break
            self.resume.events += self.accept(token, backend, 0.0)
        self.line.resumed()
        self.resume.n_tokens = self.line.n_resumed
        self.resume.ends_as = self.reply.reopen()

    def replay(self) -> Iterator[object]:
        """What its caller receives first, if it was interrupted."""
        return self.resume.replay(self.spec.ref)

    def accept(self, token: int, backend: Backend, now: float) -> list[Event]:
        """Take a sampled token.

        Returns what to deliver for it; empty while a stop string or a marker may still match.
        """
        line, reply = self.line, self.reply
        self.clock.prompt_done(now)
        if self.journal is not None and line.seq is not None:
            self.journal.append(token)  # before it is delivered
        if token in backend.info.eog_tokens:
            line.ended()
            reply.end_with(token, backend)
            self.finish(m.FinishReason.STOP, now)
            return []
        line.append(token)
        if self.guessing.candidates is not None:
            if not self.guessing.is_as_expected(line.n_reply, token):
                self.finish(m.FinishReason.STOP, now)
            return []
        events = reply.take(token, line.n_reply, backend)
        if reply.finish_reason is not None:
            self.clock.finish(now)
        return events

    def finish(self, reason: m.FinishReason, now: float) -> None:
        self.reply.finish(reason)
        self.clock.finish(now)

    def lose_context(self) -> None:
        """Its cells are gone; what it has generated is not. ``line.lost`` gives it new ones."""
        self.following = None
        self.cache.lost_context()

    def step_aside(self, report: m.CacheReport, now: float) -> None:
        """Its sequence is free, its rows are saved as far as they could be; it starts again."""
        self.turn.step_aside(report, self.line.n_reused)
        self.following = None
        self.cache.left()
        self.line.stepped_aside()
        self.clock.step_aside(now)

    def close_journal(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None
