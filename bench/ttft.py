"""Time to the first token, cold and warm, by prompt length; and the actors' part of it.

The actors' cost of an exact hit is its time to the first token, as the host sees it, less restoring
and, where the hit had to decode one token because no logits were kept for it, less one decode of
the same token over the same context in the bare loop beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.bare import BareModel
from bench.report import Figure, figure
from bench.stats import paired_differences, summarise
from bench.subjects import (
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    random_prompt,
    subjects,
    wait_until_persisted,
)
from runtime import Completion, Node
from runtime.cli.progress import ProgressLine
from tests.support.runtime_nodes import crowd_out

NAME = "ttft"
LENGTHS, QUICK_LENGTHS = (256, 1024, 3072), (64, 256)
PROMPTS, QUICK_PROMPTS = 3, 1
WARM_RUNS, QUICK_WARM_RUNS = 10, 2


@dataclass(slots=True)
class _Times:
    """Milliseconds of every run at one prompt length; warm ones and ``decode`` are pairs."""

    bare_cold: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    lookup: list[float] = field(default_factory=list)
    queue: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    way: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    """Of that what the hit had to do too: nothing where kept logits answered it."""

    def add_warm(self, done: Completion, bare_decode_ms: float) -> None:
        times, cache = done.timings, done.cache
        in_model = times.queue_ms + cache.lookup_ms + cache.restore_ms + times.prefill_ms
        self.warm.append(times.ttft_ms)
        self.restore.append(cache.restore_ms)
        self.lookup.append(cache.lookup_ms)
        self.queue.append(times.queue_ms)
        self.step.append(times.prefill_ms)
        self.way.append(times.ttft_ms - in_model)
        self.decode.append(bare_decode_ms)
        answered_by_logits = done.usage.cached_tokens == done.usage.prompt_tokens
        self.due.append(0.0 if answered_by_logits else bare_decode_ms)


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject at every length."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    n_prompts = QUICK_PROMPTS if quick else PROMPTS
    n_warm = QUICK_WARM_RUNS if quick else WARM_RUNS
    figures: list[Figure] = []
    for subject in subjects(quick=quick, model=model):
        with (
            BareModel(subject.path, subject.params) as bare,
            node_for_measuring() as node,
            ProgressLine(f"{NAME} {subject.name}") as progress,
        ):
            load(node, subject)
            _first_request(node, bare)
            for n_tokens in lengths:
                times = _Times()
                for number in range(n_prompts):
                    progress.share(number / n_prompts)
                    _measure(node, bare, n_tokens, number, n_warm, times)
                figures += _figures(subject, n_tokens, times)
    return figures


def _first_request(node: Node, bare: BareModel) -> None:
    """Untimed: only the first request loads pages of the weights, imports and connects."""
    prompt = random_prompt(bare.facts, 32, seed=-1)
    node.complete(MODEL_ID, prompt, max_tokens=4)
    bare.fill(prompt)


def _measure(
    node: Node, bare: BareModel, n_tokens: int, seed: int, n_warm: int, times: _Times
) -> None:
    prompt = random_prompt(bare.facts, n_tokens, seed)
    times.bare_cold.append(bare.fill(prompt))
    cold = node.complete(MODEL_ID, prompt, max_tokens=1)
    times.cold.append(cold.timings.ttft_ms)
    wait_until_persisted(node)
    for _ in range(n_warm):
        decode_ms = bare.decode_last()
        crowd_out(node, MODEL_ID)
        warm = node.complete(MODEL_ID, prompt, max_tokens=1)
        if warm.usage.cached_tokens < n_tokens - 1:
            raise RuntimeError(f"not an exact hit of {n_tokens} tokens: {warm.cache}")
        times.add_warm(warm, decode_ms)


def _figures(subject: Subject, n_tokens: int, times: _Times) -> list[Figure]:
    cost = [
        warm - restore - due
        for warm, restore, due in zip(times.warm, times.restore, times.due, strict=True)
    ]
    cold, warm = summarise(times.cold), summarise(times.warm)
    lines = [
        ("bare_cold_ms", times.bare_cold, "the bare loop's prefill and first token"),
        ("ttft_cold_ms", times.cold, ""),
        ("ttft_warm_ms", times.warm, "exact hit from RAM"),
        ("bare_decode_ms", times.decode, "one token over the same context, bare"),
        ("actors_cost_ms", cost, "warm - restore - bare decode, if one was due; goal 5"),
        ("of_which_way_ms", times.way, "host to model and back"),
        ("of_which_queue_ms", times.queue, ""),
        ("of_which_lookup_ms", times.lookup, "model to cache_meta and back"),
        (
            "of_which_step_ms",
            paired_differences(times.step, times.due),
            "the model's step - bare decode, if one was due",
        ),
        ("restore_ms", times.restore, ""),
    ]
    variant = f"{subject.name} {n_tokens} tokens"
    figures = [
        figure(NAME, variant, metric, "ms", summarise(values), note)
        for metric, values, note in lines
    ]
    speedup = cold.median / warm.median
    figures.insert(3, Figure(NAME, variant, "cold_over_warm", speedup, "x", warm.runs, "medians"))
    return figures
