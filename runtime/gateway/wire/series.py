"""Numbers by name and labels: counted by one process, added up over several, shown. Pure.

A counter is one number; a histogram is a number for each of its buckets, one for what is above the
last bound, and the sum of what was observed. So two processes' numbers are added one by one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
Table = dict[str, dict[Labels, list[int | float]]]
"""By the name of a family and the values of its labels."""

OTHER: Final = "other"
"""Value of all labels of what is too much for its family."""
MODEL: Final = "model_name"
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@dataclass(frozen=True, slots=True)
class Family:
    """One metric."""

    name: str
    """Without prefix."""
    kind: Kind
    words: str
    """What it counts."""
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: upper bounds, rising; each is part of its bucket."""
    most: int = 16
    """Series at most; what comes then is counted with ``OTHER`` in every label."""


class Series:
    """What one process has counted since it started."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.version = 0
        """Another number after each change."""

    def add(self, family: Family, labels: Labels = (), n: float = 1) -> None:
        """Count ``n`` more."""
        self._numbers(family, labels)[0] += n

    def observe(self, family: Family, labels: Labels, value: float) -> None:
        """A value of a histogram."""
        numbers = self._numbers(family, labels)
        numbers[bisect_left(family.bounds, value)] += 1
        numbers[-1] += value

    def observed(
        self, family: Family, labels: Labels, buckets: Iterable[int], total: float
    ) -> None:
        """Many values of a histogram, as counts of its buckets, and their sum."""
        numbers = self._numbers(family, labels)
        for at, n in enumerate(buckets):
            numbers[at] += n
        numbers[-1] += total

    def _numbers(self, family: Family, labels: Labels) -> list[int | float]:
        self.version += 1
        found = self.table.setdefault(family.name, {})
        numbers = found.get(labels)
        if numbers is None:
            if len(found) >= family.most:
                labels = (OTHER,) * len(family.labels)
            size = len(family.bounds) + 2 if family.kind == "histogram" else 1
            numbers = found.setdefault(labels, [0] * size)
        return numbers

    def packed(self) -> bytes:
        """All of it, for another process."""
        return packed(self.table)


def packed(table: Table) -> bytes:
    """It as msgpack."""
    return msgspec.msgpack.encode(table)


def unpacked(raw: bytes) -> Table:
    """The reverse; empty bytes are an empty table. msgspec.DecodeError."""
    return msgspec.msgpack.decode(raw, type=Table) if raw else {}


def add_to(total: Table, other: Table) -> None:
    """Add all numbers of ``other`` to ``total``."""
    for name, series in other.items():
        known = total.setdefault(name, {})
        for labels, numbers in series.items():
            mine = known.get(labels)
            if mine is None:
                known[labels] = list(numbers)
            else:
                for at, n in enumerate(numbers):
                    mine[at] += n


# ── text ────────────────────────────────────────────────────────────────────────────────────────


def shown(
    families: Iterable[Family], table: Mapping[str, Mapping[Labels, list[int | float]]], prefix: str
) -> Iterator[str]:
    """Lines of Prometheus text: of every family, also of one with no numbers yet."""
    for family in families:
        name = prefix + family.name
        yield f"# HELP {name} {family.words}"
        yield f"# TYPE {name} {family.kind}"
        found = table.get(family.name) or {}
        if not found and not family.labels and family.kind == "counter":
            yield f"{name} 0"
        for labels, numbers in found.items():
            pairs = ",".join(
                f'{label}="{value.translate(_ESCAPES)}"'
                for label, value in zip(family.labels, labels, strict=False)
            )
            if family.kind == "histogram":
                yield from _buckets(name, pairs, family.bounds, numbers)
            else:
                yield (
                    f"{name}{{{pairs}}} {number(numbers[0])}"
                    if pairs
                    else (f"{name} {number(numbers[0])}")
                )


def _buckets(
    name: str, pairs: str, bounds: tuple[float, ...], numbers: list[int | float]
) -> Iterator[str]:
    before = f"{pairs}," if pairs else ""
    count: int | float = 0
    for at, bound in enumerate(bounds):
        count += numbers[at]
        yield f'{name}_bucket{{{before}le="{bound:g}"}} {number(count)}'
    count += numbers[len(bounds)]
    yield f'{name}_bucket{{{before}le="+Inf"}} {number(count)}'
    tail = f"{{{pairs}}}" if pairs else ""
    yield f"{name}_sum{tail} {number(numbers[-1])}"
    yield f"{name}_count{tail} {number(count)}"


def number(value: float) -> str:
    """As Prometheus reads it, exactly."""
    return str(value) if isinstance(value, int) else repr(float(value))
