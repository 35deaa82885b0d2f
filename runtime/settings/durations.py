"""Durations as users write them: seconds, or texts such as ``5m`` and ``1h30m``."""

from __future__ import annotations

import math
import re
from typing import Final

from runtime.errors import ConfigError

_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
FOREVER: Final = -1.0


def parse_duration(value: object, key: str) -> float | None:
    """Seconds; below 0: without end; None as it is. Raises ConfigError."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return FOREVER if value < 0 else float(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return parse_duration(float(text), key)
    if text.startswith("-") and re.fullmatch(rf"-(?:{_PART.pattern})+", text):
        return FOREVER
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise ConfigError(key, f"{value!r} is not a duration; write for instance 300, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
