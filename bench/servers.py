"""Side by side with llama-server, built from the same source, over loopback HTTP.

An exact repeat of a prompt, at once and after a restart; eight requests at once, of distinct
prompts and of prompts that share 1,024 tokens. Both keep the model loaded all the time, and their
runs alternate. Both clients wait for the whole answer; where the first token is measured, only
one token is requested.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench import peers
from bench.bare import BareModel, Facts
from bench.llama_server import CONFIGURATION, LlamaServer
from bench.report import Figure, figure
from bench.stats import paired_ratios, summarise
from bench.subjects import (
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    random_prompt,
    subjects,
    wait_until_persisted,
)
from runtime import Node
from runtime.cli.progress import ProgressLine

NAME = "servers"
SLOTS = 8


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured."""

    lengths: tuple[int, ...] = (256, 1024, 3072)
    repeats: int = 12
    restarts: int = 3
    distinct_tokens: int = 256
    shared_tokens: int = 1024
    own_tokens: int = 16
    reply_tokens: int = 16
    distinct_pairs: int = 2
    shared_pairs: int = 2

    @property
    def n_ctx(self) -> int:
        """Room for every slot with all of its tokens, and for all lengths next to each other."""
        at_once = max(self.distinct_tokens, self.shared_tokens + self.own_tokens)
        return max(SLOTS * (at_once + self.reply_tokens + 64), sum(self.lengths) + 1024)


_QUICK = _Plan((64, 256), 2, 1, 32, 128, 8, 4, 1, 1)


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject; nothing, with one line, when llama-server is not built."""
    lacking = peers.missing(peers.SERVER)
    if lacking:
        print(f"{NAME} is skipped: {lacking}")
        return []
    plan = _QUICK if quick else _Plan()
    figures: list[Figure] = []
    for subject in subjects(quick=quick, model=model)[-1:]:  # of ours only the 1.1B shape
        params = replace(subject.params, n_ctx=plan.n_ctx, n_seq_max=SLOTS)
        figures += _measure(Subject(subject.name, subject.path, params), plan)
    return figures


def _measure(subject: Subject, plan: _Plan) -> list[Figure]:
    with BareModel(subject.path, subject.params) as bare:
        facts = bare.facts
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ProgressLine(f"{NAME} {subject.name}") as progress,
    ):
        where = Path(folder)
        with (
            LlamaServer(subject.path, subject.params, where / "slots") as server,
            node_for_measuring(where / "node") as node,
        ):
            load(node, subject)
            _first_requests(server, node, facts)
            figures = _eight_at_once(server, node, facts, subject, plan, progress)
            prompts = {n: random_prompt(facts, n, seed=500_000 + n) for n in plan.lengths}
            figures += _repeats(server, node, subject, prompts, plan, progress)
            wait_until_persisted(node)
        return figures + _restarts(where, facts, subject, prompts, plan, progress)


def _first_requests(server: LlamaServer, node: Node, facts: Facts) -> None:
    """Untimed: one-time costs of the first request. It takes the server's last slot."""
    tokens = random_prompt(facts, 32, seed=77)
    server.complete(tokens, 2, SLOTS - 1)
    node.complete(MODEL_ID, tokens, max_tokens=2)


# --- exact repeats ------------------------------------------------------------------------------


def _repeats(
    server: LlamaServer,
    node: Node,
    subject: Subject,
    prompts: dict[int, list[int]],
    plan: _Plan,
    progress: ProgressLine,
) -> list[Figure]:
    """Time to the first token of a prompt that was also the one before: the best case of a slot."""
    figures: list[Figure] = []
    for slot, (n_tokens, prompt) in enumerate(prompts.items()):
        progress.share(0.6 + 0.1 * slot)
        server.complete(prompt, 1, slot)
        _first_token(node, prompt)
        wait_until_persisted(node)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(plan.repeats):
            theirs.append(_cached(server, prompt, slot))
            ours.append(_first_token(node, prompt, n_tokens - 1))
        server.save_slot(slot, f"{n_tokens}.bin")  # the next request would empty an idle slot
        variant = f"{subject.name} {n_tokens} tokens"
        figures += _pairs(variant, "repeat_ttft", "ms", ours, theirs, "goal 0.2")
    return figures


def _restarts(
    where: Path,
    facts: Facts,
    subject: Subject,
    prompts: dict[int, list[int]],
    plan: _Plan,
    progress: ProgressLine,
) -> list[Figure]:
    """The same prompts after a restart of both: the server's slot files, the node's disk tier."""
    ours: dict[int, list[float]] = defaultdict(list)
    theirs: dict[int, list[float]] = defaultdict(list)
    for number in range(plan.restarts):
        progress.share(0.9 + 0.1 * number / plan.restarts)
        with (
            LlamaServer(subject.path, subject.params, where / "slots") as server,
            node_for_measuring(where / "node") as node,
        ):
            load(node, subject)
            _first_requests(server, node, facts)
            for slot, (n_tokens, prompt) in enumerate(prompts.items()):
                restored = server.restore_slot(slot, f"{n_tokens}.bin")
                theirs[n_tokens].append(restored + _cached(server, prompt, slot))
                ours[n_tokens].append(_first_token(node, prompt, n_tokens - 1))
    figures: list[Figure] = []
    for n_tokens in prompts:
        variant = f"{subject.name} {n_tokens} tokens"
        figures += _pairs(
            variant, "restart_ttft", "ms", ours[n_tokens], theirs[n_tokens],
            "goal 0.2; from files, page cache warm, model already loaded",
        )  # fmt: skip
    return figures


def _cached(server: LlamaServer, prompt: Sequence[int], slot: int) -> float:
    answer = server.complete(prompt, 1, slot)
    if answer.n_cached < len(prompt) - 1:
        raise RuntimeError(f"llama-server reused {answer.n_cached} of {len(prompt)} tokens")
    return answer.milliseconds


def _first_token(node: Node, prompt: Sequence[int], at_least: int = 0) -> float:
    began = time.perf_counter()
    done = node.complete(MODEL_ID, prompt, max_tokens=1)
    taken = 1e3 * (time.perf_counter() - began)
    if done.usage.cached_tokens < at_least:
        raise RuntimeError(f"not an exact hit of {len(prompt)} tokens: {done.cache}")
    return taken


# --- eight at once ------------------------------------------------------------------------------


def _eight_at_once(
    server: LlamaServer,
    node: Node,
    facts: Facts,
    subject: Subject,
    plan: _Plan,
    progress: ProgressLine,
) -> list[Figure]:
    figures: list[Figure] = []
    kinds = (
        ("distinct", plan.distinct_pairs, 0, plan.distinct_tokens, "goal 1.0"),
        ("shared", plan.shared_pairs, plan.shared_tokens, plan.own_tokens, "goal 0.3"),
    )
    for done, (kind, n_pairs, n_shared, n_own, goal) in enumerate(kinds):
        ours: list[float] = []
        theirs: list[float] = []
        n_less = 0
        for number in range(n_pairs):
            progress.share(0.3 * (done + number / n_pairs))
            prompts = [
                _prompts(facts, n_shared, n_own, 1000 * (2 * number + side) + 100_000 * (done + 1))
                for side in (0, 1)
            ]
            took, n_theirs = _at_once(_ask_server(server, plan.reply_tokens), prompts[0])
            theirs.append(took)
            took, n_ours = _at_once(_ask_node(node, plan.reply_tokens), prompts[1])
            ours.append(took)
            n_less += n_theirs - n_ours
            wait_until_persisted(node)
        variant = f"{subject.name}, {SLOTS} at once, {n_shared} shared + {n_own} own tokens"
        variant += f", {plan.reply_tokens} generated"
        said = f"{goal}; {n_less} of {n_pairs * SLOTS * plan.reply_tokens} tokens fewer in ours"
        figures += _pairs(variant, f"{kind}_total", "s", ours, theirs, said)
    figures.append(_in_turn(server, facts, subject, plan))
    return figures


def _in_turn(server: LlamaServer, facts: Facts, subject: Subject, plan: _Plan) -> Figure:
    """The server with agents one after the other: one slot keeps the shared part."""
    prompts = _prompts(facts, plan.shared_tokens, plan.own_tokens, 900_000)
    began = time.perf_counter()
    for prompt in prompts:
        server.complete(prompt, plan.reply_tokens, SLOTS - 1)
    taken = time.perf_counter() - began
    variant = f"{subject.name}, {SLOTS} in turn, {plan.shared_tokens} shared"
    return Figure(NAME, variant, "llama_server_in_turn_s", taken, "s", 1, "one slot for all")


def _prompts(facts: Facts, n_shared: int, n_own: int, seed: int) -> list[list[int]]:
    shared = random_prompt(facts, n_shared, seed)
    return [shared + random_prompt(facts, n_own, seed + 1 + i) for i in range(SLOTS)]


def _at_once(ask: Callable[[list[int]], int], prompts: Sequence[list[int]]) -> tuple[float, int]:
    """Seconds until all have answered, and the tokens of all answers."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        began = time.perf_counter()
        n_tokens = sum(pool.map(ask, prompts))
        return time.perf_counter() - began, n_tokens


def _ask_server(server: LlamaServer, n_predict: int) -> Callable[[list[int]], int]:
    return lambda prompt: server.complete(prompt, n_predict).n_generated


def _ask_node(node: Node, n_predict: int) -> Callable[[list[int]], int]:
    return lambda prompt: len(node.complete(MODEL_ID, prompt, max_tokens=n_predict).tokens)


def _pairs(
    variant: str, what: str, unit: str, ours: Sequence[float], theirs: Sequence[float], goal: str
) -> list[Figure]:
    ratio = summarise(paired_ratios(ours, theirs))
    return [
        figure(NAME, variant, f"{what}_ours_{unit}", unit, summarise(ours)),
        figure(NAME, variant, f"{what}_server_{unit}", unit, summarise(theirs), CONFIGURATION),
        figure(NAME, variant, f"{what}_ours_over_server", "x", ratio, goal),
    ]
