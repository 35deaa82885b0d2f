"""Tokens per second of one stream through the actors over a bare loop on the same wrapper.

The node saves every completed block and streams every token to the host, whose clock counts; the
bare loop only decodes and samples. Both generate the same reply: same prompt, same seed.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from bench.bare import BareModel, Generated
from bench.report import Figure, figure
from bench.stats import paired_ratios, summarise
from bench.subjects import (
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    subjects,
    wait_until_persisted,
)
from native.params import SamplingParams
from runtime import Node, TokenEvent
from runtime.cli.progress import ProgressLine

NAME = "throughput"
PROMPT = "Once upon a time"
N_TOKENS, QUICK_N_TOKENS = 128, 32
PAIRS, QUICK_PAIRS = 12, 2
MAX_TRIES = 100  # the model may end a text early; such a seed is not used


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject."""
    n_pairs = QUICK_PAIRS if quick else PAIRS
    figures: list[Figure] = []
    for subject in subjects(quick=quick, model=model):
        with (
            BareModel(subject.path, subject.params) as bare,
            node_for_measuring() as node,
            ProgressLine(f"{NAME} {subject.name}") as progress,
        ):
            load(node, subject)
            figures += _measure(
                node, bare, subject, QUICK_N_TOKENS if quick else N_TOKENS, n_pairs, progress
            )
    return figures


def _measure(
    node: Node,
    bare: BareModel,
    subject: Subject,
    n_tokens: int,
    n_pairs: int,
    progress: ProgressLine,
) -> list[Figure]:
    prompt = bare.tokenize(PROMPT)
    ours: list[float] = []
    peers: list[float] = []
    n_same = 0
    _stream(node, prompt, 4, seed=0)  # the first request has one-time costs
    for seed in itertools.islice(itertools.count(1), MAX_TRIES):
        if len(ours) == n_pairs:
            break
        progress.share(len(ours) / n_pairs)
        reply, tokens, seconds = _pair(node, bare, prompt, n_tokens, seed)
        wait_until_persisted(node)
        if len(tokens) == len(reply.tokens) == n_tokens:
            peers.append((n_tokens - 1) / reply.seconds)
            ours.append((n_tokens - 1) / seconds)
            n_same += tokens == reply.tokens
    ratio = summarise(paired_ratios(ours, peers))
    note = f"goal 0.97 on the 1.1B shape; {n_same} of {len(ours)} replies the same"
    variant = f"{subject.name} {n_tokens} tokens"
    return [
        figure(NAME, variant, "bare", "tok/s", summarise(peers)),
        figure(NAME, variant, "actors", "tok/s", summarise(ours)),
        figure(NAME, variant, "actors_over_bare", "x", ratio, note),
    ]


def _pair(
    node: Node, bare: BareModel, prompt: list[int], n_tokens: int, seed: int
) -> tuple[Generated, tuple[int, ...], float]:
    """One reply from each side; the order alternates."""
    params = SamplingParams(temperature=1.0, seed=seed)
    if seed % 2:
        reply = bare.generate(prompt, n_tokens, params)
        return reply, *_stream(node, prompt, n_tokens, seed)
    tokens, seconds = _stream(node, prompt, n_tokens, seed)
    return bare.generate(prompt, n_tokens, params), tokens, seconds


def _stream(
    node: Node, prompt: list[int], n_tokens: int, seed: int
) -> tuple[tuple[int, ...], float]:
    """The reply, and the seconds between its first and last token as the host sees them."""
    tokens: list[int] = []
    first = last = 0.0
    options = {"max_tokens": n_tokens, "temperature": 1.0, "seed": seed}
    for event in node.stream(MODEL_ID, prompt, **options):
        if isinstance(event, TokenEvent) and event.tokens:
            last = time.perf_counter()
            first = first if tokens else last
            tokens += event.tokens
    return tuple(tokens), last - first
