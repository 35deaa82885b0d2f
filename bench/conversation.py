"""What a conversation writes: bytes saved in twenty turns over the bytes of its final state.

Each turn sends the whole text so far and some new tokens, as stateless clients do, and a reply is
generated. The final state is every token of the conversation once. A cache of whole prefixes writes
the sum over all turns, which the last row states for comparison.
"""

from __future__ import annotations

from pathlib import Path

from bench.bare import BareModel, Facts
from bench.report import Figure
from bench.subjects import MODEL_ID, Subject, load, node_for_measuring, random_prompt, subjects
from runtime import Node
from runtime.progress import ProgressLine

NAME = "conversation"
TURNS, QUICK_TURNS = 20, 4
FIRST_TOKENS = 300
"""A system prompt."""
NEW_TOKENS = 60
REPLY_TOKENS = 40


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject."""
    figures: list[Figure] = []
    n_turns = QUICK_TURNS if quick else TURNS
    for subject in subjects(quick=quick, model=model):
        with BareModel(subject.path, subject.params) as bare:
            facts = bare.facts
        with node_for_measuring() as node, ProgressLine(f"{NAME} {subject.name}") as progress:
            load(node, subject)
            figures += _measure(node, facts, subject, n_turns, progress)
    return figures


def _measure(
    node: Node, facts: Facts, subject: Subject, n_turns: int, progress: ProgressLine
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
    status = node.status()["actors"][f"model:{MODEL_ID}"] or {}
    final_bytes = len(text) * int(status["kv_bytes_per_token"])
    saved = int(status["saved_bytes"])
    variant = f"{subject.name}, {n_turns} turns, {len(text)} tokens"
    last = f"the last turn reused {100 * reused[-1]:.0f} % of its prompt"
    return [
        Figure(NAME, variant, "final_state_mib", final_bytes / 2**20, "MiB", 1),
        Figure(NAME, variant, "saved_mib", saved / 2**20, "MiB", 1, last),
        Figure(NAME, variant, "saved_over_final", saved / final_bytes, "x", 1, "goal 1.05"),
        Figure(NAME, variant, "whole_rows_over_final", whole_rows / len(text), "x", 1, "computed"),
    ]
