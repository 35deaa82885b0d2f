"""Prefetch: from the start of a queued request to its first token, over the same without it.

Two nodes with the same rows on disk, one with ``prefetch``. In each round, on each node, the rows
leave RAM and in half of the rounds the page cache; a cold prompt occupies the only sequence of the
model, and the stored prompt waits behind it. What is timed begins when it leaves the queue: finding
and restoring its rows, and its first token.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from actors import messages as m
from bench.bare import BareModel, Facts
from bench.page_cache import drop_pages, stored_files
from bench.report import Figure, figure
from bench.stats import paired_differences, paired_ratios, summarise
from bench.subjects import (
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    random_prompt,
    subjects,
    wait_until_persisted,
    without_idle_sequences,
)
from runtime import Completion, Node, RuntimeConfig
from runtime.cli.progress import ProgressLine
from supervision.messages import new_ref
from supervision.ports import free_port
from tests.support.waiting import eventually

NAME = "prefetch"
LENGTHS, QUICK_LENGTHS = (1024, 3072), (128, 512)
AHEAD_TOKENS, QUICK_AHEAD_TOKENS = 1024, 256
"""Of the cold prompt before it."""
ROUNDS, QUICK_ROUNDS = 5, 1
SIDES = (True, False)


@dataclass(slots=True)
class _Runs:
    """Of one length and state of the page cache: by side, round by round."""

    first_ms: dict[bool, list[float]] = field(default_factory=lambda: defaultdict(list))
    restore_ms: dict[bool, list[float]] = field(default_factory=lambda: defaultdict(list))
    whole_ms: dict[bool, list[float]] = field(default_factory=lambda: defaultdict(list))
    """From the start of the prompt before it to its first token."""
    ahead_ms: dict[bool, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of the prompt before it, whose steps the copies are made beside."""
    from_ram: int = 0
    """Rounds in which the side with prefetch read no file after its start."""

    def add(self, is_on: bool, ahead: Completion, done: Completion) -> None:
        self.ahead_ms[is_on].append(ahead.timings.prefill_ms)
        times, cache = done.timings, done.cache
        self.first_ms[is_on].append(cache.lookup_ms + cache.restore_ms + times.prefill_ms)
        self.whole_ms[is_on].append(self.ahead_ms[is_on][-1] + self.first_ms[is_on][-1])
        self.restore_ms[is_on].append(cache.restore_ms)
        self.from_ram += is_on and cache.source == "ram"


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    figures: list[Figure] = []
    for plain in subjects(quick=quick, model=model):
        subject = replace(plain, params=replace(plain.params, n_seq_max=1))
        with BareModel(subject.path, subject.params) as bare:
            facts = bare.facts
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            ProgressLine(f"{NAME} {subject.name}") as progress,
        ):
            figures += _measure(subject, facts, Path(folder), lengths, quick, progress)
    return figures


def _measure(
    subject: Subject,
    facts: Facts,
    where: Path,
    lengths: Sequence[int],
    quick: bool,
    progress: ProgressLine,
) -> list[Figure]:
    prompts = {n_tokens: random_prompt(facts, n_tokens, seed=n_tokens) for n_tokens in lengths}
    with node_for_measuring(where / "on") as node:
        load(node, subject)
        for prompt in prompts.values():
            node.complete(MODEL_ID, prompt, max_tokens=1)
        wait_until_persisted(node)
    shutil.copytree(where / "on" / "cache", where / "off" / "cache")
    runs: dict[tuple[int, bool], _Runs] = defaultdict(_Runs)
    kept = 0.0
    n_rounds = QUICK_ROUNDS if quick else ROUNDS
    with ExitStack() as stack:
        nodes = {
            is_on: stack.enter_context(
                node_for_measuring(
                    where / ("on" if is_on else "off"), config=_config(is_on), port=free_port()
                )
            )
            for is_on in SIDES
        }
        for node in nodes.values():
            load(node, subject)
            node.complete(MODEL_ID, random_prompt(facts, 32, seed=-1), max_tokens=4)
        seeds = itertools.count(10_000)  # the prompt before it is cold each time
        n_ahead = QUICK_AHEAD_TOKENS if quick else AHEAD_TOKENS
        for number in range(n_rounds):
            progress.share(0.2 + 0.8 * number / n_rounds)
            for n_tokens, is_warm in itertools.product(lengths, (True, False)):
                ahead = random_prompt(facts, n_ahead, next(seeds))
                for is_on in SIDES if number % 2 else SIDES[::-1]:
                    cache = where / ("on" if is_on else "off") / "cache"
                    prompt = prompts[n_tokens]
                    kept = max(kept, _reset(nodes[is_on], cache, is_warm=is_warm))
                    first, done = _queued(nodes[is_on], ahead, prompt)
                    if not is_on and done.cache.source != "disk":
                        raise RuntimeError(f"its rows were on disk only, and it read {done.cache}")
                    runs[n_tokens, is_warm].add(is_on, first, done)
    return [
        line
        for (n_tokens, is_warm), found in runs.items()
        for line in _figures(subject, n_tokens, is_warm, found, kept)
    ]


def _config(is_on: bool) -> RuntimeConfig:
    config = without_idle_sequences()
    # Restoring is what is measured, also where a busy machine has learned that computing is faster.
    restore = replace(config.save.restore, prefetch=is_on, min_saved_s=3600.0)
    return replace(config, save=replace(config.save, restore=restore))


def _reset(node: Node, cache: Path, *, is_warm: bool) -> float:
    """Leave the rows on disk only; the share of their pages that is resident if it should not."""
    wait_until_persisted(node)
    eventually(lambda: not _is_promoting(node), what="the rows of the round before are copied")
    _empty_ram(node)
    return 0.0 if is_warm else drop_pages(stored_files(cache))


def _queued(node: Node, ahead: list[int], prompt: list[int]) -> tuple[Completion, Completion]:
    """A cold prompt, and the stored one that waits behind it."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(node.complete, MODEL_ID, ahead, max_tokens=1)
        eventually(lambda: _running(node) or first.done(), every_s=0.001, what="it runs")
        done = node.complete(MODEL_ID, prompt, max_tokens=1)
    if done.usage.cached_tokens < len(prompt) - 1:
        raise RuntimeError(f"not an exact hit of {len(prompt)} tokens: {done.cache}")
    return first.result(), done


def _running(node: Node) -> bool:
    report = node.client.report_of(f"model:{MODEL_ID}")
    return bool(report and report.get("running"))


def _is_promoting(node: Node) -> bool:
    report = node.client.report_of("cache_meta")
    return not report or bool(report["being_promoted"] or report["being_prefetched"])


def _empty_ram(node: Node) -> None:
    while True:
        answer = node.client.ask("cache_meta", m.EvictBytes(new_ref(), 1 << 40, ("ram",)))
        if not isinstance(answer, m.BytesEvicted) or not answer.more:
            return


def _figures(
    subject: Subject, n_tokens: int, is_warm: bool, runs: _Runs, kept: float
) -> list[Figure]:
    variant = f"{subject.name} {n_tokens} tokens, page cache {'warm' if is_warm else 'cold'}"
    on, off = (runs.first_ms[is_on] for is_on in SIDES)
    ahead = paired_ratios(*(runs.ahead_ms[is_on] for is_on in SIDES))
    saved = paired_differences(*(runs.whole_ms[not is_on] for is_on in SIDES))
    note = f"{runs.from_ram} of {len(on)} wholly from RAM"
    if not is_warm:
        note += f"; up to {100 * kept:.0f} % of the pages were still resident"
    return [
        figure(NAME, variant, "first_on_ms", "ms", summarise(on), note),
        figure(NAME, variant, "first_off_ms", "ms", summarise(off)),
        figure(NAME, variant, "on_over_off", "x", summarise(paired_ratios(on, off))),
        figure(NAME, variant, "restore_on_ms", "ms", summarise(runs.restore_ms[True])),
        figure(NAME, variant, "restore_off_ms", "ms", summarise(runs.restore_ms[False])),
        figure(NAME, variant, "saved_ms", "ms", summarise(saved), "of both together"),
        figure(NAME, variant, "ahead_on_over_off", "x", summarise(ahead), "the prompt before it"),
    ]
