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

from actors import messages as m
from actors.engine import resume
from actors.engine.abortable_decode import Decoder
from actors.engine.adapters import AdapterDesk, Question
from actors.engine.commands import Asked, CacheGone, Close
from actors.engine.control import Tending
from actors.engine.draft_model import Drafter
from actors.engine.lifecycle import Endings
from actors.engine.live_sequences import LiveSequences
from actors.engine.queue import WaitingRequests
from actors.engine.reply_replay import Replays
from actors.engine.request import Request, RequestRefused
from actors.engine.speculation_policy import SpeculationPolicy
from actors.engine.speculative_decoding import Guesses
from actors.engine.step import Stepper
from actors.kv.cache_client import CacheDialogue
from actors.kv.deferred_tails import LateTails
from actors.kv.store import KvStore
from actors.requests.questions import CacheQuestion, refusal
from actors.text.reply_events import ReplyRules
from cache.policy import LivePolicy
from cache.rows import SaveReason
from native.backend import Backend

BEING_UNLOADED = "this model is being unloaded and takes no new requests; load it again"
CANNOT_GENERATE = (
    "this model cannot generate: it was loaded with vocab_only, or it only embeds; load it without "
    "vocab_only, or use another"
)
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
        self._commands = commands
        self._send = send
        self._decoder = Decoder(backend, guard)
        self._live = LiveSequences(backend, live or LivePolicy())
        self._cache = CacheDialogue(store, send, self._settle)
        self._tails = LateTails(store, send, lambda: self._live.idle, lambda: self._running)
        self._live.tails = self._cache.tails = self._tails
        self._guesses = Guesses(backend, speculation, drafter)
        self._waiting = WaitingRequests(backend, max_queue, rules)
        self.replays = Replays(backend, lambda: store.root, self._cache)
        self._endings = Endings(
            self._waiting,
            self._live,
            self._cache,
            self.replays,
            self._guesses,
            send,
            self._decoder.cancelled,
        )
        self._running = self._endings.running
        self._stepper = Stepper(
            backend, self._decoder, self._live, self._cache, self._guesses, self._endings, send
        )
        self._tending = Tending(self._live, self._waiting.sessions, store, send)
        self._adapters = AdapterDesk(backend, store, send, self._forget_weights)
        self._closing: Close | None = None
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
            "tokens_generated": self._stepper.tokens_generated,
            "requests_done": self._endings.requests_done,
            "contexts_rebuilt": self._stepper.contexts_rebuilt,
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
            self._endings.expire(time.monotonic())
            self._admit()
            if not self._stepper.run() and self._is_drained():
                self._say_drained()
        self._endings.end_all(self._closing.reason, self._closing.detail)
        self._refuse_queued(self._closing)
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
            for request in self._endings.all()
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
                self._endings.leave(self._cache.reserved(command, self._running))
            case Asked():
                self._answer(command)
            case m.WriteTails():
                self._tails.write_all(SaveReason.EVICT)
            case m.ForgetLive():
                self._live.drop_idle(unstored=True)
                self._forget_logits()
            case CacheGone():
                self._tending.cache_gone()
                for request in self._endings.all():
                    self._endings.leave(self._cache.gone(request))
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
            case question if isinstance(question, CacheQuestion):
                try:
                    self._tending.handle(question, asked.reply_to)
                except Exception as error:  # noqa: BLE001 - it ends this question, not the others
                    detail = f"{type(error).__name__}: {error}"
                    refused = refusal(question, m.FailReason.ENGINE_ERROR, detail)
                    self._send(asked.reply_to, refused)
            case question:
                raise TypeError(f"the mailbox queued {question!r}: a bug in it")

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
            self._cache.resolved(found, self._endings.all())

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
        self._stepper.known_logits.clear()
        self._cache.forget_finish_keys()
        self.replays.recent.clear()

    def _settle(self, request: Request) -> None:
        self._live.settle(request, self._running)

    def _start_waiting(self) -> None:
        while (request := self._waiting.first()) is not None:
            try:
                admission = self._waiting.fit(request)
            except RequestRefused as refused:
                self._waiting.remove(request)
                self._endings.fail(request, refused.reason, str(refused))
                continue
            if request.first_logits is None and self._cache.logits_pay(request):
                request.first_logits = self._stepper.known_logits.get(
                    self._cache.prompt_key(request)
                )
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

    # ── endings ─────────────────────────────────────────────────────────────────────────────────

    def _cancel(self, request_id: str) -> None:
        self._decoder.cancelled.add(request_id)
        self._endings.drop_cancelled()

    def _is_drained(self) -> bool:
        return self._draining is not None and not self._endings.all()

    def _say_drained(self) -> None:
        """Once; new requests stay refused."""
        asked, self._draining = self._draining, Asked(None, None)
        if asked is not None and isinstance(asked.question, m.Drain):
            self._send(asked.reply_to, m.Drained(asked.question.ref))

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
