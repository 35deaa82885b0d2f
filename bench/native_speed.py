"""Tokens per second beside llama.cpp's own benchmarks, built from the same source.

Decoding of 1, 4 and 8 sequences over llama-batched-bench, which decodes fixed numbers of tokens and
samples nothing; prefill over llama-bench. The side measured here is a whole node: it samples,
streams every token to the host and saves every block. Its decoding is measured while all streams
are running.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench import peers
from bench.bare import BareModel, Facts
from bench.llama_server import n_threads, same_flags
from bench.peers import PeersFailed
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
from runtime import Node, TokenEvent
from runtime.cli.progress import ProgressLine

NAME = "native_speed"
_TRIES = 8


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured."""

    sequences: tuple[int, ...] = (1, 4, 8)
    prompt_tokens: int = 128
    generated: int = 64
    decode_rounds: int = 3
    prefill_tokens: int = 512
    prefill_rounds: int = 5


_QUICK = _Plan((1, 2), 32, 16, 1, 128, 1)


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject; nothing, with one line, when the peers are not built."""
    lacking = peers.missing(peers.BENCH, peers.BATCHED_BENCH)
    if lacking:
        print(f"{NAME} is skipped: {lacking}")
        return []
    plan = _QUICK if quick else _Plan()
    figures: list[Figure] = []
    for subject in subjects(quick=quick, model=model)[-1:]:  # of ours only the 1.1B shape
        n_most = max(plan.sequences)
        n_ctx = n_most * (plan.prompt_tokens + plan.generated + 64) + plan.prefill_tokens
        params = replace(subject.params, n_seq_max=n_most, n_ctx=max(n_ctx, subject.params.n_ctx))
        roomy = Subject(subject.name, subject.path, params)
        with BareModel(roomy.path, roomy.params) as bare:
            facts = bare.facts
        with node_for_measuring() as node, ProgressLine(f"{NAME} {roomy.name}") as progress:
            load(node, roomy)
            node.complete(MODEL_ID, random_prompt(facts, 32, seed=-1), max_tokens=2)
            figures += _prefill(node, facts, roomy, plan, progress)
            figures += _decode(node, facts, roomy, plan, progress)
    return figures


# --- prefill --------------------------------------------------------------------------------------


def _prefill(
    node: Node, facts: Facts, subject: Subject, plan: _Plan, progress: ProgressLine
) -> list[Figure]:
    n_tokens = plan.prefill_tokens
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(plan.prefill_rounds):
        progress.share(0.4 * number / plan.prefill_rounds)
        theirs.append(_llama_bench(subject, n_tokens))
        done = node.complete(MODEL_ID, random_prompt(facts, n_tokens, 3000 + number), max_tokens=1)
        ours.append(1e3 * n_tokens / done.timings.ttft_ms)
        wait_until_persisted(node)
    variant = f"{subject.name}, {n_tokens} prompt tokens"
    ratio = summarise(paired_ratios(ours, theirs))
    note = "prompt tokens over the time to the first token, at the host"
    return [
        figure(NAME, variant, "prefill_ours", "tok/s", summarise(ours), note),
        figure(NAME, variant, "prefill_llama_bench", "tok/s", summarise(theirs)),
        figure(NAME, variant, "prefill_ours_over_llama_bench", "x", ratio, "goal 0.97"),
    ]


def _llama_bench(subject: Subject, n_tokens: int) -> float:
    command = [str(peers.program(peers.BENCH)), "-m", str(subject.path), "-o", "json", "-r", "1"]
    command += ["-p", str(n_tokens), "-n", "0", *same_flags(subject.params, context=False)]
    found = json.loads(peers.output(command))
    return float(found[0]["avg_ts"])


# --- decode ---------------------------------------------------------------------------------------


def _decode(
    node: Node, facts: Facts, subject: Subject, plan: _Plan, progress: ProgressLine
) -> list[Figure]:
    ours: dict[int, list[float]] = defaultdict(list)
    theirs: dict[int, list[float]] = defaultdict(list)
    for number in range(plan.decode_rounds):
        progress.share(0.4 + 0.6 * number / plan.decode_rounds)
        for n_seq, speed in _batched_bench(subject, plan).items():
            theirs[n_seq].append(speed)
        for n_seq in plan.sequences:
            seeds = range(1000 * n_seq + 100 * number, 1000 * n_seq + 100 * number + n_seq)
            prompts = [random_prompt(facts, plan.prompt_tokens, seed) for seed in seeds]
            ours[n_seq].append(_streams(node, prompts, plan.generated))
            wait_until_persisted(node)
    figures: list[Figure] = []
    for n_seq in plan.sequences:
        variant = f"{subject.name}, {n_seq} sequences, {plan.generated} tokens each"
        ratio = summarise(paired_ratios(ours[n_seq], theirs[n_seq]))
        figures += [
            figure(NAME, variant, "decode_ours", "tok/s", summarise(ours[n_seq])),
            figure(NAME, variant, "decode_batched_bench", "tok/s", summarise(theirs[n_seq])),
            figure(NAME, variant, "decode_ours_over_batched_bench", "x", ratio, "goal 0.97"),
        ]
    return figures


def _batched_bench(subject: Subject, plan: _Plan) -> dict[int, float]:
    """Tokens per second of all sequences together, by their number.

    The program logs from a thread that it does not wait for when it ends, so its last lines can be
    missing: those are measured again.
    """
    found: dict[int, float] = {}
    for _ in range(_TRIES):
        missing = [n_seq for n_seq in plan.sequences if n_seq not in found]
        if not missing:
            return found
        command = [str(peers.program(peers.BATCHED_BENCH)), "-m", str(subject.path)]
        command += [*same_flags(subject.params), "-tb", str(n_threads(subject.params)), "-kvu"]
        command += ["-npp", str(plan.prompt_tokens), "-ntg", str(plan.generated)]
        command += ["-npl", ",".join(map(str, missing)), "--output-format", "jsonl"]
        command += ["--fit", "off"]
        rows = [
            json.loads(line) for line in peers.output(command).splitlines() if line.startswith("{")
        ]
        found |= {int(row["pl"]): float(row["speed_tg"]) for row in rows}
    raise PeersFailed(f"llama-batched-bench measured {sorted(found)}, not {plan.sequences}")


def _streams(node: Node, prompts: Sequence[list[int]], n_tokens: int) -> float:
    """Tokens per second of all streams while all of them are running."""
    for prompt in prompts:
        node.complete(MODEL_ID, prompt, max_tokens=1)  # decoding alone is what is measured
    wait_until_persisted(node)
    with ThreadPoolExecutor(len(prompts)) as pool:
        seen = list(pool.map(lambda prompt: _arrivals(node, prompt, n_tokens), prompts))
    began = max(one[0][0] for one in seen)
    ended = min(one[-1][0] for one in seen)
    counted = sum(n for one in seen for at, n in one if began < at <= ended)
    if ended <= began or counted < n_tokens * len(prompts) / 3:
        raise RuntimeError("the streams were hardly ever under way together")
    return counted / (ended - began)


def _arrivals(node: Node, prompt: list[int], n_tokens: int) -> list[tuple[float, int]]:
    """When tokens came, and how many."""
    return [
        (time.perf_counter(), len(event.tokens))
        for event in node.stream(MODEL_ID, prompt, max_tokens=n_tokens)
        if isinstance(event, TokenEvent) and event.tokens
    ]
