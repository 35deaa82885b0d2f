"""Sizes as texts: ``4GiB``, or a share of what is free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from runtime.errors import ConfigError
from supervision.frozen import frozen

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@frozen
class Share:
    """A budget as a part of what is free when the node starts."""

    percent: float

    def of(self, free_bytes: int) -> int:
        return int(free_bytes * self.percent / 100)

    def __str__(self) -> str:
        return f"{self.percent:g}%"


Budget: TypeAlias = int | Share


def parse_size(text: object, key: str = "size") -> int:
    """``4GiB``, ``512M``, ``1.5g`` or plain bytes. Units are powers of 1,024."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str):
        raise ConfigError(key, f"{text!r} is not a size; write for instance 512MiB or 4GiB")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise ConfigError(key, f"{text!r} is not a size; write for instance 512MiB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_budget(text: object, key: str) -> Budget:
    """A size, or a share of what is free: ``25%``. A share of 0 turns the tier off like 0 does."""
    if isinstance(text, Share):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text) if isinstance(text, str) else None
    if match is None:
        return parse_size(text, key)
    percent = float(match[1])
    if percent > 100:
        raise ConfigError(key, f"{text!r} is more than there is; write at most 100%")
    return Share(percent) if percent else 0


def disk_settings(texts: Sequence[str]) -> dict[str, object]:
    """What ``--cache-disk`` was given: one SIZE for ``cache_dir``, or any number of PATH=SIZE."""
    pairs = [text.rpartition("=") for text in texts]
    if all(separator and path for path, separator, _ in pairs):
        if len({path for path, _, _ in pairs}) < len(pairs):
            raise ConfigError("cache_disks", "names one directory twice; join the two budgets")
        return {"cache_disks": {path: size for path, _, size in pairs}}
    if len(texts) == 1 and not pairs[0][1]:
        return {"cache_disk": texts[0]}
    raise ConfigError(
        "cache_disk", f"{' '.join(texts)!r} is neither one SIZE nor PATH=SIZE for each disk"
    )


def format_size(n_bytes: float) -> str:
    """A size as text, for instance ``4.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:  # the step between the units
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def plain_budget(budget: Budget | None) -> int | str | None:
    """The inverse of ``parse_budget``, as JSON and TOML can carry it."""
    return str(budget) if isinstance(budget, Share) else budget
