"""Restoring a prompt's KV over copying the same bytes.

Three ways to read the same blocks from shared memory: what a node reports for an exact hit, the
bare wrapper's ``restore_blocks``, and memcpy. The first restore after a model was loaded reads
pages that its mapping has not touched before, so first and later ones are separate, on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from bench.bare import BareModel
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
from tests.support.runtime_nodes import crowd_out

NAME = "restore"
LENGTHS, QUICK_LENGTHS = (256, 1024, 3072), (256,)
ROUNDS, QUICK_ROUNDS = 5, 1
LATER_RUNS, QUICK_LATER_RUNS = 4, 2

Times = Mapping[str, list[float]]


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject at every length."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    n_rounds = QUICK_ROUNDS if quick else ROUNDS
    figures: list[Figure] = []
    for subject in subjects(quick=quick, model=model):
        with (
            BareModel(subject.path, subject.params) as bare,
            node_for_measuring() as node,
            ProgressLine(f"{NAME} {subject.name}") as progress,
        ):
            load(node, subject)
            for n_tokens in lengths:
                prompt = random_prompt(bare.facts, n_tokens, seed=n_tokens)
                node.complete(MODEL_ID, prompt, max_tokens=1)
                wait_until_persisted(node)
                bare.fill(prompt)
                n_bytes = bare.keep_blocks()
                times: dict[str, list[float]] = defaultdict(list)
                for number in range(n_rounds):
                    progress.share(number / n_rounds)
                    _one_round(node, bare, subject, prompt, times, quick)
                figures += _figures(f"{subject.name} {n_tokens} tokens", n_bytes, times)
    return figures


def _one_round(
    node: Node,
    bare: BareModel,
    subject: Subject,
    prompt: list[int],
    times: dict[str, list[float]],
    quick: bool,
) -> None:
    """First uses through new mappings, then later ones, the three ways by turns."""
    node.unload(MODEL_ID)
    load(node, subject)
    for number in range(1 + (QUICK_LATER_RUNS if quick else LATER_RUNS)):
        when, fresh = ("later", False) if number else ("first", True)
        crowd_out(node, MODEL_ID)
        done = node.complete(MODEL_ID, prompt, max_tokens=1)
        if done.usage.cached_tokens < len(prompt) - 1 or done.cache.source != "ram":
            raise RuntimeError(f"not an exact hit from RAM: {done.cache}")
        times[f"node {when}"].append(done.cache.restore_ms)
        times[f"wrapper {when}"].append(bare.restore(fresh=fresh))
        times[f"memcpy {when}"].append(bare.copy(fresh=fresh))


def _figures(variant: str, n_bytes: int, times: Times) -> list[Figure]:
    figures = [Figure(NAME, variant, "kv_mib", n_bytes / (1 << 20), "MiB", 1)]
    for when in ("first", "later"):
        memcpy = times[f"memcpy {when}"]
        for way in ("node", "wrapper", "memcpy"):
            summary = summarise(times[f"{way} {when}"])
            figures.append(figure(NAME, variant, f"{way}_{when}_ms", "ms", summary))
        for way, goal in (("node", "goal 1.5"), ("wrapper", "")):
            ratio = summarise(paired_ratios(times[f"{way} {when}"], memcpy))
            metric = f"{way}_{when}_over_memcpy"
            figures.append(figure(NAME, variant, metric, "x", ratio, goal))
    return figures
