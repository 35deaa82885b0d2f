"""What a conversation writes: bytes saved in twenty turns over the bytes of its final state.

Each turn sends the whole text so far and some new tokens, as stateless clients do, and a reply is
generated. The final state is every token of the conversation once. A cache of whole prefixes writes
the sum over all turns, which the last row states for comparison.

Twice: turns that follow at once, as an agent's do, and with a pause after each that is longer than
the delay after which the end of a reply is stored, as a person's are. Bytes into RAM are what the
model copied into the arena, bytes into files what the writer wrote; both after everything that
waited was written, too.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.bare import BareModel, Facts
from bench.report import Figure
from bench.subjects import MODEL_ID, Subject, load, node_for_measuring, random_prompt, subjects
from cache.policy import SAVE_ALL
from runtime import Node
from runtime.flush import flush
from runtime.progress import ProgressLine

NAME = "conversation"
TURNS, QUICK_TURNS = 20, 4
FIRST_TOKENS = 300
"""A system prompt."""
NEW_TOKENS = 60
REPLY_TOKENS = 40
PAUSE_S = 1.2 * SAVE_ALL.tail_delay_ms / 1e3


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject, without pauses and with them."""
    figures: list[Figure] = []
    n_turns = QUICK_TURNS if quick else TURNS
    for subject in subjects(quick=quick, model=model):
        with BareModel(subject.path, subject.params) as bare:
            facts = bare.facts
        for pause_s in (0.0,) if quick else (0.0, PAUSE_S):
            with node_for_measuring() as node, ProgressLine(f"{NAME} {subject.name}") as progress:
                load(node, subject)
                figures += _measure(node, facts, subject, n_turns, pause_s, progress)
    return figures


def _measure(
    node: Node, facts: Facts, subject: Subject, n_turns: int, pause_s: float, progress: ProgressLine
) -> list[Figure]:
    text = random_prompt(facts, FIRST_TOKENS, seed=77)
    whole_rows = 0
    reused: list[float] = []
    for turn in range(n_turns):
        progress.share(turn / n_turns)
        text = text + random_prompt(facts, NEW_TOKENS, seed=1000 + turn)
        done = node.complete(
            MODEL_ID, text, max_tokens=REPLY_TOKENS, temperature=1.0, seed=turn + 1
        )
        reused.append(done.usage.cached_tokens / len(text))
        text = text + list(done.tokens)
        whole_rows += len(text)
        time.sleep(pause_s)  # noqa: TID251  # a person reads
    flush(node.client)
    actors = node.status()["actors"]
    status, writer = actors[f"model:{MODEL_ID}"] or {}, actors["writer"] or {}
    final_bytes = len(text) * int(status["kv_bytes_per_token"])
    ram, files = int(status["saved_bytes"]), int(writer["bytes_written"])
    pauses = f", pauses of {pause_s:.1f} s" if pause_s else ""
    variant = f"{subject.name}, {n_turns} turns, {len(text)} tokens{pauses}"
    last = f"the last turn reused {100 * reused[-1]:.0f} % of its prompt"
    goal = "" if pause_s else "goal 1.05"
    return [
        Figure(NAME, variant, "final_state_mib", final_bytes / 2**20, "MiB", 1),
        Figure(NAME, variant, "saved_mib", ram / 2**20, "MiB", 1, last),
        Figure(NAME, variant, "saved_over_final", ram / final_bytes, "x", 1, goal),
        Figure(NAME, variant, "files_over_final", files / final_bytes, "x", 1, "goal 1.05"),
        Figure(NAME, variant, "whole_rows_over_final", whole_rows / len(text), "x", 1, "computed"),
    ]
