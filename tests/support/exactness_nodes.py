"""The same on whole nodes: replies after kills and restarts, from real tiers, beside each other.

A process's logits stay in it, so what is compared is what a caller receives: each token with its
log-probability and those of the twenty likeliest, as the bytes of the numbers. Replies follow their
own tokens here, so behind a first difference everything differs.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from native.backend import Logprobs
from runtime import Completion, ModelConfig, Node
from runtime.client.cache.upkeep import is_flushed
from tests.support.exactness import N_SEQ, Agreement, Deltas, Lab, Level, WayNotTaken, delta
from tests.support.runtime_nodes import Streaming, emptied, kill, pid_of, started
from tests.support.waiting import eventually

MODEL: Final = "exact"
_SEED: Final = 11
Said = tuple[tuple[int, bytes | None], ...]
"""Tokens of a reply, each with its log-probabilities as float32 numbers, if they arrived."""


def as_said(done: Completion) -> Said:
    """What a caller received."""
    pairs = zip(done.tokens, done.logprobs, strict=True)
    return tuple((token, None if one is None else _packed(one)) for token, one in pairs)


def _packed(one: Logprobs) -> bytes:
    numbers = [one.chosen, *(number for token, top in one.top for number in (token, top))]
    return struct.pack(f"<{len(numbers)}f", *numbers)


def compare(reference: Said, other: Said) -> Agreement:
    """Positions of two replies; where numbers did not arrive, the tokens."""
    n_most = max(len(reference), len(other))
    deltas: Deltas = dict.fromkeys(range(n_most), math.ulp(0.0))  # not the same, by an unknown size
    for index, ((token, one), (same, two)) in enumerate(zip(reference, other, strict=False)):
        if token != same:
            break
        deltas[index] = 0.0 if one is None or two is None else delta(one, two)
    return Agreement.of(deltas)


class NodeLab:
    """A node with one model, which can be killed and restarted; use it in a ``with``."""

    def __init__(self, lab: Lab, home: Path, n_reply: int) -> None:
        self.lab = lab
        self.prompt = list(lab.prompt)
        self.n_reply = n_reply
        self._home = home
        self._stack = ExitStack()
        self.node = self._start()

    def _start(self) -> Node:
        node = self._stack.enter_context(started(self._home, cache_ram="256MiB"))
        self.load(node)
        return node

    def load(self, node: Node) -> None:
        params = replace(self.lab.subject.params, n_seq_max=N_SEQ)
        node.client.load(MODEL, ModelConfig(str(self.lab.subject.path), params))

    def __enter__(self) -> NodeLab:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def options(self, level: Level) -> dict[str, Any]:
        """Of every request; end-of-text tokens are excluded, so that replies have all tokens."""
        return {
            "temperature": 0.8,
            "seed": _SEED,
            "n_logprobs": 20,
            "exact": level,
            "logit_bias": dict.fromkeys(self.lab.ends, -math.inf),
        }

    def ask(self, level: Level, prompt: Sequence[int] | None = None) -> Completion:
        asked = self.prompt if prompt is None else list(prompt)
        return self.node.complete(MODEL, asked, max_tokens=self.n_reply, **self.options(level))

    def cold(self, level: Level) -> Completion:
        """The prompt's first run, without anything stored."""
        self.forget()
        done = self.ask(level)
        if done.usage.cached_tokens:
            raise WayNotTaken(f"{done.usage.cached_tokens} tokens came from {done.cache.source}")
        return done

    def forget(self) -> None:
        """Remove what is stored and live."""
        emptied(self.node)
        self.load(self.node)

    def settle(self) -> None:
        """Wait until everything is stored and written."""
        eventually(lambda: is_flushed(self.node.client), within_s=60, what="rows are on disk")

    def kill_model(self) -> None:
        kill(pid_of(self.node, f"model:{MODEL}"))

    def restart(self) -> None:
        """Stop the node and start it again with what lies on disk."""
        self._stack.close()
        self.node = self._start()


def warm(lab: NodeLab, source: str, prepare: Callable[[NodeLab], object]) -> Agreement:
    """An exact repeat after ``prepare``, which must come from ``source``."""
    cold = as_said(lab.cold("repeat"))
    lab.settle()
    prepare(lab)
    done = lab.ask("repeat")
    if done.cache.source != source or done.usage.cached_tokens < len(lab.prompt) - 1:
        raise WayNotTaken(f"{done.usage.cached_tokens} tokens came from {done.cache.source}")
    return compare(cold, as_said(done))


def killed_within_a_reply(lab: NodeLab) -> Agreement:
    """The model is killed while its reply arrives, which goes on in the next process.

    Log-probabilities of tokens that were on their way are lost, so those are not compared.
    """
    cold = as_said(lab.cold("prefix"))
    lab.settle()
    options = lab.options("prefix")
    stream = Streaming(lab.node, MODEL, lab.n_reply, lab.prompt, **options)
    lab.kill_model()
    done = stream.whole(within_s=120)
    if not stream.resumed or stream.resumed[0].n_tokens >= len(done.tokens):
        raise WayNotTaken("the reply had ended before the kill")
    return compare(cold, as_said(done))


def beside_each_other(lab: NodeLab) -> Agreement:
    """Eight requests at once, and each of them alone before, by another process."""
    prompts = [lab.lab.text(300 + n, 30 + 61 * n) for n in range(N_SEQ)]
    alone = [as_said(lab.ask("always", prompt)) for prompt in prompts]
    lab.forget()
    with ThreadPoolExecutor(len(prompts)) as pool:
        beside = list(pool.map(lambda prompt: as_said(lab.ask("always", prompt)), prompts))
    found = [compare(one, two) for one, two in zip(alone, beside, strict=True)]
    differing = [one.first for one in found if one.first is not None]
    return Agreement(
        sum(one.positions for one in found),
        sum(one.same for one in found),
        min(differing, default=None),
        max(one.largest for one in found),
    )


@dataclass(frozen=True, slots=True)
class NodeWay:
    """A way of whole nodes, and the level that promises it to agree."""

    level: Level
    name: str
    run: Callable[[NodeLab], Agreement]

    @property
    def id(self) -> str:
        """For the name of a test."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


NODE_WAYS: Final = (
    NodeWay("repeat", "node: repeat, live", partial(warm, source="live", prepare=NodeLab.settle)),
    NodeWay("repeat", "node: kill -9", partial(warm, source="ram", prepare=NodeLab.kill_model)),
    NodeWay("repeat", "node: restart", partial(warm, source="disk", prepare=NodeLab.restart)),
    NodeWay("prefix", "node: kill -9 within the reply", killed_within_a_reply),
    NodeWay("always", "node: eight at once", beside_each_other),
)
