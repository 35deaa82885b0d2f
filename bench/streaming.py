"""The overhead of delivering a stream to the host: one stream, many at once, and beside saves.

The added time per token is the median gap between tokens at the host, less that of the bare loop
with the same prompt and seed. The 64 streams come from the stub backend, which computes next to
nothing: the figure is the most tokens that the actors deliver to one host. The third compares two
nodes, one with its default tiers, which stores every block while it generates, and one without a
cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles

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
from native import Batch, load_backend
from native.params import ModelParams, SamplingParams
from runtime import Node, TokenEvent
from runtime.cli.progress import ProgressLine

NAME = "streaming"
N_TOKENS, QUICK_N_TOKENS = 128, 24
PAIRS, QUICK_PAIRS = 6, 2
PROMPT_TOKENS = 64
STREAMS, QUICK_STREAMS = 64, 8
STUB_TOKENS, QUICK_STUB_TOKENS = 256, 32
STUB_RUNS, QUICK_STUB_RUNS = 5, 1
STALL_PAIRS, QUICK_STALL_PAIRS = 8, 1


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject; the last of them beside saves."""
    figures = _many(quick)
    chosen = subjects(quick=quick, model=model)
    for subject in chosen:
        figures += _added(subject, quick)
    return figures + _beside_saves(chosen[-1], quick)


# --- one stream -----------------------------------------------------------------------------------


def _added(subject: Subject, quick: bool) -> list[Figure]:
    n_tokens, n_pairs = (QUICK_N_TOKENS, QUICK_PAIRS) if quick else (N_TOKENS, PAIRS)
    ours: list[float] = []
    bares: list[float] = []
    with (
        BareModel(subject.path, subject.params) as bare,
        node_for_measuring() as node,
        ProgressLine(f"{NAME} {subject.name}") as progress,
    ):
        load(node, subject)
        for number in range(n_pairs):
            progress.share(number / n_pairs)
            prompt = random_prompt(bare.facts, PROMPT_TOKENS, seed=4000 + number)
            params = SamplingParams(temperature=1.0, seed=number + 1)
            bares.append(median(bare.generate(prompt, n_tokens, params).gaps_ms))
            ours.append(median(_gaps(node, prompt, n_tokens, seed=number + 1)))
            wait_until_persisted(node)
    variant = f"{subject.name}, {n_tokens} tokens"
    added = summarise(paired_differences(ours, bares))
    return [
        figure(NAME, variant, "token_p50_host_ms", "ms", summarise(ours)),
        figure(NAME, variant, "token_p50_bare_ms", "ms", summarise(bares)),
        figure(NAME, variant, "token_p50_added_ms", "ms", added, "goal 1"),
    ]


def _gaps(node: Node, prompt: Sequence[int], n_tokens: int, seed: int) -> list[float]:
    """Milliseconds from token to token at the host; several in one event share its gap."""
    gaps: list[float] = []
    last = 0.0
    options = {"max_tokens": n_tokens, "temperature": 1.0, "seed": seed}
    for event in node.stream(MODEL_ID, list(prompt), **options):
        if isinstance(event, TokenEvent) and event.tokens:
            now = time.perf_counter()
            if last:
                n_new = len(event.tokens)
                gaps += [1e3 * (now - last) / n_new] * n_new
            last = now
    return gaps


# --- many streams ---------------------------------------------------------------------------------


def _many(quick: bool) -> list[Figure]:
    n_streams = QUICK_STREAMS if quick else STREAMS
    n_tokens = QUICK_STUB_TOKENS if quick else STUB_TOKENS
    params = ModelParams(n_seq_max=n_streams, n_ctx=n_streams * (n_tokens + PROMPT_TOKENS))
    delivered: list[float] = []
    with node_for_measuring() as node, ProgressLine(f"{NAME} stub") as progress:
        load(node, Subject("stub", Path("stub"), params), backend="stub")
        for number in range(QUICK_STUB_RUNS if quick else STUB_RUNS):
            progress.share(number / STUB_RUNS)
            delivered.append(_delivered(node, n_streams, n_tokens, 1000 * number))
            wait_until_persisted(node)
    variant = f"stub, {n_streams} streams, {n_tokens} tokens each"
    note = "from the first request to the last token; goal 5,000 with 64 streams"
    alone = _stub_alone(params, n_streams)
    return [
        figure(NAME, variant, "delivered", "tok/s", summarise(delivered), note),
        Figure(NAME, variant, "stub_alone", alone, "tok/s", 1, "what the stub can do itself"),
    ]


def _delivered(node: Node, n_streams: int, n_tokens: int, seed: int) -> float:
    def one(index: int) -> int:
        prompt = [40 + (index * 7 + i + seed) % 80 for i in range(32)]
        options = {"max_tokens": n_tokens, "temperature": 0.0}
        events = node.stream(MODEL_ID, prompt, **options)
        return sum(len(event.tokens) for event in events if isinstance(event, TokenEvent))

    with ThreadPoolExecutor(n_streams) as pool:
        began = time.perf_counter()
        n_seen = sum(pool.map(one, range(n_streams)))
        return n_seen / (time.perf_counter() - began)


def _stub_alone(params: ModelParams, n_streams: int) -> float:
    """Tokens per second of decoding and sampling in one loop of this process."""
    backend = load_backend("stub", "stub", params)
    samplers = [backend.new_sampler(SamplingParams()) for _ in range(n_streams)]
    batch = Batch()
    n_steps = 16
    began = time.perf_counter()
    for step in range(n_steps):
        batch.clear()
        rows = [batch.add(65, step, seq, True) for seq in range(n_streams)]
        backend.decode(batch)
        for row, sampler in zip(rows, samplers, strict=True):
            sampler.accept(backend.sample(row, sampler, step))
    taken = time.perf_counter() - began
    backend.close()
    return n_steps * n_streams / taken


# --- beside saves ---------------------------------------------------------------------------------


def _beside_saves(subject: Subject, quick: bool) -> list[Figure]:
    n_tokens = QUICK_N_TOKENS if quick else N_TOKENS
    n_pairs = QUICK_STALL_PAIRS if quick else STALL_PAIRS
    on: list[float] = []
    off: list[float] = []
    with BareModel(subject.path, subject.params) as bare:
        facts = bare.facts
    with (
        node_for_measuring() as saving,
        node_for_measuring(cache_ram=0, cache_disk=0) as plain,
        ProgressLine(f"{NAME} {subject.name} beside saves") as progress,
    ):
        for node in (saving, plain):
            load(node, subject)
            _gaps(node, random_prompt(facts, PROMPT_TOKENS, seed=6000), 4, seed=1)
        for number in range(n_pairs):
            progress.share(number / n_pairs)
            prompt = random_prompt(facts, PROMPT_TOKENS, seed=6001 + number)
            off += _gaps(plain, prompt, n_tokens, seed=number + 1)
            on += _gaps(saving, prompt, n_tokens, seed=number + 1)
            wait_until_persisted(saving)
    variant = f"{subject.name}, {n_pairs} streams of {n_tokens} tokens"
    p99_on, p99_off = _p99(on), _p99(off)
    note = f"goal 1.05; p50 {median(on):.4g} over {median(off):.4g} ms"
    return [
        Figure(NAME, variant, "token_p99_saving_ms", p99_on, "ms", len(on)),
        Figure(NAME, variant, "token_p99_not_saving_ms", p99_off, "ms", len(off)),
        Figure(NAME, variant, "token_p99_saving_over_not", p99_on / p99_off, "x", n_pairs, note),
    ]


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100)[98]
