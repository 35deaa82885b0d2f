"""The engine of a model: the one thread that owns the context and runs its steps.

It never touches Thespian. Commands come in through a queue, messages for others go out through
``send``; in between it admits requests, asks the cache, restores, prefills in chunks, decodes all
running requests in one batch per step, and saves completed blocks. Every request that gets in here
leaves with exactly one ``Completed`` or ``CompletionFailed``.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from actors import messages as m
from actors import resume
from actors.adapters import AdapterDesk, Question
from actors.cache_dialogue import CacheDialogue
from actors.decoder import Decoder, StepOverdue
from actors.drafter import Drafter
from actors.first_logits import LogitsMemory
from actors.isolation import Isolation
from actors.kv_store import KvStore
from actors.late_tails import LateTails
from actors.live import LiveSequences
from actors.model_core import plan_step
from actors.model_request import Request, RequestRefused
from actors.replays import Replays
from actors.reply_rules import ReplyRules
from actors.speculation import SpeculationPolicy
from actors.tending import Tending
from actors.verifying import Guesses
from actors.waiting import WaitingRequests
from cache.policy import LivePolicy
from cache.rows import SaveReason
from native.backend import Backend, Batch
from native.errors import DecodeAborted, DecodeFailed, NativeError, NoKvSpace, NoTokenLeft

# A message costs the mailbox and the host about 0.2 ms of processor, which the compute threads want
# too. A model that needs longer than this for a token sends each one at once; a faster one sends
# several together, still faster than anyone reads.
DELIVER_EVERY_S = 0.005
HELD_TOKENS_LIMIT = 512  # keeps the message small however fast the model is
BEING_UNLOADED = "this model is being unloaded and takes no new requests; load it again"
CANNOT_GENERATE = (
    "this model cannot generate: it was loaded with vocab_only, or it only embeds; load it without "
    "vocab_only, or use another"
)
PREFILL_SHARE_TOKENS = 128  # of a step, while other requests generate


@dataclass(frozen=True, slots=True)
class Close:
    """Mailbox → engine: end every request with this failure and stop."""

    reason: m.FailReason
    detail: str


@dataclass(frozen=True, slots=True)
class CacheGone:
    """Mailbox → engine: cache_meta is not up, or is another incarnation; nobody will answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Mailbox → engine: a question that only the engine can answer."""

    question: object
    reply_to: object


Send = Callable[[object, object], None]


class ModelEngine:
    """Runs requests on ``backend`` until it is closed."""

    def __init__(  # noqa: PLR0913 - what an engine is made of
        self,
        backend: Backend,
        store: KvStore,
        commands: queue.SimpleQueue[object],
        send: Send,
        *,
        max_queue: int,
        live: LivePolicy | None = None,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        speculation: SpeculationPolicy | None = None,
        drafter: Drafter | None = None,
        rules: ReplyRules | None = None,
    ) -> None:
        """``guard`` is entered around each decode: who watches may mind one that does not end."""
        self._backend = backend
        self._decoder = Decoder(backend, guard)
        self._live = LiveSequences(backend, live or LivePolicy())
        self._cache = CacheDialogue(store, send, self._settle)
        self._tails = LateTails(store, send, lambda: self._live.idle, lambda: self._running)
        self._live.tails = self._cache.tails = self._tails
        self._known_logits = LogitsMemory(self._cache.logits_memory_bytes)
        self._guesses = Guesses(backend, speculation, drafter)
        self._commands = commands
        self._send = send
        self._batch = Batch()
        self._waiting = WaitingRequests(backend, max_queue, rules)
        self._tending = Tending(self._live, self._waiting.sessions, store, send)
        self._running: list[Request] = []
        self._adapters = AdapterDesk(backend, store, send, self._forget_weights)
        self._isolation = Isolation[Request]()
        self.replays = Replays(backend, lambda: store.root, self._cache)
        self._closing: Close | None = None
        self.tokens_generated = 0
        self.requests_done = 0
        self.contexts_rebuilt = 0
        self._must_rebuild = False
        self._draining: Asked | None = None

    # ── called from the mailbox thread ──────────────────────────────────────────────────────────

    def interrupt(self, request_id: str) -> None:
        """Cut short the running step if it works for this request; its cancel is in the queue."""
        self._decoder.interrupt(request_id)

    def interrupt_all(self) -> None:
        """Cut short the running step; the command that says why is in the queue."""
        self._decoder.interrupt_all()

    def interrupt_overdue(self, budget_s: float) -> None:
        """Cut short the running step if it has run longer than this many seconds."""
        self._decoder.interrupt_overdue(budget_s)

    def phase(self) -> str:
        """``idle | prefilling | generating``: the furthest that any request is."""
        running = list(self._running)
        if any(request.n_generated for request in running):
            return "generating"
        return "prefilling" if running or len(self._waiting) else "idle"

    def counts(self) -> dict[str, float]:
        """Figures for a status report; read without a lock, so they may be a step old."""
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "tokens_generated": self.tokens_generated,
            "requests_done": self.requests_done,
            "contexts_rebuilt": self.contexts_rebuilt,
            **self._live.counts(),
            **self._cache.figures(),
            **self._guesses.counts(),
            "replays": self.replays.hits,
        }

    # ── the loop ────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        while self._closing is None:
            self._admit()  # before waiting: what has just ended may have made room
            self._take_commands()
            if self._closing is not None:
                break
            self._expire(time.monotonic())
            self._admit()
            ready = [request for request in self._running if request.is_ready]
            for request in [one for one in ready if not one.n_pending]:
                ready.remove(request)
                self._begin_at_once(request)
            if ready:
                self._step(self._isolation.choose(ready))
            elif self._draining is not None and not self._running and not len(self._waiting):
                self._drained(self._draining)
        self._end_all(self._closing)
        self._tails.write_all(SaveReason.SHUTDOWN)
        self._cache.close()
        self._guesses.close()
        self._backend.close()

    def _take_commands(self) -> None:
        """Handle all queued commands; wait for one when no request can run a step."""
        block = not any(request.is_ready for request in self._running)
        try:
            command = self._commands.get(block, self._patience() if block else None)
            while True:
                self._handle(command)
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _patience(self) -> float | None:
        """Seconds until something has to be given up; ``None`` when nothing has."""
        deadlines = [
            at
            for request in (*self._running, *self._waiting)
            for at in (None if request.is_finished else request.deadline, request.wait_until)
            if at is not None
        ]
        expires_at = self._live.expires_at()
        if expires_at is not None:
            deadlines.append(expires_at)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _handle(self, command: object) -> None:
        match command:
            case m.Run():
                self._open(command)
            case m.CancelRun(request_id):
                self._cancel(request_id)
            case m.PrefixResolved() | m.TextResolved():
                self._found(command)
            case m.RowsReserved():
                self._leave(self._cache.reserved(command, self._running))
            case Asked():
                self._answer(command)
            case m.WriteTails():
                self._tails.write_all(SaveReason.EVICT)
            case m.ForgetLive():
                self._live.drop_idle(unstored=True)
                self._forget_logits()
            case CacheGone():
                self._tending.cache_gone()
                for request in (*self._running, *self._waiting):
                    self._leave(self._cache.gone(request))
            case Close():
                self._closing = command
            case _:
                raise TypeError(f"the mailbox queued {command!r}: a bug in it")

    def _answer(self, asked: Asked) -> None:
        match asked.question:
            case m.Drain():
                self._draining = asked
            case question if isinstance(question, Question):
                self._adapters.handle(question, asked.reply_to)
            case question:
                self._tending.handle(question, asked.reply_to)

    # ── admission ───────────────────────────────────────────────────────────────────────────────

    def _open(self, run: m.Run) -> None:
        try:
            if self._draining is not None:
                raise RequestRefused(m.FailReason.MODEL_UNLOADED, BEING_UNLOADED)
            if not self._backend.info.can_generate:
                raise RequestRefused(m.FailReason.NOT_SUPPORTED, CANNOT_GENERATE)
            self._guesses.check(run.request)
            request = self._waiting.open(run, time.monotonic())
        except RequestRefused as refused:
            self.replays.forget(run.request_id)
            self._send(
                run.reply_to, m.CompletionFailed(run.request.ref, refused.reason, str(refused))
            )
            self._send("inflight", m.RequestEnded(run.request_id))
            return
        self.replays.begin(request, run)
        self._cache.resolve_parent(request)

    def _found(self, found: m.PrefixResolved | m.TextResolved) -> None:
        if isinstance(found, m.TextResolved):
            known = self._cache.text_resolved(found, self._waiting)
            if known is not None:
                self.replays.take_stored(*known, found)
        elif not self._tending.resolved(found):
            self._cache.resolved(found, (*self._running, *self._waiting))

    def _admit(self) -> None:
        """Start what can start, and hand on what leaders have read since."""
        asking = any(request.awaited_ref is not None for request in self._waiting)
        self._adapters.change(busy=bool(self._running) or asking)
        if not self._adapters.blocks:
            self._start_waiting()
        for request in self._live.follow(self._running):
            self._send(request.reply_to, request.progress())

    def _forget_weights(self) -> None:
        """Other adapters are about to be applied: nothing computed so far is of any use."""
        self._live.drop_idle()
        self._forget_logits()
        for request in self._waiting:
            request.keys.clear()  # of the old namespace
            request.first_logits = None

    def _forget_logits(self) -> None:
        self._known_logits.clear()
        self._cache.forget_tips()
        self.replays.recent.clear()

    def _settle(self, request: Request) -> None:
        self._live.settle(request, self._running)

    def _start_waiting(self) -> None:
        while (request := self._waiting.first()) is not None:
            try:
                admission = self._waiting.fit(request)
            except RequestRefused as refused:
                self._waiting.remove(request)
                self._fail(request, refused.reason, str(refused))
                continue
            if request.first_logits is None and self._cache.logits_pay(request):
                request.first_logits = self._known_logits.get(self._cache.prompt_key(request))
            lookup = self._cache.is_usable
            if not self._live.place(request, admission, self._running, lookup=lookup):
                return  # strictly first in, first out: small ones passing would starve a big one
            self._waiting.remove(request)
            request.start(request.kv_seq, admission, self._backend, time.monotonic())
            self._running.append(request)
            for event in resume.replay(request):
                self._send(request.reply_to, event)
            if not self._live.is_complete(request):
                self._cache.look_up(request)

    # ── one step ────────────────────────────────────────────────────────────────────────────────

    def _step(self, ready: list[Request]) -> None:
        info = self._backend.info
        ready, n_batch = resume.in_small_steps(ready, info.n_batch)
        plan = plan_step(ready, n_batch=n_batch, prefill_share=PREFILL_SHARE_TOKENS)
        plan = [self._cache.cut_at_stop(ready[part.index], part) for part in plan]
        plan = [resume.cut_at_reply(ready[part.index], part) for part in plan]
        plan = self._guesses.add_to(plan, ready, most=PREFILL_SHARE_TOKENS)
        if any(part.n_tokens > 1 for part in plan):
            for request in self._running:  # nothing waits behind a long step
                self._deliver(request)
        self._batch.clear()
        rows: list[tuple[Request, int | None]] = []
        for part in plan:
            request = ready[part.index]
            tokens = request.tokens[request.n_kv : request.n_kv + part.n_tokens]
            row = self._batch.extend_prefill(tokens, request.n_kv, request.kv_seq, part.reaches_end)
            rows.append((request, row if part.reaches_end else None))
            self._guesses.fill(self._batch, request, part)
        began = time.perf_counter()
        if not self._decode(rows):
            return
        self._cache.saw_step(len(self._batch), time.perf_counter() - began)
        self._guesses.saw_step(len(self._batch), time.perf_counter() - began)
        self._live.stepped()
        for part, (request, row) in zip(plan, rows, strict=True):
            request.n_kv += part.n_tokens
            self._cache.reached(request)
            if row is None:
                self._send(request.reply_to, request.progress())
            elif request.is_prefill_only:
                self._keep_logits(request, row)
                self._end_prefill(request)
            else:
                self._sample(request, row)
        if self._must_rebuild:
            self._rebuild()

    def _decode(self, rows: list[tuple[Request, int | None]]) -> bool:
        if not self._decoder.may_begin(request.request_id for request, _ in rows):
            self._drop_cancelled()
            return False
        error = self._decoder.run(self._batch)
        ran = [request for request, _ in rows]
        if error is None:
            self._isolation.acquit(ran)
            return True
        self._roll_back(rows)
        match error:
            case DecodeAborted():
                self._drop_cancelled()
            case NoKvSpace():
                # Admission counts cells, so this is a bug or a backend that needs more than it
                # says; idle sequences give way, then the youngest request; the others go on.
                if not self._live.drop_idle():
                    self._fail(rows[-1][0], m.FailReason.OVERLOADED, str(error))
            case _:
                for request in self._isolation.accuse(ran):
                    self._fail(request, m.FailReason.ENGINE_ERROR, str(error))
                if isinstance(error, DecodeFailed | StepOverdue):
                    self._rebuild()
        return False

    def _rebuild(self) -> None:
        """Go on in a new context: the old one is not to be trusted. Nobody is told, only later.

        If even that fails the process ends, and its supervisor takes it from there.
        """
        self._must_rebuild = False
        self._backend.rebuild()
        self.contexts_rebuilt += 1
        self._live.forget_all(self._running)
        for request in self._running:
            if request.is_finished or request.awaited_ref is not None:
                continue
            self._settle(request)
            if request.following is None:
                self._cache.look_up(request)

    def _roll_back(self, rows: list[tuple[Request, int | None]]) -> None:
        for request, _ in rows:
            if not self._backend.seq_remove(request.kv_seq, request.n_kv, -1):
                # A memory that cannot be cut went further, nobody knows how far: from the start.
                self._backend.seq_remove(request.kv_seq, 0, -1)
                request.n_kv = 0

    def _begin_at_once(self, request: Request) -> None:
        """The whole prompt is in the context and its logits are known: no decode is needed."""
        if request.is_prefill_only:
            self._end_prefill(request)
            return
        logits, request.first_logits = request.first_logits, None
        try:
            token = request.sample_known(logits, self._backend) if logits is not None else None
        except NativeError:
            token = None
        if token is None:  # not a distribution: compute the last token again instead
            request.n_kv -= 1
            request.n_reused = min(request.n_reused, request.n_kv)
            request.n_live = min(request.n_live, request.n_kv)
            self._backend.seq_remove(request.kv_seq, request.n_kv, -1)
            return
        self._accept(request, token)

    def _end_prefill(self, request: Request) -> None:
        """The prompt is in the context, and nothing more was asked for."""
        request.prefilled = time.monotonic()
        request.finish(m.FinishReason.PREFILLED, request.prefilled)
        self._send(request.reply_to, request.progress())
        self._finish(request)

    def _sample(self, request: Request, row: int) -> None:
        if request.ends_as is not None:
            request.finish(request.ends_as, time.monotonic())
            self._finish(request)
            return
        for at in self._guesses.rows(request, row):
            try:
                token = request.sample(self._backend, at)
            except NativeError as error:
                self._blame(request, error)
                return
            self._isolation.found_good_numbers()
            if not request.n_generated:
                self._keep_logits(request, at)
            self._accept(request, token)

    def _blame(self, request: Request, error: NativeError) -> None:
        """No token can be chosen for this request; the others of its step are not touched."""
        asked_for_it = isinstance(error, NoTokenLeft)
        reason = m.FailReason.INVALID_REQUEST if asked_for_it else m.FailReason.ENGINE_ERROR
        self._fail(request, reason, str(error))
        if isinstance(error, DecodeFailed) and self._isolation.found_bad_numbers():
            self._must_rebuild = True  # once the others of this step have their tokens

    def _keep_logits(self, request: Request, row: int) -> None:
        """Those of the prompt's last position: an exact repeat then needs no decode."""
        if self._backend.info.can_cut:
            request.tip_logits = self._backend.logits(row)
            self._known_logits.put(self._cache.prompt_key(request), request.tip_logits)

    def _accept(self, request: Request, token: int) -> None:
        now = time.monotonic()
        first = not request.n_generated
        request.hold(request.accept(token, self._backend, now))
        self.tokens_generated += 1
        due = first or now - request.delivered_at >= DELIVER_EVERY_S
        if due or len(request.held) >= HELD_TOKENS_LIMIT:
            self._deliver(request)
        if request.is_finished:
            self._guesses.trim(request)
            self._finish(request)
        elif first:
            self._cache.save(request, request.prompt_save_reason, request.n_prompt)
        else:
            self._cache.save_block(request)

    # ── endings ─────────────────────────────────────────────────────────────────────────────────

    def _deliver(self, request: Request) -> None:
        """Send the tokens that were held back for the sake of fewer messages."""
        for event in request.take_held(time.monotonic()):
            self._send(request.reply_to, event)

    def _finish(self, request: Request) -> None:
        """Store the tip, then tell; the rows are visible before the caller can ask for them."""
        self._deliver(request)
        for event in request.close_text():
            self._send(request.reply_to, event)
        self.replays.finished(request)
        if not self._cache.save_tip(request):
            self._release(request)

    def _leave(self, request: Request | None) -> None:
        """Let a finished request go whose last conversation with the cache has ended."""
        if request is not None:
            self._release(request)

    def _release(self, request: Request) -> None:
        """A finished request leaves: its cells are free, its caller gets the result."""
        self._deliver(request)
        self._send(request.reply_to, request.completed(time.monotonic()))
        self._forget(request)

    def _fail(self, request: Request, reason: m.FailReason, detail: str) -> None:
        self._deliver(request)
        self._send(request.reply_to, m.CompletionFailed(request.ref, reason, detail))
        self._forget(request, keep=reason is m.FailReason.DEADLINE)

    def _forget(self, request: Request, *, keep: bool = True) -> None:
        """``keep``: what it has computed is sound and may be shared by others."""
        self._send("inflight", m.RequestEnded(request.request_id))
        self.requests_done += 1
        self._guesses.forget(request)
        request.close_journal()
        self._isolation.forget(request)
        self._waiting.sessions.leave(request, time.monotonic())
        if request in self._waiting:
            self._waiting.remove(request)
        if request in self._running:
            self._running.remove(request)
        self._live.retire(request, self._running, keep=keep)

    def _cancel(self, request_id: str) -> None:
        self._decoder.cancelled.add(request_id)
        self._drop_cancelled()

    def _drop_cancelled(self) -> None:
        """End every cancelled request with what it has; an unknown id is a late cancel, a no-op."""
        for request in [r for r in (*self._running, *self._waiting) if not r.is_finished]:
            if request.request_id in self._decoder.cancelled:
                request.finish(m.FinishReason.CANCELLED, time.monotonic())
                if request.seq is not None and request.n_kv:
                    self._finish(request)
                else:
                    self._release(request)
        self._decoder.cancelled.clear()

    def _expire(self, now: float) -> None:
        self._live.stepped(0)
        for request in (*self._running, *self._waiting):
            if request.deadline is not None and now >= request.deadline and not request.is_finished:
                self._fail(
                    request,
                    m.FailReason.DEADLINE,
                    f"not finished within its time limit after {request.n_generated} tokens; "
                    "raise timeout_s or lower max_tokens",
                )
            elif request.wait_until is not None and now >= request.wait_until:
                self._leave(self._cache.time_is_up(request))

    def _drained(self, asked: Asked) -> None:
        if isinstance(asked.question, m.Drain):
            self._send(asked.reply_to, m.Drained(asked.question.ref))
        self._draining = Asked(None, None)  # it is said once; new requests stay refused

    def _end_all(self, close: Close) -> None:
        for request in (*self._running, *self._waiting):
            if request.is_finished:
                self._release(request)
            else:
                self._fail(request, close.reason, close.detail)
        self._refuse_queued(close)

    def _refuse_queued(self, close: Close) -> None:
        while not self._commands.empty():
            command = self._commands.get_nowait()
            if isinstance(command, m.Run):
                failed = m.CompletionFailed(command.request.ref, close.reason, close.detail)
                self._send(command.reply_to, failed)
                self._send("inflight", m.RequestEnded(command.request_id))
            elif isinstance(command, Asked) and isinstance(command.question, Question):
                self._adapters.handle(command.question, command.reply_to)
        self._adapters.close(close.reason, close.detail)
