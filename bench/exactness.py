"""Positions of a reply at which all logits are the same bytes in every way to compute it.

Rows: the ways of ``tests.support.exactness_ways`` and, with log-probabilities in place of logits,
those of whole nodes; columns: a model and the type of its KV. What a level of exactness promises
holds where every position is the same (``docs/exactness.md``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.report import Figure
from bench.subjects import published, subjects
from native.params import ModelParams
from runtime.cli.progress import ProgressLine
from runtime.embedded import path as embedded_path
from tests.support.exactness import Agreement, Lab, Subject, WayNotTaken
from tests.support.exactness_nodes import NODE_WAYS, NodeLab
from tests.support.exactness_ways import WAYS
from tests.support.gguf_files import tiny_llama

NAME = "exactness"
KV_TYPES = ("f16", "q8_0")
N_REPLY, N_REPLY_QUICK = 200, 24
N_PROMPT = 701
PARAMS = ModelParams(n_ctx=4096)
SMALL: dict[str, dict[str, int | str]] = {
    "llama Q4_K": {"qtype": "Q4_K"},
    "llama Q4_0": {"qtype": "Q4_0"},
    "llama Q6_K": {"qtype": "Q6_K"},
    "llama F32": {"qtype": "F32"},
    "mamba Q4_K": {"qtype": "Q4_K", "arch": "mamba"},
    "mamba F32": {"qtype": "F32", "arch": "mamba"},
    "jamba Q4_K": {"qtype": "Q4_K", "arch": "jamba", "n_layer": 4},
    "jamba F32": {"qtype": "F32", "arch": "jamba", "n_layer": 4},
    "gemma3 Q4_K": {"qtype": "Q4_K", "arch": "gemma3", "n_layer": 6},
    "gpt-oss Q6_K": {"qtype": "Q6_K", "arch": "gpt-oss"},
}
"""Random models of 256 numbers a row: enough for the kernels that take rows in groups."""


FEW_WAYS = (
    "cold, n_batch 77",
    "repeat, ram",
    "next turn, ram",
    "333 tokens shared, ram",
    "resumed at 35%, blocks stored",
    "cells of dropped sequences",
    "3 in company",
    "guesses",
    "next turn as cold, ram",
)
"""For large models, each of which takes seconds for every prompt."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A model whose replies have so many positions."""

    subject: Subject
    n_reply: int
    on_a_node: bool = True
    few_ways: bool = False


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Compute every way of every model; a way that could not be taken is left out, with a line."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="exactness-") as name:
        home = Path(name)
        for column in _columns(home, quick=quick, model=model):
            found = _measure(column, home, quick=quick)
            n_exact = sum(_cell(one) == "=" for one in found)
            print(f"{column.subject.name}: {n_exact} of {len(found)} ways exact", flush=True)
            figures += found
    print(f"\n{_matrix(figures)}")
    return figures


def _columns(home: Path, *, quick: bool, model: Path | None) -> Iterator[_Column]:
    """The given model; a small one when quick; else all of them."""
    if model is not None:
        chosen = [_Column(Subject(model.stem, model, PARAMS, reads_text=True), N_REPLY)]
    elif quick:
        chosen = [_Column(_small(home, "llama Q4_K"), N_REPLY_QUICK, on_a_node=False)]
    else:
        chosen = [_Column(_small(home, name), N_REPLY, on_a_node=False) for name in SMALL]
        if embedded_path().exists():
            embedded = Subject("embedded Q8_0", embedded_path(), PARAMS, reads_text=True)
            chosen.insert(0, _Column(embedded, N_REPLY))
        for one in published():
            subject = Subject(one.name, one.path, PARAMS, reads_text=True)
            chosen.append(_Column(subject, N_REPLY, few_ways=True))
        large = subjects(quick=False, model=None)[-1]
        subject = Subject("1.1B Q4_0", large.path, PARAMS)
        chosen.append(_Column(subject, N_REPLY, on_a_node=False, few_ways=True))
    for column in chosen:
        for kv in KV_TYPES[: 1 if quick else None]:
            params = replace(column.subject.params, type_k=kv, type_v=kv)
            subject = replace(column.subject, name=f"{column.subject.name}, {kv} KV", params=params)
            yield replace(column, subject=subject)


def _small(home: Path, name: str) -> Subject:
    path = home / f"{name}.gguf"
    if not path.exists():
        shape: dict[str, int | str] = {"n_embd": 256, "n_ff": 512}
        tiny_llama(path, **(shape | SMALL[name]))
    return Subject(name, path, PARAMS)


def _measure(column: _Column, home: Path, *, quick: bool) -> list[Figure]:
    lab = Lab(column.subject, home, n_prompt=N_PROMPT, n_reply=column.n_reply)
    ways = [way for way in WAYS if lab.can_cut or not way.needs_cut]
    if column.few_ways:
        ways = [way for way in ways if way.name in FEW_WAYS]
    figures: list[Figure] = []
    with ProgressLine(f"{NAME} {column.subject.name}") as progress:
        for number, way in enumerate(ways):
            progress.share(number / len(ways))
            try:
                figures.append(_figure(column, f"{way.level}: {way.name}", way.run(lab)))
            except WayNotTaken as why:
                print(f"{column.subject.name}, {way.name}: not taken, {why}")
    if not column.on_a_node or quick:
        return figures
    with (
        tempfile.TemporaryDirectory(dir=home) as folder,
        NodeLab(lab, Path(folder), column.n_reply) as node,
    ):
        for node_way in NODE_WAYS:
            try:
                name = f"{node_way.level}: {node_way.name}"
                figures.append(_figure(column, name, node_way.run(node)))
            except WayNotTaken as why:
                print(f"{column.subject.name}, {node_way.name}: not taken, {why}")
    return figures


def _figure(column: _Column, metric: str, found: Agreement) -> Figure:
    note = f"of {found.positions}"
    if not found.is_exact:
        note += f"; first at {found.first}, up to {found.largest:.3g}"
    return Figure(NAME, column.subject.name, metric, found.same, "pos", 1, note)


def _matrix(figures: list[Figure]) -> str:
    """Ways by models: ``=`` where every position is the same, else the share that is."""
    columns = list(dict.fromkeys(one.variant for one in figures))
    ways = list(dict.fromkeys(one.metric for one in figures))
    cells = {(one.variant, one.metric): _cell(one) for one in figures}
    lines = [f"{number}: {name}" for number, name in enumerate(columns, start=1)]
    lines.append(f"{'':<52}" + "".join(f"{number:>5}" for number in range(1, len(columns) + 1)))
    for way in ways:
        found = "".join(f"{cells.get((column, way), '-'):>5}" for column in columns)
        lines.append(f"{way:<52}{found}")
    return "\n".join(lines)


def _cell(one: Figure) -> str:
    n_positions = int(one.note.split(";")[0].removeprefix("of "))
    return "=" if one.value == n_positions else f"{int(100 * one.value / n_positions)}%"
