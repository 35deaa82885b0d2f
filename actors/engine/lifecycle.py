"""Finishes requests: delivers buffered output and the final result, and releases resources.

Holds the requests that run and those that wait. Every one ends with exactly one ``Completed`` or
``CompletionFailed``. Runs on the engine thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from actors import messages as m
from actors.engine.live_sequences import LiveSequences
from actors.engine.queue import WaitingRequests
from actors.engine.reply_replay import ReplyReplay
from actors.engine.report import cache_report, result
from actors.engine.request import Request
from actors.engine.speculative_decoding import SpeculativeDecoder
from actors.kv.cache_client import CacheClient
from actors.kv.request_cache import RequestCache
from actors.messages.errors import RequestRefused

DELIVER_EVERY_S: Final = 0.005
"""A message costs the mailbox and the host about 0.2 ms of processor, which the compute threads
need too. A model that needs longer than this for a token sends each one at once; a faster one sends
several together, still faster than anyone reads."""
HELD_TOKENS_LIMIT: Final = 512
"""Keeps the message small however fast the model is."""


class Lifecycle:
    """The requests of one engine, from the queue to their end."""

    def __init__(
        self,
        running: list[Request],
        waiting: WaitingRequests,
        live: LiveSequences,
        cache: CacheClient,
        replays: ReplyReplay,
        guesses: SpeculativeDecoder,
        send: Callable[[object, object], None],
        cancelled: set[str],
    ) -> None:
        """``cancelled`` are ids of requests that are to end; other threads add to it."""
        self.running = running
        self.waiting = waiting
        self.cancelled = cancelled
        self.requests_done = 0
        self.steps_aside = 0
        self._live = live
        self._cache = cache
        self._replays = replays
        self._guesses = guesses
        self._send = send

    def all(self) -> list[Request]:
        return [*self.running, *self.waiting]

    def caches(self) -> list[RequestCache]:
        """The cache's part of all requests."""
        return [request.cache for request in self.all()]

    # ── output ──────────────────────────────────────────────────────────────────────────────────

    def deliver_if_due(self, request: Request, now: float, *, first: bool) -> None:
        """The first token is sent at once, later ones together with those that follow soon."""
        due = first or now - request.clock.delivered >= DELIVER_EVERY_S
        if due or len(request.reply.held) >= HELD_TOKENS_LIMIT:
            self.deliver(request)

    def deliver(self, request: Request) -> None:
        """Send the tokens that were held back for the sake of fewer messages."""
        if request.reply.held:
            request.clock.deliver(time.monotonic())
            self._send_all(request, request.reply.take_held())

    def _send_all(self, request: Request, events: Iterable[object]) -> None:
        for event in events:
            self._send(request.spec.reply_to, event)

    # ── results ─────────────────────────────────────────────────────────────────────────────────

    def finish(self, request: Request) -> None:
        """Store the tip, then send the result: its rows can be looked up by then."""
        self.deliver(request)
        self._send_all(request, request.reply.close_text())
        if request.line.seq is None:  # it has stepped aside: what it had is stored
            self._release(request)
            return
        self._replays.finished(request)
        if not self._cache.save_tip(request.cache, request.n_visible, time.monotonic()):
            self._release(request)

    def step_aside(self, request: Request) -> None:
        """Store all of a running request and free its sequence; it continues later."""
        self._guesses.rest(request)
        self.deliver(request)
        if not self._cache.save_all(request.cache, time.monotonic()):
            self._leave(request)

    def _leave(self, request: Request) -> None:
        """What could be stored of it is stored: others may have its cells."""
        now = time.monotonic()
        report = cache_report(request)
        self.running.remove(request)
        self._live.retire(request, self.running, now, keep=False)
        request.step_aside(report, now)
        self.waiting.come_back(request)
        self.steps_aside += 1

    def release(self, cache: RequestCache | None) -> None:
        """Release a request that is ending and whose last question to the cache has ended."""
        if cache is None:
            return
        request = next((one for one in self.all() if one.cache is cache), None)
        if request is None:
            return
        if request.is_finished:
            self._release(request)
        else:
            self._leave(request)

    def _release(self, request: Request) -> None:
        """A finished request ends: its caller gets the result, its cells are free."""
        self.deliver(request)
        self._send(request.spec.reply_to, result(request, time.monotonic()))
        self._forget(request)

    def refuse(self, request: Request, why: RequestRefused) -> None:
        """End a request that cannot be done."""
        self.fail(request, why.reason, str(why), why.facts)

    def fail(
        self,
        request: Request,
        reason: m.FailReason,
        detail: str,
        facts: m.FailureFacts | None = None,
    ) -> None:
        self.deliver(request)
        failed = m.CompletionFailed(request.spec.ref, reason, detail, facts)
        self._send(request.spec.reply_to, failed)
        self._forget(request, keep=reason is m.FailReason.DEADLINE)

    def _forget(self, request: Request, *, keep: bool = True) -> None:
        """``keep``: what it has computed is sound and may be shared by others."""
        now = time.monotonic()
        self._send("inflight", m.RequestEnded(request.spec.request_id))
        self.requests_done += 1
        self._guesses.forget(request)
        request.close_journal()
        self.waiting.sessions.leave(request, now)
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self.running.remove(request)
        self.waiting.pace.ended(now, is_busy=bool(self.running) or len(self.waiting) > 0)
        self._live.retire(request, self.running, now, keep=keep)

    # ── other ends ──────────────────────────────────────────────────────────────────────────────

    def drop_cancelled(self) -> None:
        """End every cancelled request with what it has; an unknown id is a late cancel, a no-op."""
        for request in [r for r in self.all() if not r.is_finished]:
            if request.spec.request_id in self.cancelled:
                request.finish(m.FinishReason.CANCELLED, time.monotonic())
                if request.line.n_kv or request.line.n_reply:
                    self.finish(request)
                else:
                    self._release(request)
        self.cancelled.clear()

    def expire(self, now: float) -> None:
        """End what has waited or run long enough."""
        self._live.stepped(0, now)
        for request in self.all():
            if request.clock.is_overdue(now) and not request.is_finished:
                self.fail(
                    request,
                    m.FailReason.DEADLINE,
                    f"not finished within its time limit after {request.line.n_generated} tokens; "
                    "raise timeout_s or lower max_tokens",
                )
            elif request.cache.is_due(now):
                self.release(self._cache.time_is_up(request.cache, now))

    def end_all(self, reason: m.FailReason, detail: str) -> None:
        """Every request: one that has finished gets its result, the others this failure."""
        for request in self.all():
            if request.is_finished:
                self._release(request)
            else:
                self.fail(request, reason, detail)
