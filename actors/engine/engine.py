"""The engine of a model: the one thread that owns the context and runs its steps.

It never touches Thespian. Commands come in through a queue, messages for others are passed to
``send``; in between it admits requests, asks the cache, restores, prefills in chunks, decodes all
running requests in one batch per step, and saves completed blocks. Every request that gets in here
ends with exactly one ``Completed`` or ``CompletionFailed``. ``build_engine`` puts it together.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from actors import messages as m
from actors.engine.abortable_decode import AbortableDecoder
from actors.engine.adapters import AdapterManager, Question
from actors.engine.cell_sharing import cells_in_use
from actors.engine.commands import Asked, CacheGone, Close
from actors.engine.control import ControlQueries
from actors.engine.draft_model import DraftModel
from actors.engine.exactness import Work, level_in_effect
from actors.engine.lifecycle import Lifecycle
from actors.engine.live_sequences import IdleSequence, LiveSequences
from actors.engine.prefetch import Prefetcher
from actors.engine.queue import WaitingRequests
from actors.engine.reply_replay import ReplyReplay
from actors.engine.report import progress
from actors.engine.request import Request
from actors.engine.room import Room
from actors.engine.room_policy import Admission
from actors.engine.speculation_policy import SpeculationPolicy
from actors.engine.speculative_decoding import SpeculativeDecoder
from actors.engine.step import StepRunner
from actors.kv.cache_client import CacheClient
from actors.kv.deferred_tails import DeferredTails
from actors.kv.request_cache import RequestCache
from actors.kv.store import KvStore
from actors.messages.errors import RequestRefused
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


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of."""

    backend: Backend
    commands: queue.SimpleQueue[object]
    send: Send
    decoder: AbortableDecoder
    live: LiveSequences
    cache: CacheClient
    tails: DeferredTails
    guesses: SpeculativeDecoder
    waiting: WaitingRequests
    prefetcher: Prefetcher
    replays: ReplyReplay
    requests: Lifecycle
    room: Room
    steps: StepRunner
    control: ControlQueries
    adapters: AdapterManager


def build_engine(  # noqa: PLR0913 - what may be chosen of an engine
    backend: Backend,
    store: KvStore,
    commands: queue.SimpleQueue[object],
    send: Send,
    *,
    max_queue: int,
    live: LivePolicy | None = None,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    speculation: SpeculationPolicy | None = None,
    draft_model: DraftModel | None = None,
    rules: ReplyRules | None = None,
    exact: m.Exact = m.Exact.REPEAT,
) -> ModelEngine:
    """Put an engine together, from what depends on nothing to what depends on all.

    ``guard`` is entered around each decode, so that one that does not end is noticed. ``exact`` is
    the level of requests that name none, and of all of them if it is ``ALWAYS``.
    """
    running: list[Request] = []
    idle: list[IdleSequence] = []
    decoder = AbortableDecoder(backend, guard)
    tails = DeferredTails(store, send, idle, lambda: [request.cache for request in running])
    sequences = LiveSequences(backend, live or LivePolicy(), tails, idle)
    cache = CacheClient(store, send, partial(_settle, running, sequences, send), tails)
    guesses = SpeculativeDecoder(backend, speculation, draft_model)
    waiting = WaitingRequests(backend, max_queue, rules, exact)
    prefetcher = Prefetcher(backend, store, waiting, sequences, send)
    replays = ReplyReplay(backend, store, cache)
    requests = Lifecycle(
        running, waiting, sequences, cache, replays, guesses, send, decoder.cancelled
    )
    room = Room(sequences, requests)
    forget = partial(_forget_weights, sequences, cache, replays, waiting, prefetcher)
    return ModelEngine(
        EngineParts(
            backend,
            commands,
            send,
            decoder,
            sequences,
            cache,
            tails,
            guesses,
            waiting,
            prefetcher,
            replays,
            requests,
            room,
            StepRunner(backend, decoder, sequences, cache, guesses, requests, room, send),
            ControlQueries(
                sequences, waiting.sessions, store, send, is_apart=exact is m.Exact.ALWAYS
            ),
            AdapterManager(backend, store, send, forget),
        )
    )


def _settle(running: list[Request], live: LiveSequences, send: Send, cache: RequestCache) -> None:
    """The lookup of a request has ended: share what is live beyond what was restored."""
    request = next((one for one in running if one.cache is cache), None)
    if request is not None:
        live.settle(request, running, time.monotonic())
        _announce(request, send)


def _announce(request: Request, send: Send) -> None:
    """Report, once, how much of a prompt is warm, before any of it is computed.

    A reply that continues after an interruption has begun: its caller had this report.
    """
    if request.turn.announce() and not request.resume.n_tokens:
        send(request.spec.reply_to, progress(request))


def _forget_weights(
    live: LiveSequences,
    cache: CacheClient,
    replays: ReplyReplay,
    waiting: WaitingRequests,
    prefetcher: Prefetcher,
) -> None:
    """Other adapters are about to be applied: nothing computed so far is of any use."""
    live.drop_idle()
    cache.forget_unstored()
    replays.recent.clear()
    prefetcher.end_all()
    for request in waiting:
        request.cache.namespace_changed()


class ModelEngine:
    """Runs requests until it is closed."""

    def __init__(self, parts: EngineParts) -> None:
        self._backend = parts.backend
        self._commands = parts.commands
        self._send = parts.send
        self._decoder = parts.decoder
        self._live = parts.live
        self._cache = parts.cache
        self._tails = parts.tails
        self._guesses = parts.guesses
        self._waiting = parts.waiting
        self._prefetcher = parts.prefetcher
        self._requests = parts.requests
        self._running = parts.requests.running
        self._room = parts.room
        self._steps = parts.steps
        self._control = parts.control
        self._adapters = parts.adapters
        self.replays = parts.replays
        self._closing: Close | None = None
        self._draining: Asked | None = None

    # ── called from the mailbox thread ──────────────────────────────────────────────────────────

    def interrupt(self, request_id: str) -> None:
        """Cut short the running step if it works for this request; its cancel is in the queue."""
        self._decoder.interrupt(request_id)

    def interrupt_all(self) -> None:
        """Cut short the running step; the command with the reason is in the queue."""
        self._decoder.interrupt_all()

    def give_way(self) -> None:
        """An interactive request is in the queue: background work that has just begun can wait."""
        self._decoder.give_way()

    def interrupt_overdue(self, budget_s: float) -> None:
        """Cut short the running step if it has run longer than this many seconds."""
        self._decoder.interrupt_overdue(budget_s)

    def phase(self) -> str:
        """``idle | prefilling | generating``: the furthest that any request is."""
        running = list(self._running)
        if any(request.line.n_generated for request in running):
            return "generating"
        if self._waiting.n_aside:
            return "generating"
        return "prefilling" if running or len(self._waiting) else "idle"

    def counts(self) -> dict[str, float]:
        """Figures for a status report; read without a lock, so they may be a step old."""
        return {
            "running": len(self._running),
            "waiting": len(self._waiting) - self._waiting.n_aside,
            "aside": self._waiting.n_aside,
            "steps_aside": self._requests.steps_aside,
            "tokens_generated": self._steps.tokens_generated,
            "requests_done": self._requests.requests_done,
            "contexts_rebuilt": self._steps.contexts_rebuilt,
            "running_cells": cells_in_use(one.line.stretches for one in list(self._running)),
            **self._live.counts(),
            **self._cache.figures(),
            **self._guesses.counts(),
            "steps_given_up": self._decoder.aborted_for_others,
            "replays": self.replays.hits,
        }

    def traces(self) -> list[str]:
        """Ids of the traces that what runs now is a part of."""
        return sorted({one.spec.trace_id for one in list(self._running)} - {""})

    # ── the loop ────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        while self._closing is None:
            n_left = self._requests.steps_aside
            self._admit()  # before waiting: what has just ended may have made room
            self._room.grow()
            # Where one stepped aside at once, another may be able to go on.
            self._take_commands(may_wait=self._requests.steps_aside == n_left)
            if self._closing is not None:
                break
            self._requests.expire(time.monotonic())
            self._admit()
            self._report_places()
            if not self._adapters.blocks:
                self._prefetcher.look_ahead(self._running, time.monotonic())
            if not self._steps.run() and self._is_drained():
                self._drained()
        self._requests.end_all(self._closing.reason, self._closing.detail)
        self._refuse_queued(self._closing)
        self._tails.write_all(SaveReason.SHUTDOWN)
        self._cache.close()
        self._guesses.close()
        self._backend.close()

    def _take_commands(self, *, may_wait: bool) -> None:
        """Handle all queued commands; wait for one when no request can run a step."""
        block = may_wait and not self._steps.ready()
        self._decoder.looked()
        try:
            command = self._commands.get(block, self._patience() if block else None)
            while True:
                self._handle(command)
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _patience(self) -> float | None:
        """Seconds until something expires; ``None`` when nothing does."""
        deadlines: list[float] = []
        for request in self._requests.all():
            if request.clock.deadline is not None and not request.is_finished:
                deadlines.append(request.clock.deadline)
            if request.cache.wait_until is not None:
                deadlines.append(request.cache.wait_until)
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
                self._reserved(command)
            case Asked():
                self._answer(command)
            case m.WriteTails():
                self._tails.write_all(SaveReason.EVICT)
            case m.ForgetLive():
                self._live.drop_idle(unstored=True)
                self._cache.forget_unstored()
                self.replays.recent.clear()
            case CacheGone():
                self._control.cache_gone()
                self._prefetcher.cache_gone(time.monotonic())
                for request in self._requests.all():
                    self._requests.release(self._cache.gone(request.cache))
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
                    self._control.handle(question, asked.reply_to)
                except RequestRefused as refused:
                    self._send(asked.reply_to, refusal(question, refused.reason, str(refused)))
                except Exception as error:  # noqa: BLE001 - it ends this question, not the others
                    detail = f"{type(error).__name__}: {error}"
                    failed = refusal(question, m.FailReason.ENGINE_ERROR, detail)
                    self._send(asked.reply_to, failed)
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
            rendered = self.replays.rendered_of(run.request_id)
            request = self._waiting.open(run, time.monotonic(), rendered)
        except RequestRefused as refused:
            self.replays.forget(run.request_id)
            why = refused.reason, str(refused), refused.facts
            self._send(run.reply_to, m.CompletionFailed(run.request.ref, *why))
            self._send("inflight", m.RequestEnded(run.request_id))
            return
        now = time.monotonic()
        self.replays.begin(request, run, now)
        self._cache.resolve_parent(request.cache, now)
        self._refuse_early(request)

    def _refuse_early(self, request: Request) -> None:
        """A prompt that is known and does not fit is refused before its turn."""
        try:
            self._waiting.check(request)
        except RequestRefused as refused:
            self._requests.refuse(request, refused)

    def _found(self, found: m.PrefixResolved | m.TextResolved) -> None:
        now = time.monotonic()
        asked = next((one for one in self._waiting if one.cache.awaited_ref == found.ref), None)
        if isinstance(found, m.TextResolved):
            waiting = {request.cache: request for request in self._waiting}
            known = self._cache.text_resolved(found, waiting, now)
            if known is not None:
                cache, ids = known
                self.replays.take_stored(waiting[cache], ids, found)
        elif not self._control.resolved(found):
            self._cache.resolved(found, self._requests.caches(), now)
        if asked is not None:
            self._refuse_early(asked)

    def _reserved(self, grants: m.RowsReserved) -> None:
        caches = [request.cache for request in self._running]
        self._requests.release(self._cache.reserved(grants, caches, time.monotonic()))

    def _admit(self) -> None:
        """Start what can start, and share what leaders have read since."""
        asking = any(request.cache.is_waiting for request in self._waiting)
        in_use = bool(self._running) or self._waiting.n_aside > 0
        self._adapters.change(busy=in_use or asking)
        self._room.owe(time.monotonic())
        self._start_waiting(only_begun=self._adapters.blocks)
        for request in self._live.follow(self._running, time.monotonic()):
            self._send(request.spec.reply_to, progress(request))

    def _start_waiting(self, *, only_begun: bool) -> None:
        while (request := self._waiting.first(only_begun=only_begun)) is not None:
            try:
                admission = self._waiting.fit(request)
            except RequestRefused as refused:
                self._requests.refuse(request, refused)
                continue
            self._cache.find_logits(request.cache)
            now, lookup = time.monotonic(), self._cache.is_usable
            if not self._room.start(request, admission, now, lookup=lookup):
                return  # strictly in order: small ones passing would starve a big one
            self._waiting.remove(request)
            is_new = not request.turn.has_started
            level = self._level(request, admission) if is_new else None
            request.start(admission, self._backend, now, level)
            self._running.append(request)
            for event in request.replay() if is_new else ():
                self._send(request.spec.reply_to, event)
            if self._live.is_complete(request):
                _announce(request, self._send)
            else:
                self._cache.look_up(request.cache, now)

    def _report_places(self) -> None:
        """Report to callers that asked for it where their requests are in the queue."""
        for request, place in self._waiting.moved(time.monotonic()):
            self._send(request.spec.reply_to, m.Queued(request.spec.ref, place))

    def _level(self, request: Request, admission: Admission) -> m.Exact:
        n_reply = admission.max_tokens
        work = Work(request.line.prompt_end, n_reply, self._cache.n_again(n_reply))
        speeds = self._cache.speeds()
        return level_in_effect(request.spec.exact, request.exact, work, speeds)

    # ── ends ────────────────────────────────────────────────────────────────────────────────────

    def _cancel(self, request_id: str) -> None:
        self._decoder.cancelled.add(request_id)
        self._requests.drop_cancelled()

    def _is_drained(self) -> bool:
        return self._draining is not None and not self._requests.all()

    def _drained(self) -> None:
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
