"""The load of a soak: threads that send requests to two models and check every answer."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from native.backend import Batch
from native.params import ModelParams, SamplingParams
from native.stub import StubBackend
from runtime import Node, ResumedEvent, TokenEvent, errors
from tests.support.soak_plan import MODELS

DEADLINE_S = 75.0
"""The client heals for 30 s at most, and a suspect may hold others up for some seconds more."""
ALLOWED = (errors.NoReply, errors.RequestPoisoned)
"""Errors that a kill may cause: no reply in time, or a request that four kills in a row have hit,
which then counts as their cause. Not ``ModelDown``: replies are resumed."""
PREFIXES = tuple(
    f"Shared beginning number {n}. " + "All prompts below share it. " * 12 for n in range(4)
)
THINK_S = 0.04


class Oracle:
    """The undisturbed replies of the stub to prompts."""

    def __init__(self) -> None:
        self._backend = StubBackend.load("oracle", ModelParams(n_ctx=4096))
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, ...]] = {}

    def tokens(self, prompt: str, n_tokens: int) -> tuple[int, ...]:
        """The first ``n_tokens`` of the reply; a shorter reply is the start of a longer one."""
        with self._lock:
            known = self._known.get(prompt, ())
            if len(known) < n_tokens:
                known = self._known[prompt] = self._generate(prompt, n_tokens)
            return known[:n_tokens]

    def _generate(self, prompt: str, n_tokens: int) -> tuple[int, ...]:
        backend = self._backend
        pending, position, reply = backend.tokenize(prompt), 0, []
        sampler = backend.new_sampler(SamplingParams(), pending)
        backend.seq_remove(0, 0)
        while len(reply) < n_tokens:
            part, pending = pending[: backend.info.n_batch], pending[backend.info.n_batch :]
            batch = Batch()
            row = batch.extend_prefill(part, position, 0, not pending)
            backend.decode(batch)
            position += len(part)
            if not pending:
                token = backend.sample(row, sampler, len(reply))
                sampler.accept(token)
                reply.append(token)
                pending = [token]
        return tuple(reply)


@dataclass
class Load:
    """Client threads and what became of their requests."""

    node: Node
    seed: int
    n_threads: int = 3
    oracle: Oracle = field(default_factory=Oracle)
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    resumed: int = 0
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
            prompt = rng.choice(PREFIXES) + f"And this is its end, number {rng.randrange(400)}."
            kind = rng.choice(("complete", "complete", "stream", "long stream", "leave"))
            n_tokens = rng.randrange(60, 240) if kind == "long stream" else rng.randrange(1, 24)
            began = time.monotonic()
            self._running[name] = (began, f"{kind} of {n_tokens} tokens on {model}")
            try:
                got = self._ask(kind, model, prompt, n_tokens)
                self._compare(kind, prompt, n_tokens, got)
                end = "ok"
            except _EndedEarly as early:
                self._compare("leave", prompt, n_tokens, early.tokens)
                end = early.why
            except Exception:  # noqa: BLE001 - any exception is a finding
                self.violations.append(f"{name}: {kind} on {model}: {traceback.format_exc()}")
                end = "untyped"
            self.ends[f"{kind}: {end}"] += 1
            self._running.pop(name, None)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _ask(self, kind: str, model: str, prompt: str, n_tokens: int) -> tuple[int, ...]:
        tokens: tuple[int, ...] = ()
        try:
            if kind == "complete":
                return self.node.complete(model, prompt, max_tokens=n_tokens).tokens
            events = self.node.stream(model, prompt, max_tokens=n_tokens, resumed_events=True)
            for event in events:
                if isinstance(event, ResumedEvent):
                    self.resumed += 1
                if isinstance(event, TokenEvent):
                    if event.index != len(tokens):
                        self.violations.append(f"{kind}: token {event.index} after {len(tokens)}")
                    tokens += event.tokens
                    if kind == "leave":
                        break
        except ALLOWED as error:
            raise _EndedEarly(type(error).__name__, tokens) from error
        return tokens

    def _compare(self, kind: str, prompt: str, n_tokens: int, got: tuple[int, ...]) -> None:
        wanted = self.oracle.tokens(prompt, n_tokens)
        if got != (wanted[: len(got)] if kind == "leave" else wanted):
            self.violations.append(f"{kind}: {prompt[-20:]!r} gave {got}, not {wanted}")


class _EndedEarly(Exception):
    """A request ended with an error that a kill may cause; ``tokens`` came before."""

    def __init__(self, why: str, tokens: tuple[int, ...]) -> None:
        super().__init__(why)
        self.why = why
        self.tokens = tokens
