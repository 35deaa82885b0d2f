"""Prompt lookup: tokens per second with it over without, and that the text is the same.

One engine in this process, one request at a time, with and without in turn. What is measured:

- *copies*: the embedded model continues a story that its prompt holds three times: it copies some
  phrases of it. Models with random weights do not copy, so the 1.1B shape gets weights with which
  it generates a loop of 32 tokens at the full cost of a step: the largest gain, where everything
  repeats.
- *nothing repeats*: a story above temperature 0, and random weights: the cost of useless lookups.
- the cost of a step by its rows, which decides how many guesses are worth checking.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from actors import messages as m
from bench.bare import Facts
from bench.report import Figure, figure
from bench.stats import paired_ratios, summarise
from bench.subjects import Subject, random_prompt, subjects
from cache.policy import LivePolicy, LogitsPolicy
from examples.train_demo_model.corpus import documents
from native import load_backend
from native.backend import Backend, Batch
from native.params import SamplingParams
from runtime.cli.progress import ProgressLine
from tests.support.engine_runs import EngineRun, Script, run

NAME = "speculation"
N_TOKENS, QUICK_N_TOKENS = 192, 160
PAIRS, QUICK_PAIRS = 5, 2
ROWS = (1, 2, 4, 8, 16, 32)
STEPS, QUICK_STEPS = 12, 2
LOOP = 32
GOAL = "goal 1.5"


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and how its reply is chosen."""

    name: str
    tokens: list[int]
    sampling: SamplingParams
    note: str


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject."""
    figures: list[Figure] = []
    n_pairs = QUICK_PAIRS if quick else PAIRS
    n_tokens = QUICK_N_TOKENS if quick else N_TOKENS
    for subject in subjects(quick=quick, model=model):
        tells_stories = subject.name == "embedded" or model is not None
        with ProgressLine(f"{NAME} {subject.name}") as progress, loaded(subject) as backend:
            figures += _rows(subject.name, backend, QUICK_STEPS if quick else STEPS)
            for task in _stories(backend) if tells_stories else _noise(backend):
                progress.share(0.3)
                figures += _compare(subject.name, backend, task, n_tokens, n_pairs)
        if not tells_stories:
            with looping(subject) as changed, loaded(changed) as backend:
                task = _loop(random_prompt(_facts(backend), 16, seed=5))
                figures += _compare(subject.name, backend, task, n_tokens, n_pairs)
    return figures


@contextmanager
def loaded(subject: Subject) -> Iterator[Backend]:
    backend = load_backend("llama", subject.path, subject.params)
    try:
        yield backend
    finally:
        backend.close()


def _facts(backend: Backend) -> Facts:
    return Facts(backend.info.n_vocab, backend.info.eog_tokens)


def _stories(backend: Backend) -> list[Task]:
    text = next(iter(documents(1, 40)))
    told = backend.tokenize(f"{text}\n\n" * 3 + text[:80])[-1200:]
    begun = backend.tokenize("Once upon a time")
    return [
        Task("copies", told, SamplingParams(), f"a story read three times; {GOAL}"),
        Task("nothing repeats", begun, SamplingParams(temperature=1.0, seed=3), "goal 0.97"),
    ]


def _noise(backend: Backend) -> list[Task]:
    begun = random_prompt(_facts(backend), 16, seed=3)
    return [Task("nothing repeats", begun, SamplingParams(), "random weights; goal 0.97")]


def _loop(begun: list[int]) -> Task:
    return Task("copies", begun, SamplingParams(), f"weights that generate a loop; {GOAL}")


@contextmanager
def looping(subject: Subject) -> Iterator[Subject]:
    """The same shape and cost, but each token of the first ``LOOP`` is followed by the next one.

    Layers add zero, and the output's rows are the embeddings of the tokens before.
    """
    path = subject.path.with_name(f"{subject.path.stem}.loop.{os.getpid()}.gguf")
    try:
        shutil.copyfile(subject.path, path)
        tensors = {one.name: one.data for one in GGUFReader(path, "r+").tensors}
        for name, data in tensors.items():
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                data[:] = 0
        embeddings, output = tensors["token_embd.weight"], tensors["output.weight"]
        output[:] = 0
        output[:LOOP] = embeddings[(np.arange(LOOP) - 1) % LOOP]
        for data in tensors.values():
            data.flush()
        del tensors, embeddings, output, data
        yield replace(subject, path=path)
    finally:
        path.unlink(missing_ok=True)


def _rows(name: str, backend: Backend, n_steps: int) -> list[Figure]:
    """Milliseconds of a step of one sequence by its rows, 256 tokens into the context."""
    batch, text = Batch(), random_prompt(_facts(backend), 256 + max(ROWS), seed=1)
    batch.extend_prefill(text[:256], 0, 0, logits_last=False)
    backend.decode(batch)
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for step in range(n_steps + 1):
        for rows in ROWS:
            batch.clear()
            for at in range(256, 256 + rows):
                batch.add(text[at], at, 0, want_logits=True)
            began = time.perf_counter()
            backend.decode(batch)
            if step:  # the first of a size plans its memory
                seconds[rows].append(1e3 * (time.perf_counter() - began))
            backend.seq_remove(0, 256, -1)
    backend.seq_remove(0, 0, -1)
    return [
        figure(NAME, f"{name} step", f"{rows} rows", "ms", summarise(took))
        for rows, took in seconds.items()
    ]


def _compare(name: str, backend: Backend, task: Task, n_tokens: int, n_pairs: int) -> list[Figure]:
    """The same request without and with lookup, in turn, on one engine."""
    rates: dict[m.Speculation, list[float]] = {m.Speculation.OFF: [], m.Speculation.NGRAM: []}
    texts: list[list[int]] = []
    used = m.Usage(0, 0, 0)

    def script() -> Script:
        nonlocal used
        for index in range(2 * n_pairs + 2):
            how = m.Speculation.NGRAM if index % 4 in (1, 2) else m.Speculation.OFF
            request = run(
                str(index), task.tokens,
                max_tokens=n_tokens, sampling=task.sampling, speculation=how,
            )  # fmt: skip
            got = yield [request]
            one = got[str(index)]
            if one.done is None:
                raise RuntimeError(f"the request failed: {one.failed}")
            texts.append(one.tokens)
            if index >= 2:  # the first pair measures the cost of steps
                rates[how].append(one.done.timings.tokens_per_second)
            if how is m.Speculation.NGRAM:
                used = one.done.usage

    played = EngineRun(
        backend,
        policy=LivePolicy(max_idle=0, min_tokens=1 << 30),
        logits=LogitsPolicy(memory_bytes=0, row_share=0),
    )
    backend.close, close = lambda: None, backend.close  # type: ignore[method-assign]
    try:
        played.play(script())
    finally:
        backend.close = close  # type: ignore[method-assign]
    plain, looked_up = rates[m.Speculation.OFF], rates[m.Speculation.NGRAM]
    n_same = sum(text == texts[0] for text in texts)
    note = (
        f"{task.note}; {n_same} of {len(texts)} texts the same; of {used.drafted_tokens} guesses "
        f"{used.accepted_tokens} right in {used.completion_tokens} tokens"
    )
    variant = f"{name} {task.name}"
    return [
        figure(NAME, variant, "plain", "tok/s", summarise(plain)),
        figure(NAME, variant, "lookup", "tok/s", summarise(looked_up)),
        figure(
            NAME, variant, "lookup_over_plain", "x",
            summarise(paired_ratios(looked_up, plain)), note,
        ),
    ]  # fmt: skip
