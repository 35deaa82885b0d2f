"""Spends a day of agents at a place: every agent in a thread of its own, its requests in order.

A day may be interrupted once. At noon the place is stopped in order while no request runs, and
started again. A kill comes while the others' requests run; their agents ask again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from bench.day_places import Answer, Broken, Client, Place
from bench.workload import Conversation, Day, Ledger, Request, Tokens, play

_TRIES = 4
"""Of one request; only a kill breaks any."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """What happens when so many requests of the day have been answered."""

    how: Literal["restart", "kill"]
    after: int


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and its answer."""

    request: Request
    n_known: int
    """Tokens of the prompt that might have been reused: those of an earlier prompt or reply."""
    answer: Answer
    """It begins with the first try."""
    last_try: float
    """When the try began that was answered."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole day; seconds by ``perf_counter``."""

    asked: tuple[Asked, ...]
    seconds: float
    """From the first request to the last answer."""
    down_at: float = 0.0
    """When the interruption began; 0: there was none."""
    looked_s: float = 0.0
    """Of the interruption, for reading what was stored."""

    @property
    def after(self) -> list[Asked]:
        """The requests that were answered by what was started again."""
        return [one for one in self.asked if one.answer.first_at > self.down_at]

    @property
    def pause_s(self) -> float:
        """From the interruption to the first token of any agent."""
        return min(one.answer.first_at for one in self.after) - self.down_at - self.looked_s


def spend(
    day: Day,
    place: Place,
    banned: Sequence[int],
    interruption: Interruption | None = None,
    look: Callable[[], None] = lambda: None,
) -> Outcome:
    """The place is started already. ``look`` is called while it is down."""
    return _Run(day, place, tuple(banned), interruption, look).outcome()


class _Run:
    """The state that the agents' threads share, all of it behind ``_changed``."""

    def __init__(
        self,
        day: Day,
        place: Place,
        banned: Tokens,
        interruption: Interruption | None,
        look: Callable[[], None],
    ) -> None:
        self._day, self._place, self._banned = day, place, banned
        self._interruption, self._look = interruption, look
        self._changed = threading.Condition()
        self._ledger = Ledger()
        self._asked: list[Asked] = []
        self._running = 0
        self._is_open = True
        self._has_failed = False
        self._down_at = self._looked_s = 0.0

    def outcome(self) -> Outcome:
        began = time.perf_counter()
        with ThreadPoolExecutor(len(self._day.conversations)) as pool:
            agents = [pool.submit(self._agent, one) for one in self._day.conversations]
            try:
                if self._interruption is not None:
                    self._interrupt(self._interruption)
                _raise_first(agents)
            except BaseException:
                self._fail()
                raise
        seconds = time.perf_counter() - began
        return Outcome(tuple(self._asked), seconds, self._down_at, self._looked_s)

    def _agent(self, conversation: Conversation) -> None:
        try:
            requests = play(conversation)
            request = next(requests)
            while True:
                reply = self._ask(request)
                try:
                    request = requests.send(reply)
                except StopIteration:
                    return
        except BaseException:
            self._fail()
            raise

    def _ask(self, request: Request) -> Tokens:
        with self._changed:
            n_known = self._ledger.sent(request.prompt)
        first_try, tries = time.perf_counter(), 0
        while True:
            try:
                answer = self._once(request)
                break
            except Broken:
                tries += 1
                is_expected = self._interruption is not None and self._interruption.how == "kill"
                if tries >= _TRIES or not is_expected:
                    raise
        with self._changed:
            self._ledger.answered(request.prompt, answer.reply)
            whole = replace(answer, began=first_try) if tries else answer
            self._asked.append(Asked(request, n_known, whole, answer.began))
            self._changed.notify_all()
        return answer.reply

    def _once(self, request: Request) -> Answer:
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._has_failed)
            if self._has_failed:
                raise RuntimeError("another agent failed")
            self._running += 1
        try:
            return Client(self._place.port, self._banned).ask(request.prompt, request.n_reply)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _interrupt(self, planned: Interruption) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._asked) >= planned.after or self._has_failed)
            self._is_open = False
            if planned.how == "restart":
                self._changed.wait_for(lambda: not self._running)
        self._down_at = time.perf_counter()
        if planned.how == "restart":
            self._place.stop()
        else:
            self._place.kill()
        dead_at = time.perf_counter()
        self._look()
        self._looked_s = time.perf_counter() - dead_at
        self._place.start()
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def _fail(self) -> None:
        with self._changed:
            self._has_failed = True
            self._changed.notify_all()


def _raise_first(agents: Sequence[Future[None]]) -> None:
    """The failure that came first; those of the other agents only follow from it."""
    errors = [error for one in agents if (error := one.exception()) is not None]
    chosen = [error for error in errors if "another agent" not in str(error)]
    if errors:
        raise (chosen or errors)[0]
