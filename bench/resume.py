"""The pause of streams whose model process is killed, over the work that it must contain.

Four streams run; their model gets SIGKILL. Each stream's pause is from its last token before to
its first token after, by its caller's clock. That work is measured separately, without a crash:
loading the model into a fresh process, and computing the next token of four such conversations at
once from the stored rows (restoring them, computing the tokens after them).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.bare import BareModel, Facts
from bench.report import Figure, figure
from bench.stats import summarise
from bench.subjects import MODEL_ID, Subject, load, node_for_measuring, random_prompt, subjects
from runtime import Node, ResumedEvent, TokenEvent
from runtime.cli.progress import ProgressLine
from tests.support.runtime_nodes import kill, pid_of
from tests.support.waiting import eventually

NAME = "resume"
N_STREAMS = 4
PROMPT_TOKENS, QUICK_PROMPT_TOKENS = 512, 32  # all replies fit the quick model's context at once
SAID_BEFORE = 16
"""Tokens of each stream before the kill."""
LASTS = 100
"""Tokens that a prompt's reply must have, so that none ends before the kill."""
MAX_TOKENS = 200
ROUNDS, QUICK_ROUNDS = 5, 1


@dataclass
class Stream:
    """One caller."""

    node: Node
    prompt: list[int]
    only_first: bool = False
    tokens: list[int] = field(default_factory=list)
    resumed: list[ResumedEvent] = field(default_factory=list)
    first_at: float = 0.0
    trouble: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        try:
            events = self.node.stream(
                MODEL_ID, self.prompt, max_tokens=MAX_TOKENS, resumed_events=True
            )
            for event in events:
                match event:
                    case TokenEvent():
                        self.first_at = self.first_at or time.perf_counter()
                        self.tokens += event.tokens
                        if self.only_first:
                            return
                    case ResumedEvent():
                        self.resumed.append(event)
                        return  # leaving it cancels the rest
                    case _:
                        pass
        except BaseException as error:  # noqa: BLE001 - raised by the thread's owner
            self.trouble = error


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject."""
    figures: list[Figure] = []
    n_rounds = QUICK_ROUNDS if quick else ROUNDS
    n_prompt = QUICK_PROMPT_TOKENS if quick else PROMPT_TOKENS
    for subject in subjects(quick=quick, model=model):
        with BareModel(subject.path, subject.params) as bare:
            facts = bare.facts
        times: dict[str, list[float]] = defaultdict(list)
        with node_for_measuring() as node, ProgressLine(f"{NAME} {subject.name}") as progress:
            load(node, subject)
            for number in range(n_rounds):
                progress.share(number / n_rounds)
                _one_round(node, subject, _prompts(node, facts, n_prompt, number), times)
        figures += _figures(f"{subject.name} {n_prompt} tokens, {N_STREAMS} streams", times)
    return figures


def _prompts(node: Node, facts: Facts, n_tokens: int, number: int) -> list[list[int]]:
    """New ones, whose replies last."""
    found: list[list[int]] = []
    for seed in range(number * 1000, number * 1000 + 200):
        prompt = random_prompt(facts, n_tokens, seed)
        if node.complete(MODEL_ID, prompt, max_tokens=LASTS).usage.completion_tokens == LASTS:
            found.append(prompt)
            if len(found) == N_STREAMS:
                return found
    raise RuntimeError("this model's replies are too short to be interrupted; measure another one")


def _one_round(
    node: Node, subject: Subject, prompts: Sequence[list[int]], times: dict[str, list[float]]
) -> None:
    streams = [Stream(node, prompt) for prompt in prompts]
    _start(streams)
    eventually(
        lambda: all(len(one.tokens) >= SAID_BEFORE or not one.thread.is_alive() for one in streams),
        within_s=600,
        every_s=0.002,
        what="all streams have begun",
    )
    kill(pid_of(node, f"model:{MODEL_ID}"))
    _join(streams)
    pauses = [one.resumed[0].pause_ms for one in streams if one.resumed]
    if len(pauses) < len(streams):
        raise RuntimeError("a stream ended before its model was killed; measure another model")
    times["pause"].append(max(pauses))

    node.unload(MODEL_ID)
    began = time.perf_counter()
    load(node, subject)
    times["load"].append(1e3 * (time.perf_counter() - began))
    # These find what was stored at the kill; tokens after it are left out of the prompts.
    said = [
        prompt + one.tokens[: one.resumed[0].n_tokens]
        for prompt, one in zip(prompts, streams, strict=True)
    ]
    again = [Stream(node, prompt, only_first=True) for prompt in said]
    began = time.perf_counter()
    _start(again)
    _join(again)
    times["restore"].append(1e3 * (max(one.first_at for one in again) - began))


def _start(streams: Sequence[Stream]) -> None:
    for one in streams:
        one.thread.start()


def _join(streams: Sequence[Stream]) -> None:
    for one in streams:
        one.thread.join()
        if one.trouble is not None:
            raise one.trouble


def _figures(variant: str, times: dict[str, list[float]]) -> list[Figure]:
    ratios = [
        pause / (load_ms + restore)
        for pause, load_ms, restore in zip(
            times["pause"], times["load"], times["restore"], strict=True
        )
    ]
    return [
        figure(
            NAME, variant, "pause_ms", "ms", summarise(times["pause"]), "longest of the streams"
        ),
        figure(NAME, variant, "load_ms", "ms", summarise(times["load"])),
        figure(NAME, variant, "restore_to_next_token_ms", "ms", summarise(times["restore"])),
        figure(NAME, variant, "pause_over_load_and_restore", "x", summarise(ratios), "goal 1.2"),
    ]
