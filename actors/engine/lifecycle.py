"""How requests leave an engine: with what they have said, a failure, or nobody to hear it.

Holds the requests that run and those that wait. Every one leaves with exactly one ``Completed`` or
``CompletionFailed``. Runs on the engine thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from actors import messages as m
from actors.engine.live_sequences import LiveSequences
from actors.engine.queue import WaitingRequests
from actors.engine.reply_replay import Replays
from actors.engine.request import Request
from actors.engine.speculative_decoding import Guesses
from actors.kv.cache_client import CacheDialogue

# A message costs the mailbox and the host about 0.2 ms of processor, which the compute threads want
# too. A model that needs longer than this for a token sends each one at once; a faster one sends
# several together, still faster than anyone reads.
DELIVER_EVERY_S = 0.005
HELD_TOKENS_LIMIT = 512  # keeps the message small however fast the model is


class Endings:
    """The requests of one engine, and their last words."""

    def __init__(
        self,
        waiting: WaitingRequests,
        live: LiveSequences,
        cache: CacheDialogue,
        replays: Replays,
        guesses: Guesses,
        send: Callable[[object, object], None],
        cancelled: set[str],
    ) -> None:
        """``cancelled`` are ids of requests that are to end; other threads add to it."""
        self.running: list[Request] = []
        self.waiting = waiting
        self.cancelled = cancelled
        self.requests_done = 0
        self._live = live
        self._cache = cache
        self._replays = replays
        self._guesses = guesses
        self._send = send

    def all(self) -> list[Request]:
        return [*self.running, *self.waiting]

    # ── words on the way ────────────────────────────────────────────────────────────────────────

    def deliver_if_due(self, request: Request, now: float, *, first: bool) -> None:
        """The first token leaves at once, later ones together with those that come soon after."""
        due = first or now - request.delivered_at >= DELIVER_EVERY_S
        if due or len(request.held) >= HELD_TOKENS_LIMIT:
            self.deliver(request)

    def deliver(self, request: Request) -> None:
        """Send the tokens that were held back for the sake of fewer messages."""
        for event in request.take_held(time.monotonic()):
            self._send(request.reply_to, event)

    def finish(self, request: Request) -> None:
        """Store the tip, then tell; the rows are visible before the caller can ask for them."""
        self.deliver(request)
        for event in request.close_text():
            self._send(request.reply_to, event)
        self._replays.finished(request)
        if not self._cache.save_tip(request):
            self._release(request)

    def leave(self, request: Request | None) -> None:
        """Let a finished request go whose last conversation with the cache has ended."""
        if request is not None:
            self._release(request)

    def _release(self, request: Request) -> None:
        """A finished request leaves: its cells are free, its caller gets the result."""
        self.deliver(request)
        self._send(request.reply_to, request.completed(time.monotonic()))
        self._forget(request)

    def fail(self, request: Request, reason: m.FailReason, detail: str) -> None:
        self.deliver(request)
        self._send(request.reply_to, m.CompletionFailed(request.ref, reason, detail))
        self._forget(request, keep=reason is m.FailReason.DEADLINE)

    def _forget(self, request: Request, *, keep: bool = True) -> None:
        """``keep``: what it has computed is sound and may be shared by others."""
        self._send("inflight", m.RequestEnded(request.request_id))
        self.requests_done += 1
        self._guesses.forget(request)
        request.close_journal()
        self.waiting.sessions.leave(request, time.monotonic())
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self.running.remove(request)
        self._live.retire(request, self.running, keep=keep)

    def drop_cancelled(self) -> None:
        """End every cancelled request with what it has; an unknown id is a late cancel, a no-op."""
        for request in [r for r in self.all() if not r.is_finished]:
            if request.request_id in self.cancelled:
                request.finish(m.FinishReason.CANCELLED, time.monotonic())
                if request.seq is not None and request.n_kv:
                    self.finish(request)
                else:
                    self._release(request)
        self.cancelled.clear()

    def expire(self, now: float) -> None:
        """Whatever has waited or lived long enough."""
        self._live.stepped(0)
        for request in self.all():
            if request.deadline is not None and now >= request.deadline and not request.is_finished:
                self.fail(
                    request,
                    m.FailReason.DEADLINE,
                    f"not finished within its time limit after {request.n_generated} tokens; "
                    "raise timeout_s or lower max_tokens",
                )
            elif request.wait_until is not None and now >= request.wait_until:
                self.leave(self._cache.time_is_up(request))

    def end_all(self, reason: m.FailReason, detail: str) -> None:
        """Every request: one that has finished gets its result, the others this failure."""
        for request in self.all():
            if request.is_finished:
                self._release(request)
            else:
                self.fail(request, reason, detail)
