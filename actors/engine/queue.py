"""Requests without a sequence: those that have arrived, and those that have stepped aside.

In the order of their rank: interactive ones first, then by arrival. Runs on the engine thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from actors import messages as m
from actors.engine.prompt_tokens import fix_prompt, is_known, too_long
from actors.engine.request import Request
from actors.engine.request_builder import open_request
from actors.engine.room_policy import Admission, admit
from actors.engine.sessions import Sessions
from actors.messages.errors import RequestRefused
from actors.messages.queue_pace import QueuePace
from actors.text.rendered_prompt import Rendered
from actors.text.reply_events import ReplyRules
from native.backend import Backend


class WaitingRequests:
    """A bounded queue; what cannot ever run is refused with the reason."""

    def __init__(
        self,
        backend: Backend,
        limit: int,
        rules: ReplyRules | None = None,
        exact: m.Exact = m.Exact.REPEAT,
    ) -> None:
        """``exact`` is how exact the replies of requests are that do not name a level."""
        self._backend = backend
        self._exact = exact
        self._rules = rules or ReplyRules()
        self._limit = limit
        self.sessions = Sessions()
        self.pace = QueuePace()
        self._requests: list[Request] = []
        self._numbers = itertools.count()

    @property
    def n_aside(self) -> int:
        """How many of them have stepped aside."""
        return sum(one.turn.has_started for one in list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    def __contains__(self, request: Request) -> bool:
        return request in self._requests

    def open(self, run: m.Run, now: float, rendered: Rendered | None = None) -> Request:
        """Take a request in, or RequestRefused."""
        n_waiting = len(self._requests) - self.n_aside
        if n_waiting >= self._limit:
            raise RequestRefused(
                m.FailReason.OVERLOADED,
                f"{n_waiting} requests already wait for this model; try again later",
                self.pace.facts(now),
            )
        request = open_request(run, self._backend, self._rules, self._exact, rendered, now=now)
        try:
            self.sessions.begin(request, now)
            if request.prompt.follows_parent and request.cache.parent_tokens:
                fix_prompt(request, self._backend)
        except RequestRefused:
            self.sessions.leave(request, now)
            request.close_journal()
            raise
        request.turn.arrive(next(self._numbers), now)
        self._requests.append(request)
        self.pace.arrived(now)
        return request

    def check(self, request: Request) -> None:
        """RequestRefused if its prompt is known already and does not fit: its turn changes nothing.

        A prompt that has yet to be tokenised here, or of which the cache is being asked, is checked
        when its turn comes.
        """
        if is_known(request):
            fix_prompt(request, self._backend)
            self._admission(request)

    def moved(self, now: float) -> list[tuple[Request, int]]:
        """Requests that wait for their first turn, and their places, where callers receive these.

        A place is the number of requests that are more urgent.
        """
        if not any(one.spec.queue_events for one in self._requests):
            return []
        ranked = sorted(self._requests, key=lambda one: one.turn.rank)
        return [
            (one, place)
            for place, one in enumerate(ranked)
            if one.spec.queue_events
            and not one.turn.has_started
            and one.cache.wait_until is None
            and one.turn.moves_to(place, now)
        ]

    def come_back(self, request: Request) -> None:
        """It has stepped aside, and waits at the place that its class and arrival give it."""
        self._requests.append(request)

    def first(self, *, only_begun: bool = False) -> Request | None:
        """The most urgent that does not wait for the tokens of its ``parent_key``.

        With ``only_begun`` of those that have stepped aside.
        """
        ready = (
            one
            for one in self._requests
            if one.cache.wait_until is None and (one.turn.has_started or not only_begun)
        )
        return min(ready, key=lambda one: one.turn.rank, default=None)

    def fit(self, request: Request) -> Admission:
        """What a request may have that is about to start, or RequestRefused."""
        fix_prompt(request, self._backend)
        admission = self._admission(request)
        request.take_up(admission, self._backend)
        request.reply.make_sampler(self._backend, request.line)
        return admission

    def _admission(self, request: Request) -> Admission:
        n_prompt, n_ctx = request.line.prompt_end, self._backend.info.n_ctx
        admission = admit(n_prompt, request.spec.max_tokens, n_ctx)
        if not admission.fits:
            raise too_long(n_prompt, n_ctx)
        return admission

    def remove(self, request: Request) -> None:
        self._requests.remove(request)
