"""The load of a soak: threads that send requests to two models and check all of every answer."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from runtime import CompletionEvent, Node, ResumedEvent, TokenEvent, errors
from tests.support.soak_plan import MODELS
from tests.support.soak_replies import Job, Known, Reply, difference

DEADLINE_S = 75.0
"""The client heals for 30 s at most, and a suspect may hold others up for some seconds more."""
ALLOWED = (errors.NoReply, errors.RequestPoisoned)
"""Errors that a kill may cause: no reply in time, or a request that four kills in a row have hit,
which then counts as their cause. Not ``ModelDown``: replies are resumed."""
THINK_S = 0.04
KINDS = ("complete", "complete", "stream", "stream", "leave")
SPECULATION = ("off", "ngram")


@dataclass
class Load:
    """Client threads and what became of their requests."""

    node: Node
    seed: int
    known: Known
    n_threads: int = 3
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    resumed: int = 0
    n_compared: int = 0
    """Tokens whose logarithms were compared."""
    n_lacking: int = 0
    """Tokens of resumed replies that came without."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: dict[str, tuple[float, str]] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for number in range(self.n_threads):
            thread = threading.Thread(target=self._work, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def finish(self, within_s: float = DEADLINE_S + 1.0) -> None:
        """Let every request come to its end; one that does not is a violation."""
        self._stop.set()
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.check()

    def check(self) -> list[str]:
        """Violations so far; those of requests that wait too long among them."""
        now = time.monotonic()
        for name, (since, what) in list(self._running.items()):
            if now - since > DEADLINE_S:
                self.violations.append(f"{name}: {what} has no end after {now - since:.0f} s")
                self._running.pop(name, None)
        return self.violations

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        name = f"client {number}"
        while not self._stop.wait(rng.uniform(0.0, THINK_S)):
            model = rng.choice(MODELS)
            job = rng.choice(self.known.jobs)
            kind, speculation = rng.choice(KINDS), rng.choice(SPECULATION)
            what = f"long {kind}" if job.is_long else kind
            began = time.monotonic()
            self._running[name] = (began, f"{what} of {job.n_tokens} tokens on {model}")
            try:
                self._ask(kind, model, job, speculation)
                end = "ok"
            except ALLOWED as error:
                end = type(error).__name__
            except Exception:  # noqa: BLE001 - any exception is a finding
                self.violations.append(f"{name}: {what} on {model}: {traceback.format_exc()}")
                end = "untyped"
            self.ends[f"{what}: {end}"] += 1
            self._running.pop(name, None)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _ask(self, kind: str, model: str, job: Job, speculation: str) -> None:
        """Ask, and compare what came, also where an error ends it."""
        arguments = job.arguments(self.known.model.exact) | {"speculation": speculation}
        where = f"{kind} on {model}, guesses {speculation}"
        if kind == "complete":
            done = self.node.complete(model, job.prompt, **arguments)
            self._compare(f"{where}, from {done.cache.source}", job, Reply.of(done), True)
            return
        reply, is_resumed = Reply(), False
        try:
            for event in self.node.stream(model, job.prompt, resumed_events=True, **arguments):
                match event:
                    case ResumedEvent():
                        is_resumed = True
                        self.resumed += 1
                    case TokenEvent():
                        if event.index != len(reply.tokens):
                            self._violated(
                                f"{where}: token {event.index} after {len(reply.tokens)}"
                            )
                        reply = reply.plus(event.tokens, event.text, event.logprobs)
                        if kind == "leave":
                            break
                    case CompletionEvent(done):
                        whole = Reply.of(done)
                        where += f", from {done.cache.source}"
                        if (reply.tokens, reply.text) != (whole.tokens, whole.text):
                            self._violated(f"{where}: the parts are not the whole")
                        if done.cache.exact.value != self.known.model.exact:
                            self._violated(f"{where}: it is exact as {done.cache.exact}")
                        reply = whole
        finally:
            self._compare(where + ", resumed" * is_resumed, job, reply, is_resumed)

    def _compare(self, where: str, job: Job, got: Reply, may_lack: bool) -> None:
        n_lacking = got.logprobs.count(None)
        self.n_lacking += n_lacking
        self.n_compared += len(got.logprobs) - n_lacking
        found = difference(got, self.known.replies[job], may_lack=may_lack)
        if found is not None:
            self._violated(f"{where}: {job.prompt[-12:]!r} with {dict(job.options)}: {found}")

    def _violated(self, what: str) -> None:
        self.violations.append(what)
