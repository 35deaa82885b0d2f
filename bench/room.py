"""More requests than the context has cells for, and background work beside an interactive request.

Agents ask for far more tokens than they will generate. Sixteen do so at once, over the same sixteen
that ask for what they will need and no more: their replies end by themselves, and a first run tells
after how many tokens.

An interactive request comes while four background requests generate, over the same request on an
idle node: the time to its first token, and its tokens per second from then on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from actors.messages.cache import Removal, RemoveRows
from bench.bare import BareModel, Facts
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
from runtime import Completion, Node, TokenEvent
from runtime.cli.progress import ProgressLine
from runtime.embedded import path as embedded_path
from supervision.messages import new_ref
from tests.support.waiting import eventually

NAME = "room"
N_CTX = 8192
AGENTS, QUICK_AGENTS = 16, 4
ASKED_TOKENS, QUICK_ASKED_TOKENS = 32_000, 64
AGENT_PROMPT, QUICK_AGENT_PROMPT = 512, 64
BACKGROUND = 4
PROMPTS, QUICK_PROMPTS = (64, 1024), (64,)
N_TOKENS, QUICK_N_TOKENS = 64, 8
AGENT_PAIRS, PAIRS, QUICK_PAIRS = 5, 20, 1
BOOK = "book.txt"
RUNNING_S = 60.0

Priority = Literal["interactive", "background"]


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject; the agents on the first only, since they generate for minutes.

    And the published model where ``make real`` has put it: its memory cannot be cut.
    """
    measured = subjects(quick=quick, model=model)
    if not quick and model is None:
        measured += published()
    figures: list[Figure] = []
    for number, subject in enumerate(measured):
        n_ctx = subject.params.n_ctx if quick else N_CTX
        with BareModel(subject.path, subject.params) as bare:
            facts, book = bare.facts, bare.tokenize(embedded_path().with_name(BOOK).read_text())
        roomy = replace(subject, params=replace(subject.params, n_ctx=n_ctx, n_seq_max=AGENTS))
        with node_for_measuring() as node, ProgressLine(f"{NAME} {subject.name}") as progress:
            load(node, roomy)
            node.complete(MODEL_ID, random_prompt(facts, 32, 1), max_tokens=1)  # one-time costs
            if not number:
                figures += _agents(node, book, subject, quick, progress)
            figures += _background(node, facts, subject, quick, progress)
    return figures


# ── sixteen agents ──────────────────────────────────────────────────────────────────────────────


def _agents(
    node: Node, book: Sequence[int], subject: Subject, quick: bool, progress: ProgressLine
) -> list[Figure]:
    n_agents = QUICK_AGENTS if quick else AGENTS
    n_prompt = QUICK_AGENT_PROMPT if quick else AGENT_PROMPT
    n_pairs = QUICK_PAIRS if quick else AGENT_PAIRS
    step = (len(book) - n_prompt) // n_agents
    prompts = [list(book[at * step : at * step + n_prompt]) for at in range(n_agents)]
    much = [QUICK_ASKED_TOKENS if quick else ASKED_TOKENS] * n_agents
    learned = _together(node, prompts, much)
    exact = [one.usage.completion_tokens + 1 for one in learned.done]
    runs: dict[bool, list[_Run]] = {True: [], False: []}
    for pair in range(n_pairs):
        for is_exact in (pair % 2 == 0, pair % 2 == 1):
            progress.share((2 * pair + len(runs[True]) + len(runs[False])) / (4 * n_pairs))
            runs[is_exact].append(_together(node, prompts, exact if is_exact else much))
    per_token = {which: [one.per_token for one in done] for which, done in runs.items()}
    ratio = summarise(paired_ratios(per_token[False], per_token[True]))
    n_aside = [sum(one.timings.aside_ms > 0 for one in run.done) for run in runs[False]]
    n_stopped = [sum(one.finish_reason == "stop" for one in run.done) for run in runs[False]]
    note = (
        f"goal 1.1 at most; {min(n_stopped)} of {n_agents} ended by themselves, up to "
        f"{max(n_aside)} had stepped aside; {sum(exact) - n_agents} tokens"
    )
    variant = f"{subject.name}, {n_agents} agents"
    return [
        figure(NAME, variant, "asking_32000", "s/token", summarise(per_token[False])),
        figure(NAME, variant, "asking_what_is_needed", "s/token", summarise(per_token[True])),
        figure(NAME, variant, "more_over_exact", "x", ratio, note),
    ]


@dataclass(frozen=True, slots=True)
class _Run:
    """All agents at once."""

    seconds: float
    done: list[Completion]

    @property
    def per_token(self) -> float:
        """Seconds: company in a batch may turn a near tie, and so the length of a reply."""
        return self.seconds / sum(one.usage.completion_tokens for one in self.done)


def _together(node: Node, prompts: Sequence[Sequence[int]], sizes: Sequence[int]) -> _Run:
    """A run in which nothing is warm."""

    def ask(seed: int) -> Completion:
        return node.complete(
            MODEL_ID, prompts[seed], max_tokens=sizes[seed], temperature=0.8, seed=seed
        )

    _forget(node)
    with ThreadPoolExecutor(len(prompts)) as pool:
        began = time.perf_counter()
        done = list(pool.map(ask, range(len(prompts))))
        return _Run(time.perf_counter() - began, done)


def _forget(node: Node) -> None:
    """Remove what was computed, so that the next run computes it again."""
    wait_until_persisted(node)
    node.evict(MODEL_ID)
    cursor = 0
    while True:
        answer = node.client.ask("cache_meta", RemoveRows(new_ref(), Removal.ALL, cursor=cursor))
        cursor = getattr(answer, "cursor", 0)
        if not cursor:
            return


# ── background work ─────────────────────────────────────────────────────────────────────────────


def _background(
    node: Node, facts: Facts, subject: Subject, quick: bool, progress: ProgressLine
) -> list[Figure]:
    figures: list[Figure] = []
    for n_prompt in QUICK_PROMPTS if quick else PROMPTS:
        first: tuple[list[float], list[float]] = ([], [])
        speed: tuple[list[float], list[float]] = ([], [])
        n_pairs = QUICK_PAIRS if quick else PAIRS
        for pair in range(n_pairs):
            progress.share(pair / n_pairs)
            seed = 500_000 + 10 * (n_prompt * n_pairs + pair)
            alone = _stream(node, random_prompt(facts, n_prompt, seed), quick)
            with _generating(node, facts, seed + 1):
                beside = _stream(node, random_prompt(facts, n_prompt, seed + 9), quick)
            for values, number in ((first, 0), (speed, 1)):
                values[0].append(beside[number])
                values[1].append(alone[number])
            wait_until_persisted(node)
        variant = f"{subject.name}, {n_prompt} tokens beside {BACKGROUND} background"
        ratio = summarise(paired_ratios(*first))
        rate = summarise(paired_ratios(*speed))
        figures += [
            figure(NAME, variant, "first_token_alone_s", "s", summarise(first[1])),
            figure(NAME, variant, "first_token_beside_s", "s", summarise(first[0])),
            figure(NAME, variant, "first_token_ratio", "x", ratio, "goal 1.2 at most"),
            figure(NAME, variant, "tokens_per_second_ratio", "x", rate),
        ]
    return figures


def _stream(node: Node, prompt: Sequence[int], quick: bool) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it."""
    n_tokens = QUICK_N_TOKENS if quick else N_TOKENS
    began = time.perf_counter()
    times: list[float] = []
    for event in node.stream(MODEL_ID, prompt, max_tokens=n_tokens, temperature=0, ignore_eos=True):
        if isinstance(event, TokenEvent):
            times += [time.perf_counter()] * len(event.tokens)
    return times[0] - began, (len(times) - 1) / max(1e-6, times[-1] - times[0])


@contextlib.contextmanager
def _generating(node: Node, facts: Facts, seed: int) -> Iterator[None]:
    """Four background requests generate meanwhile; a reply that ends is followed by another."""
    is_over = False

    def generate(number: int) -> int:
        n_tokens = 0
        for again in range(1_000):
            prompt = random_prompt(facts, 32, 7_919 * seed + 31 * number + again)
            options = {"priority": "background", "temperature": 0.8, "seed": again}
            with node.stream(MODEL_ID, prompt, **options) as events:  # type: ignore[arg-type]
                for event in events:
                    n_tokens += isinstance(event, TokenEvent)
                    begun[number] = begun[number] or n_tokens > 1
                    if is_over:
                        return n_tokens
        return n_tokens

    begun = [False] * BACKGROUND
    with ThreadPoolExecutor(BACKGROUND) as pool:
        running = [pool.submit(generate, number) for number in range(BACKGROUND)]
        try:
            eventually(lambda: all(begun), within_s=RUNNING_S, what="all four generate")
            yield
        finally:
            is_over = True
        for one in running:
            one.result()
