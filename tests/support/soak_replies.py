"""What a soak asks, and the replies of an idle node to it: tokens, text and logarithms as bytes.

Each request of a soak is one of a fixed set, so that its whole reply is known: it was computed
once, alone, on a node that keeps nothing. Replies are compared as bytes, so that not even the last
bit of a logarithm may differ.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from actors.messages.exact import ExactName
from cache.policy import LivePolicy
from native import BackendKind
from native.backend import Logprobs
from runtime import Completion, Node, RuntimeConfig
from tests.support.runtime_nodes import started

N_LOGPROBS = 20
"""Reported for each token, beside the chosen one."""
N_LONG = 8
"""One of so many replies is long, so that kills find it running."""
PREFIXES = tuple(
    f"Shared beginning number {n}. " + "All prompts below share it. " * 12 for n in range(4)
)


@dataclass(frozen=True)
class SoakModel:
    """What is loaded, and how exact it is asked to be."""

    path: str = "stub"
    backend: BackendKind = "stub"
    exact: ExactName = "always"

    def load(self, node: Node, model: str) -> None:
        node.load(model, self.path, backend=self.backend)


@dataclass(frozen=True)
class Job:
    """One request; the options are those that a reply depends on."""

    prompt: str
    n_tokens: int
    options: tuple[tuple[str, Any], ...]

    @property
    def is_long(self) -> bool:
        return self.n_tokens >= 60

    def arguments(self, exact: ExactName) -> dict[str, Any]:
        """Of ``Node.complete`` and ``Node.stream``, beside the prompt."""
        fixed = {"max_tokens": self.n_tokens, "exact": exact, "logprobs": N_LOGPROBS}
        return fixed | dict(self.options)


def make_jobs(seed: int, n_jobs: int) -> tuple[Job, ...]:
    """The same for the same seed: prompts that share beginnings, greedy ones and sampled ones."""
    rng = random.Random(f"jobs of {seed}")
    jobs = []
    for number in range(n_jobs):
        prompt = rng.choice(PREFIXES) + f"And this is its end, number {number}."
        n_tokens = rng.randrange(60, 240) if number % N_LONG == 0 else rng.randrange(1, 24)
        sampled = {"temperature": 0.9, "seed": number} if number % 2 else {"temperature": 0.0}
        jobs.append(Job(prompt, n_tokens, tuple(sampled.items())))
    return tuple(jobs)


@dataclass(frozen=True)
class Reply:
    """A reply, or the beginning of one."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[bytes | None, ...] = ()
    """Of each token, as ``packed`` makes them; None where they were lost with a process."""
    finish_reason: str | None = None
    """None for a beginning."""

    @classmethod
    def of(cls, done: Completion) -> Self:
        return cls(done.tokens, done.text, packed(done.logprobs or ()), done.finish_reason)

    def plus(self, tokens: tuple[int, ...], text: str, logprobs: Sequence[Logprobs | None]) -> Self:
        """With what came next."""
        return replace(
            self,
            tokens=self.tokens + tokens,
            text=self.text + text,
            logprobs=self.logprobs + packed(logprobs),
        )


def packed(logprobs: Sequence[Logprobs | None]) -> tuple[bytes | None, ...]:
    """All numbers of each as 64-bit floats: the chosen one, then the others with their tokens."""
    return tuple(
        None
        if one is None
        else array("d", [one.chosen, *(x for pair in one.top for x in pair)]).tobytes()
        for one in logprobs
    )


def difference(got: Reply, known: Reply, *, may_lack: bool) -> str | None:
    """Where a reply is not the known one, or a beginning of it; None if it is.

    ``may_lack``: a process may have died under it, so that logarithms of tokens may be missing.
    """
    if got.finish_reason not in (None, known.finish_reason):
        return f"it ended with {got.finish_reason}, not {known.finish_reason}"
    is_whole = got.finish_reason is not None
    n_tokens = len(got.tokens)
    for at, (ours, theirs) in enumerate(zip(got.tokens, known.tokens, strict=False)):
        if ours != theirs:
            return f"token {at} is {ours}, not {theirs}"
    if n_tokens > len(known.tokens) or (is_whole and n_tokens != len(known.tokens)):
        return f"it has {n_tokens} tokens, not {len(known.tokens)}"
    if got.text != known.text if is_whole else not known.text.startswith(got.text):
        return f"its text is {got.text!r}, not {known.text!r}"
    if len(got.logprobs) != n_tokens:
        return f"it has the logarithms of {len(got.logprobs)} of {n_tokens} tokens"
    for at, (mine, other) in enumerate(zip(got.logprobs, known.logprobs, strict=False)):
        if mine is None and not may_lack:
            return f"the logarithms of token {at} are missing"
        if mine is not None and mine != other:
            return f"the logarithms of token {at} differ by {_apart(mine, other)}"
    return None


def _apart(mine: bytes, other: bytes | None) -> str:
    ours, theirs = array("d", mine), array("d", other or b"")
    if len(ours) != len(theirs):
        return f"their number, {len(ours)} and {len(theirs)}"
    return f"up to {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.3g}"


@dataclass
class Known:
    """The replies to all jobs of a soak."""

    model: SoakModel
    replies: dict[Job, Reply] = field(default_factory=dict)

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self.replies)

    @classmethod
    def compute(cls, model: SoakModel, jobs: Sequence[Job], folder: Path) -> Self:
        """Ask an idle node that keeps neither rows nor sequences, one job after the other."""
        folder.mkdir(parents=True, exist_ok=True)
        config = RuntimeConfig()
        config = replace(config, save=replace(config.save, live=LivePolicy(max_idle=0)))
        known = cls(model)
        with started(folder, config=config, cache_ram=0, cache_disk=0) as node:
            model.load(node, "reference")
            for job in jobs:
                done = node.complete("reference", job.prompt, **job.arguments(model.exact))
                assert done.usage.cached_tokens == 0, done.cache
                known.replies[job] = Reply.of(done)
        return known
