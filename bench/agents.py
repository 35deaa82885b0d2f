"""Eight agents with one system prompt, all at once, over one cold agent and seven warm ones.

Each agent's prompt is the shared part and a few tokens of its own. The peer is the same node, one
agent after the other: the first computes the shared part, each of the others finds it stored. Both
sides of a pair use shared parts that no other pair has, and alternate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.bare import BareModel, Facts
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

NAME = "agents"
AGENTS, QUICK_AGENTS = 8, 3
SHARED_TOKENS, QUICK_SHARED_TOKENS = 1024, 128
OWN_TOKENS = 16
PAIRS, QUICK_PAIRS = 3, 1


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject."""
    figures: list[Figure] = []
    n_agents = QUICK_AGENTS if quick else AGENTS
    n_shared = QUICK_SHARED_TOKENS if quick else SHARED_TOKENS
    for subject in subjects(quick=quick, model=model):
        roomy = _with_sequences(subject, n_agents, n_agents * (n_shared + OWN_TOKENS + 64))
        with BareModel(subject.path, subject.params) as bare:
            facts = bare.facts
        with node_for_measuring() as node, ProgressLine(f"{NAME} {subject.name}") as progress:
            load(node, roomy)
            figures += _measure(node, facts, roomy, n_agents, n_shared, quick, progress)
    return figures


def _with_sequences(subject: Subject, n_seq: int, n_ctx: int) -> Subject:
    """The same model with room for every agent, in case each needs all of its cells."""
    params = replace(subject.params, n_seq_max=n_seq, n_ctx=n_ctx)
    return Subject(subject.name, subject.path, params)


def _measure(
    node: Node,
    facts: Facts,
    subject: Subject,
    n_agents: int,
    n_shared: int,
    quick: bool,
    progress: ProgressLine,
) -> list[Figure]:
    n_pairs = QUICK_PAIRS if quick else PAIRS
    together: list[float] = []
    in_turn: list[float] = []
    node.complete(MODEL_ID, random_prompt(facts, 32, 1), max_tokens=1)  # warm-up: not measured
    for number in range(n_pairs):
        progress.share(number / n_pairs)
        seeds = range(10_000 * (number + 1), 10_000 * (number + 1) + 2 * (n_agents + 1))
        together.append(_together(node, _prompts(facts, n_shared, seeds[: n_agents + 1])))
        wait_until_persisted(node)
        in_turn.append(_in_turn(node, _prompts(facts, n_shared, seeds[n_agents + 1 :])))
        wait_until_persisted(node)
    variant = f"{subject.name}, {n_agents} agents, {n_shared} shared tokens"
    ratios = summarise(paired_ratios(together, in_turn))
    return [
        figure(NAME, variant, "at_once_s", "s", summarise(together)),
        figure(NAME, variant, "one_cold_then_warm_s", "s", summarise(in_turn)),
        figure(NAME, variant, "at_once_over_in_turn", "x", ratios, "goal 1.1 at most"),
    ]


def _prompts(facts: Facts, n_shared: int, seeds: Sequence[int]) -> list[list[int]]:
    shared = random_prompt(facts, n_shared, seeds[0])
    return [shared + random_prompt(facts, OWN_TOKENS, seed) for seed in seeds[1:]]


def _together(node: Node, prompts: Sequence[Sequence[int]]) -> float:
    with ThreadPoolExecutor(len(prompts)) as pool:
        began = time.perf_counter()
        done = list(pool.map(lambda one: node.complete(MODEL_ID, one, max_tokens=1), prompts))
        taken = time.perf_counter() - began
    if len(done) != len(prompts):
        raise RuntimeError("an agent got no answer")
    return taken


def _in_turn(node: Node, prompts: Sequence[Sequence[int]]) -> float:
    began = time.perf_counter()
    for prompt in prompts:
        node.complete(MODEL_ID, prompt, max_tokens=1)
    return time.perf_counter() - began
