"""The load of a soak: threads that send requests to three models and check every answer."""

from __future__ import annotations

import random
import struct
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from native.backend import Batch, Logprobs
from native.params import ModelParams, SamplingParams
from native.stub import StubBackend
from runtime import Node, ResumedEvent, TokenEvent, errors
from tests.support.soak_plan import MODELS, REAL

DEADLINE_S = 75.0
"""The client heals for 30 s at most, and a suspect may hold others up for some seconds more."""
ALLOWED = (errors.NoReply, errors.RequestPoisoned)
"""Errors that a kill may cause: no reply in time, or a request that four kills in a row have hit,
which then counts as their cause. Not ``ModelDown``: replies are resumed."""
PREFIXES = tuple(
    f"Shared beginning number {n}. " + "All prompts below share it. " * 12 for n in range(4)
)
STORIES = tuple(
    f"Once upon a time there was a little {who}. " + "It had a friend, and they played. " * 8
    for who in ("fox", "owl", "girl", "dragon", "boy", "cat")
)
"""Prompts of the embedded model."""
MOST_TOKENS = 240
N_LOGPROBS = 20
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


@dataclass(frozen=True)
class Got:
    """What came of a reply; where logits were asked for, the likeliest ones of each token."""

    tokens: tuple[int, ...] = ()
    likeliest: tuple[bytes, ...] = ()
    """Empty for a token whose process ended before it was delivered."""

    def differs(self, whole: Got, *, is_all: bool) -> str | None:
        """Where it is not how ``whole`` begins, or not all of it; as bytes, as far as known."""
        for at, (mine, other) in enumerate(zip(self.tokens, whole.tokens, strict=False)):
            if mine != other:
                return f"token {at} is {mine}, not {other}"
        for at, (one, two) in enumerate(zip(self.likeliest, whole.likeliest, strict=False)):
            if one and one != two:
                return f"the logits of token {at} are others"
        n_all = len(whole.tokens)
        if len(self.tokens) > n_all or (is_all and len(self.tokens) < n_all):
            return f"it has {len(self.tokens)} tokens, not {n_all}"
        return None


def packed(logprobs: Iterable[Logprobs | None] | None) -> tuple[bytes, ...]:
    """The numbers of each token as bytes."""
    return tuple(
        b""
        if one is None
        else b"".join(struct.pack("<qd", token, value) for token, value in one.top)
        for one in logprobs or ()
    )


@dataclass
class Load:
    """Client threads and what became of their requests."""

    node: Node
    seed: int
    n_threads: int = 3
    oracle: Oracle = field(default_factory=Oracle)
    undisturbed: dict[str, Got] = field(default_factory=dict)
    """What the embedded model replies to each story, alone."""
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    resumed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: dict[str, tuple[float, str]] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)

    def learn(self) -> None:
        """Ask the embedded model while nothing else runs."""
        for story in STORIES:
            done = self.node.complete(
                REAL, story, max_tokens=MOST_TOKENS, top_logprobs=N_LOGPROBS, logprobs=True
            )
            self.undisturbed[story] = Got(done.tokens, packed(done.logprobs))

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
            if model == REAL:
                prompt = rng.choice(STORIES)
            kind = rng.choice(("complete", "complete", "stream", "long stream", "leave"))
            n_tokens = (
                rng.randrange(60, MOST_TOKENS) if kind == "long stream" else rng.randrange(1, 24)
            )
            began = time.monotonic()
            self._running[name] = (began, f"{kind} of {n_tokens} tokens on {model}")
            try:
                got = self._ask(kind, model, prompt, n_tokens)
                self._compare(kind, model, prompt, n_tokens, got)
                end = "ok"
            except _EndedEarly as early:
                self._compare("leave", model, prompt, n_tokens, early.got)
                end = early.why
            except Exception:  # noqa: BLE001 - any exception is a finding
                self.violations.append(f"{name}: {kind} on {model}: {traceback.format_exc()}")
                end = "untyped"
            self.ends[f"{kind}: {end}"] += 1
            self._running.pop(name, None)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _ask(self, kind: str, model: str, prompt: str, n_tokens: int) -> Got:
        got = Got()
        likeliest = {"logprobs": True, "top_logprobs": N_LOGPROBS} if model == REAL else {}
        options: dict[str, Any] = {"max_tokens": n_tokens, **likeliest}
        try:
            if kind == "complete":
                done = self.node.complete(model, prompt, **options)
                return Got(done.tokens, packed(done.logprobs))
            for event in self.node.stream(model, prompt, resumed_events=True, **options):
                if isinstance(event, ResumedEvent):
                    self.resumed += 1
                if isinstance(event, TokenEvent):
                    if event.index != len(got.tokens):
                        n = len(got.tokens)
                        self.violations.append(f"{kind}: token {event.index} after {n}")
                    likely = (*got.likeliest, *packed(event.logprobs))
                    got = Got(got.tokens + event.tokens, likely)
                    if kind == "leave":
                        break
        except ALLOWED as error:
            raise _EndedEarly(type(error).__name__, got) from error
        return got

    def _compare(self, kind: str, model: str, prompt: str, n_tokens: int, got: Got) -> None:
        if model == REAL:
            whole = self.undisturbed[prompt]
            wanted = Got(whole.tokens[:n_tokens], whole.likeliest[:n_tokens])
        else:
            wanted = Got(self.oracle.tokens(prompt, n_tokens))
        found = got.differs(wanted, is_all=kind != "leave")
        if found is not None:
            self.violations.append(f"{kind} on {model}: in the reply to {prompt[:50]!r} {found}")


class _EndedEarly(Exception):
    """A request ended with an error that a kill may cause; ``got`` came before."""

    def __init__(self, why: str, got: Got) -> None:
        super().__init__(why)
        self.why = why
        self.got = got
