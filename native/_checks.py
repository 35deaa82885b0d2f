"""Checks of one value each. A failure is an ``InvalidParam`` with the name and what is allowed."""

from __future__ import annotations

import math

from native.errors import InvalidParam


def whole(name: str, value: object, low: int, high: int) -> None:
    """Require a whole number from ``low`` to ``high``."""
    # bool is an int to isinstance, but True is no token count.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidParam(name, value, f"a whole number from {low} to {high}")


def real(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """Require a finite number from ``low`` to ``high``; ``above``: and not ``low`` itself."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    ok = is_number and (isinstance(value, int) or math.isfinite(value))  # type: ignore[arg-type]
    if not ok or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        edge = "above" if above else "from"
        raise InvalidParam(name, value, f"a number {edge} {low:g} to {high:g}")


def flag(name: str, value: object) -> None:
    """Require True or False."""
    if not isinstance(value, bool):
        raise InvalidParam(name, value, "True or False")


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Require one of these texts."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidParam(name, value, "one of " + ", ".join(allowed))


def path(name: str, value: object) -> None:
    """Require a text that can be a path."""
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 4096:
        raise InvalidParam(name, value, "a path of 1 to 4096 characters without NUL")
