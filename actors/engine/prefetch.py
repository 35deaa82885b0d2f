"""Asks cache_meta to bring rows of queued requests into RAM, so that they start from there.

Runs on the engine thread, between two steps. Nothing is awaited, and nothing depends on it: a
request whose rows did not come in time reads them from where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from actors.engine.live_sequences import LiveSequences
from actors.engine.prefetch_policy import REQUESTS_AHEAD, Candidate, next_to_prefetch
from actors.engine.prompt_tokens import fix_prompt
from actors.engine.queue import WaitingRequests
from actors.engine.request import Request
from actors.kv.cache_client import LOOKUP_TIMEOUT_S
from actors.kv.store import KvStore
from actors.messages import PrefetchEnded
from actors.messages.errors import RequestRefused
from native.backend import Backend


class Prefetcher:
    """What was asked for, for the requests of one queue."""

    def __init__(
        self,
        backend: Backend,
        store: KvStore,
        waiting: WaitingRequests,
        live: LiveSequences,
        send: Callable[[object, object], None],
    ) -> None:
        self._backend = backend
        self._store = store
        self._waiting = waiting
        self._live = live
        self._send = send
        self._asked: dict[Request, str | None] = {}
        """By request the ``ref`` of what was asked; ``None`` where there is nothing to ask for."""
        self._not_before = 0.0

    def look_ahead(self, running: Sequence[Request], now: float) -> None:
        """Ask for the rows of requests at the front of the queue, and end what is not needed.

        Call it when requests have started: their own lookups come first.
        """
        for request in [one for one in self._asked if one not in self._waiting]:
            self._end(request)
        if not len(self._waiting) or now < self._not_before or not self._is_on:
            return
        queue = list(islice(self._waiting, REQUESTS_AHEAD))
        for index in next_to_prefetch([self._candidate(one) for one in queue]):
            self._asked[queue[index]] = self._ask(queue[index], running)

    @property
    def _is_on(self) -> bool:
        return self._store.policy.restore.prefetch and self._store.is_usable

    def _candidate(self, request: Request) -> Candidate:
        prompt = request.prompt
        is_text = prompt.text is not None and (prompt.follows_parent or not request.line.tokens)
        return Candidate(
            text_bytes=len(prompt.text or "") if is_text else 0,
            is_asked=request in self._asked,
            is_held=request.cache.wait_until is not None,
        )

    def _ask(self, request: Request, running: Sequence[Request]) -> str | None:
        try:
            fix_prompt(request, self._backend)
        except RequestRefused:  # it is refused when its turn comes
            return None
        n_live = 0
        if self._store.can_cut:
            packed, namespace = request.line.packed(), request.cache.namespace
            n_live = self._live.longest_match(packed, namespace, running)
            if n_live >= len(request.line.tokens):
                return None  # all of it is in the context
        asked = self._store.prefetch(request.cache, n_live)
        self._send("cache_meta", asked)
        return asked.ref

    def _end(self, request: Request) -> None:
        """It has started, or has ended: what is still missing is not copied for it any more."""
        ref = self._asked.pop(request)
        if ref is not None:
            self._store.answered(ref)
            self._send("cache_meta", PrefetchEnded(ref, self._store.holder))

    def end_all(self) -> None:
        """The weights change: other rows are needed from now on."""
        for request in list(self._asked):
            self._end(request)

    def cache_gone(self, now: float) -> None:
        """Nothing that was asked is known any more. It is asked again, but not at once."""
        for ref in self._asked.values():
            if ref is not None:
                self._store.answered(ref)
        self._asked.clear()
        self._not_before = now + LOOKUP_TIMEOUT_S
