"""Our numbers by vLLM's names, with its labels and buckets: for dashboards that are made for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from runtime.gateway.wire.families import (
    ENGINE,
    REPLY_SIZE,
    VLLM,
    VLLM_BOUNDS,
    VLLM_PREFIX,
)
from runtime.gateway.wire.series import Family, Labels, Table, shown

_FIRST_ENGINE: Final = "0"
_LONGEST: Final = replace(REPLY_SIZE, name="request_max_num_generation_tokens")
"""vLLM's is of all replies to a request; here each reply counts."""


def vllm_lines(table: Mapping[str, Mapping[Labels, list[int | float]]]) -> Iterator[str]:
    """Lines of Prometheus text."""
    families = []
    found: Table = {}
    for one in (*VLLM, _LONGEST):
        source = REPLY_SIZE if one is _LONGEST else one
        bounds = VLLM_BOUNDS.get(source.name, source.bounds)
        families.append(replace(one, labels=(ENGINE, *one.labels), bounds=bounds))
        found[one.name] = {
            (_FIRST_ENGINE, *labels): _coarse(source, bounds, numbers)
            for labels, numbers in table.get(source.name, {}).items()
        }
    yield from shown(families, found, VLLM_PREFIX)


def _coarse(
    family: Family, bounds: tuple[float, ...], numbers: list[int | float]
) -> list[int | float]:
    """A histogram with some of its bounds."""
    if bounds == family.bounds:
        return numbers
    kept = set(bounds)
    found: list[int | float] = []
    n: int | float = 0
    for at, bound in enumerate(family.bounds):
        n += numbers[at]
        if bound in kept:
            found.append(n)
            n = 0
    return [*found, n + numbers[len(family.bounds)], numbers[-1]]
