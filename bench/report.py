"""Figures: one per line of the printed table and of the CSV file."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from bench.stats import Summary

COLUMNS = ("date", "commit", "benchmark", "variant", "metric", "value", "unit", "runs", "note")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value: the median of ``runs``."""

    benchmark: str
    variant: str
    metric: str
    value: float
    unit: str
    runs: int
    note: str = ""


def figure(
    benchmark: str, variant: str, metric: str, unit: str, summary: Summary, note: str = ""
) -> Figure:
    """The median, with the range and further remarks in the note."""
    said = "; ".join(part for part in (summary.spread, note) if part)
    return Figure(benchmark, variant, metric, summary.median, unit, summary.runs, said)


def table(figures: Sequence[Figure]) -> str:
    """Aligned lines, one heading per variant."""
    lines: list[str] = []
    for variant, group in itertools.groupby(figures, key=lambda one: one.variant):
        lines.append(f"  {variant}")
        for one in group:
            runs = f"{one.runs} run{'s' if one.runs > 1 else ''}"
            note = f"  {one.note}" if one.note else ""
            lines.append(f"    {one.metric:<34}{one.value:>12.4g} {one.unit:<6} {runs:>8}{note}")
    return "\n".join(lines)


def append_csv(path: Path, date: str, commit: str, figures: Iterable[Figure]) -> None:
    """Add rows; the file gets its heading when it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for one in figures:
            benchmark, variant, metric, value, unit, runs, note = astuple(one)
            writer.writerow(
                (date, commit, benchmark, variant, metric, f"{value:.6g}", unit, runs, note)
            )
