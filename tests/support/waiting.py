"""Wait for a condition with a deadline; the only place in the tests that may sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    probe: Callable[[], T], *, within_s: float = 30.0, every_s: float = 0.01, what: str = ""
) -> T:
    """Call ``probe`` until it returns something truthy; fail with ``what`` at the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not true within {within_s} s: {what or probe!r} (last: {value!r})"
            )
        time.sleep(every_s)
