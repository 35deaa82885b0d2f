"""What exactness costs: rows that are computed ``many`` or ``alone``, and requests of each level.

Rows are measured in the bare loop, by turns with ``any``, which is as fast as it gets; levels on a
whole node, by turns with ``repeat``. What all levels share, attention that depends on nothing but a
row's own sequence, is measured against llama-bench, which has llama.cpp's own attention: the same
source and flags, without our kernels.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from bench import peers
from bench.bare import BareModel, Facts
from bench.llama_server import same_flags
from bench.report import Figure, figure
from bench.stats import paired_ratios, summarise
from bench.subjects import (
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    published,
    random_prompt,
    subjects,
    wait_until_persisted,
)
from native.backend import Rows
from runtime import Node
from runtime.cli.progress import ProgressLine

NAME = "exact_price"
Level = Literal["repeat", "prefix", "always"]
LEVELS: Final[tuple[Level, ...]] = ("repeat", "prefix", "always")
ROWS: Final[tuple[Rows, ...]] = ("any", "many", "alone")


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured. Counts are tokens."""

    prompts: tuple[int, ...] = (20, 1000)
    sequences: tuple[int, ...] = (1, 4, 8)
    context: int = 200
    steps: int = 32
    rounds: int = 5


_QUICK = _Plan((20, 100), (1, 2), 20, 4, 1)


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject, and the published model where ``make real`` has put it."""
    plan = _QUICK if quick else _Plan()
    measured = subjects(quick=quick, model=model)
    if not quick and model is None:
        measured += published()
    figures: list[Figure] = []
    for subject in measured:
        with ProgressLine(f"{NAME} {subject.name}") as progress:
            figures += _rows(subject, plan, progress)
            figures += _levels(subject, plan, progress)
            figures += _beside_llama_bench(subject, plan)
    return figures


# --- rows of a batch ------------------------------------------------------------------------------


def _rows(subject: Subject, plan: _Plan, progress: ProgressLine) -> list[Figure]:
    first: dict[tuple[int, Rows], list[float]] = defaultdict(list)
    steps: dict[tuple[int, Rows], list[float]] = defaultdict(list)
    with BareModel(subject.path, subject.params) as bare:
        bare.fill(random_prompt(bare.facts, plan.context, seed=-1))
        for number in range(plan.rounds):
            progress.share(0.4 * number / plan.rounds)
            for rows in _turned(ROWS, number):
                for n_tokens in plan.prompts if rows != "alone" else ():
                    prompt = random_prompt(bare.facts, n_tokens, seed=n_tokens)
                    first[n_tokens, rows].append(bare.fill(prompt, rows))
                for n_seq in plan.sequences:
                    texts = [random_prompt(bare.facts, plan.context, seed=n) for n in range(n_seq)]
                    steps[n_seq, rows].append(bare.decode_together(texts, plan.steps, rows))
    return [
        *_against(first, f"{subject.name}, prompt of {{}} tokens, bare", "first_token", "any"),
        *_against(steps, f"{subject.name}, a step of {{}} sequences, bare", "step", "any"),
    ]


def _turned(names: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    """Every round begins with another one, so that none is always measured first."""
    shift = number % len(names)
    return names[shift:] + names[:shift]


def _against(
    times: dict[tuple[int, Any], list[float]], variant: str, metric: str, base: str
) -> Iterator[Figure]:
    """Milliseconds of every name, and the ratio to those of ``base`` in the same round."""
    for n in dict.fromkeys(n for n, _ in times):
        ours = {name: values for (size, name), values in times.items() if size == n}
        for name, values in sorted(ours.items(), key=lambda one: one[0] != base):
            yield figure(NAME, variant.format(n), f"{metric}_{name}", "ms", summarise(values))
            if name != base:
                ratio = summarise(paired_ratios(values, ours[base]))
                yield figure(NAME, variant.format(n), f"{metric}_{name}_over_{base}", "x", ratio)


# --- levels of requests ---------------------------------------------------------------------------


def _levels(subject: Subject, plan: _Plan, progress: ProgressLine) -> list[Figure]:
    first: dict[tuple[int, Level], list[float]] = defaultdict(list)
    decode: dict[tuple[int, Level], list[float]] = defaultdict(list)
    with BareModel(subject.path, subject.params) as bare:
        facts = bare.facts
    with node_for_measuring() as node:
        load(node, subject)
        node.complete(MODEL_ID, random_prompt(facts, 32, seed=-1), max_tokens=2)
        for number in range(plan.rounds):
            progress.share(0.4 + 0.5 * number / plan.rounds)
            for level in _turned(LEVELS, number):
                salt = 100 * number + LEVELS.index(level)
                for n_tokens in plan.prompts:
                    prompt = random_prompt(facts, n_tokens, seed=10_000 * n_tokens + salt)
                    done = node.complete(MODEL_ID, prompt, max_tokens=1, exact=level)
                    first[n_tokens, level].append(done.timings.ttft_ms)
                    wait_until_persisted(node)
                for n_seq in plan.sequences:
                    seeds = range(100_000 * n_seq + 10 * salt, 100_000 * n_seq + 10 * salt + n_seq)
                    texts = [random_prompt(facts, plan.context, seed) for seed in seeds]
                    decode[n_seq, level].append(_streams(node, facts, texts, plan.steps, level))
                    wait_until_persisted(node)
    return [
        *_against(first, f"{subject.name}, prompt of {{}} tokens, node", "first_token", "repeat"),
        *_against(decode, f"{subject.name}, {{}} streams, node", "token", "repeat"),
    ]


def _streams(
    node: Node, facts: Facts, texts: list[list[int]], n_tokens: int, level: Level
) -> float:
    """Milliseconds from a token of a stream to its next one, while so many streams run."""

    def one(text: list[int]) -> float:
        done = node.complete(
            MODEL_ID,
            text,
            max_tokens=n_tokens,
            exact=level,
            logit_bias=dict.fromkeys(facts.eog_tokens, -math.inf),
        )
        return done.timings.decode_ms / max(1, len(done.tokens) - 1)

    for text in texts:  # decoding alone is what is measured
        node.complete(MODEL_ID, text, max_tokens=1, exact=level)
    with ThreadPoolExecutor(len(texts)) as pool:
        return median(pool.map(one, texts))


# --- attention ------------------------------------------------------------------------------------


def _beside_llama_bench(subject: Subject, plan: _Plan) -> list[Figure]:
    lacking = peers.missing(peers.BENCH)
    if lacking:
        print(f"{NAME} is not compared with llama.cpp's own attention: {lacking}")
        return []
    n_prompt, n_steps = max(plan.prompts), plan.steps
    times: dict[str, list[float]] = defaultdict(list)
    with BareModel(subject.path, subject.params) as bare:
        prompt = random_prompt(bare.facts, n_prompt, seed=n_prompt)
        bare.fill(prompt)
        for _ in range(plan.rounds):
            times["prefill"].append(1e3 * n_prompt / bare.fill(prompt, "many"))
            times["decode"].append(1e3 / bare.decode_together([prompt], n_steps, "any"))
            read, said = _llama_bench(subject, n_prompt, n_steps)
            times["prefill_llama_bench"].append(read)
            times["decode_llama_bench"].append(said)
    figures: list[Figure] = []
    for name in ("prefill", "decode"):
        variant = f"{subject.name}, {n_prompt} tokens of prompt"
        ratio = summarise(paired_ratios(times[name], times[f"{name}_llama_bench"]))
        figures += [
            figure(NAME, variant, name, "tok/s", summarise(times[name])),
            figure(
                NAME,
                variant,
                f"{name}_llama_bench",
                "tok/s",
                summarise(times[f"{name}_llama_bench"]),
            ),
            figure(NAME, variant, f"{name}_over_llama_bench", "x", ratio, "goal 0.97"),
        ]
    return figures


def _llama_bench(subject: Subject, n_prompt: int, n_steps: int) -> tuple[float, float]:
    """Tokens per second of a prompt, and of a reply behind such a prompt."""
    command = [str(peers.program(peers.BENCH)), "-m", str(subject.path), "-o", "json", "-r", "1"]
    command += same_flags(subject.params, context=False)
    read = _run([*command, "-p", str(n_prompt), "-n", "0"])
    said = _run([*command, "-p", "0", "-n", str(n_steps), "-d", str(n_prompt)])
    return read, said


def _run(command: list[str]) -> float:
    return float(json.loads(peers.output(command))[0]["avg_ts"])
