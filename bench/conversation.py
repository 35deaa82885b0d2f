"""Bytes that a conversation writes and keeps: twenty turns over the bytes of its final state.

Each turn sends the whole text so far and some new tokens, as stateless clients do, and a reply is
generated. The final state is every token of the conversation once. A cache of whole prefixes writes
the sum over all turns, which is stated for comparison.

Three times: turns that follow at once, as an agent's do; with a pause after each that is longer
than the delay after which the end of a reply is stored in RAM, as a person's are; and with pauses
that are longer than the delay of files, too (delayed rows are written after each turn, as they
would be in such a pause).

Bytes *written* were copied by the model into the arena, and by the writer into files. Bytes *kept*
are in the arena and the directory after all delayed rows were written and the node was stopped;
they are compared with those of a node that read the same text in one prompt.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.bare import BareModel, Facts
from bench.report import Figure
from bench.subjects import MODEL_ID, Subject, load, node_for_measuring, random_prompt, subjects
from cache.policy import SAVE_ALL
from native.params import ModelParams
from runtime import Node
from runtime.cli.progress import ProgressLine
from runtime.client.cache.upkeep import flush

NAME = "conversation"
TURNS, QUICK_TURNS = 20, 4
FIRST_TOKENS = 300
"""A system prompt."""
NEW_TOKENS = 60
REPLY_TOKENS = 40
PAUSE_S = 1.2 * SAVE_ALL.tail_delay_ms / 1e3
STUB: Final = Subject("stub", Path("stub"), ModelParams(n_ctx=4096))


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes in the arena's slabs and in files."""

    ram: int
    files: int


def _no_pause(node: Node) -> None:
    del node


def _short_pause(node: Node) -> None:
    del node
    time.sleep(PAUSE_S)  # noqa: TID251  # a person reads


def _long_pause(node: Node) -> None:
    flush(node.client)


Pause = Callable[[Node], None]
PAUSES: Final[dict[str, Pause]] = {
    "": _no_pause,
    f", pauses of {PAUSE_S:.1f} s": _short_pause,
    ", pauses that files do not wait for": _long_pause,
}


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject and the stub, with each kind of pause."""
    figures: list[Figure] = []
    n_turns = QUICK_TURNS if quick else TURNS
    stubs = () if quick else (STUB,)
    for subject in (*subjects(quick=quick, model=model), *stubs):
        with ProgressLine(f"{NAME} {subject.name}") as progress:
            figures += _measure(subject, n_turns, progress, quick=quick)
    return figures


def _measure(
    subject: Subject, n_turns: int, progress: ProgressLine, *, quick: bool
) -> list[Figure]:
    facts = _facts(subject)
    figures: list[Figure] = []
    once: dict[int, Kept] = {}
    pauses = list(PAUSES.items())[-1 if quick else 0 :]
    for at, (pauses_of, pause) in enumerate(pauses):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            where = Path(folder)
            with node_for_measuring(where) as node:
                _load(node, subject)

                def share(part: float, at: int = at) -> None:
                    progress.share((at + part) / len(pauses))

                text, whole_rows, reused = _talk(node, facts, n_turns, pause, share)
                status = _settled(node)
            kept = Kept(_ram(status), _files(where))
        if len(text) not in once:
            once[len(text)] = _at_once(subject, text)
        variant = f"{subject.name}, {n_turns} turns, {len(text)} tokens{pauses_of}"
        figures += _figures(variant, status, kept, once[len(text)], len(text), whole_rows, reused)
    return figures


def _facts(subject: Subject) -> Facts:
    if subject is STUB:
        return Facts(200, frozenset())  # all of them letters
    with BareModel(subject.path, subject.params) as bare:
        return bare.facts


def _load(node: Node, subject: Subject) -> None:
    load(node, subject, backend="stub" if subject is STUB else "llama")


def _talk(
    node: Node, facts: Facts, n_turns: int, pause: Pause, share: Callable[[float], None]
) -> tuple[list[int], int, float]:
    """The whole text, the tokens of all turns together, the part of the last prompt reused."""
    text = random_prompt(facts, FIRST_TOKENS, seed=77)
    whole_rows, reused = 0, 0.0
    for turn in range(n_turns):
        share(turn / n_turns)
        text = text + random_prompt(facts, NEW_TOKENS, seed=1000 + turn)
        done = node.complete(
            MODEL_ID, text, max_tokens=REPLY_TOKENS, temperature=1.0, seed=turn + 1
        )
        reused = done.usage.cached_tokens / len(text)
        text = text + list(done.tokens)
        whole_rows += len(text)
        pause(node)
    return text, whole_rows, reused


def _at_once(subject: Subject, text: list[int]) -> Kept:
    """Bytes kept by a node that reads the same text in one prompt, without its last token."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with node_for_measuring(Path(folder)) as node:
            _load(node, subject)
            node.complete(MODEL_ID, text[:-1], max_tokens=0)
            status = _settled(node)
        return Kept(_ram(status), _files(Path(folder)))


def _settled(node: Node) -> dict[str, Any]:
    flush(node.client)
    return dict(node.status()["actors"])


def _ram(status: dict[str, Any]) -> int:
    return int(status["cache_meta"]["tiers"]["ram"]["used_bytes"])


def _files(where: Path) -> int:
    """Of a node that has stopped."""
    return sum(file.stat().st_size for file in (where / "cache").rglob("*.kvb"))


def _figures(
    variant: str,
    status: dict[str, Any],
    kept: Kept,
    once: Kept,
    n_tokens: int,
    whole_rows: int,
    reused: float,
) -> list[Figure]:
    model = status[f"model:{MODEL_ID}"]
    final = n_tokens * int(model["kv_bytes_per_token"])
    saved, written = int(model["saved_bytes"]), int(status["writer"]["bytes_written"])
    last = f"the last turn reused {100 * reused:.0f} % of its prompt"
    return [
        Figure(NAME, variant, "final_state_mib", final / 2**20, "MiB", 1),
        Figure(NAME, variant, "saved_mib", saved / 2**20, "MiB", 1, last),
        Figure(NAME, variant, "saved_over_final", saved / final, "x", 1),
        Figure(NAME, variant, "files_over_final", written / final, "x", 1),
        Figure(NAME, variant, "ram_over_at_once", kept.ram / once.ram, "x", 1, "goal 1.05"),
        Figure(NAME, variant, "disk_over_at_once", kept.files / once.files, "x", 1, "goal 1.05"),
        Figure(NAME, variant, "whole_rows_over_final", whole_rows / n_tokens, "x", 1, "computed"),
    ]
