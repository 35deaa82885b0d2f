"""The settings of the memory-pressure scheduler, and their check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

SOURCES: Final = ("noop", "system", "nvidia")
MIN_INTERVAL_S: Final = 0.05


class BadPressureSetting(ValueError):
    """A setting of the pressure scheduler is out of range; ``key`` names it."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"pressure.{key}: {detail}")
        self.key = key
        self.detail = detail


@dataclass(frozen=True, slots=True)
class PressureSettings:
    """The ``[pressure]`` table of the configuration. Shares are of a source's total."""

    enabled: bool = False
    source: str = "system"
    """``noop``, ``system``, ``nvidia``, or ``package.module:callable`` of your own."""
    high: float = 0.85
    low: float = 0.75
    stall_high: float = 10.0
    """Percent of the last 10 s in which a process waited for memory (PSI); 0 ignores it."""
    interval_s: float = 5.0
    timeout_s: float = 2.0
    """A source that has not answered by then has failed."""
    min_evict_bytes: int = 1 << 20
    """A smaller overshoot is not worth a row."""
    tiers: tuple[str, ...] = ("ram", "ram_file")
    """Where to evict, in this order. Tiers that this node has not are skipped."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            detail = f"0 <= low < high <= 1 must hold, not low {self.low}, high {self.high}"
            raise BadPressureSetting("high", detail)
        for key, least in (("interval_s", MIN_INTERVAL_S), ("timeout_s", MIN_INTERVAL_S)):
            if not least <= getattr(self, key) <= 3600.0:
                raise BadPressureSetting(key, f"{getattr(self, key)} is not {least} to 3600 s")
        if not 0.0 <= self.stall_high <= 100.0:
            raise BadPressureSetting("stall_high", f"{self.stall_high} is not a percentage")
        if self.min_evict_bytes < 0:
            raise BadPressureSetting("min_evict_bytes", f"{self.min_evict_bytes} is negative")
        if self.source not in SOURCES and not _is_callable_name(self.source):
            raise BadPressureSetting(
                "source",
                f"{self.source!r} is not one of {', '.join(SOURCES)}, nor package.module:callable",
            )
        if not self.tiers:
            raise BadPressureSetting("tiers", "name at least one tier, for instance ram")


def _is_callable_name(name: str) -> bool:
    module, colon, attribute = name.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def settings_from(
    values: Mapping[str, Any], base: PressureSettings | None = None
) -> PressureSettings:
    """``base`` (default: the defaults) with plain values, as TOML gives them; checked."""
    base = base or PressureSettings()
    known = {one.name: one for one in fields(PressureSettings)}
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise BadPressureSetting(key, f"unknown; known are {', '.join(sorted(known))}")
        changed[key] = _as_kind_of(getattr(base, key), key, value)
    return replace(base, **changed)


def _as_kind_of(old: object, key: str, value: Any) -> object:
    """``value`` in the type of the setting it replaces."""
    if isinstance(old, tuple) and isinstance(value, list | tuple):
        if all(isinstance(one, str) for one in value):
            return tuple(value)
    elif isinstance(old, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(old) is type(value):
        return value
    raise BadPressureSetting(key, f"{value!r} is not of the right kind; it is now {old!r}")
