"""One line on standard error that says how far something is; nothing at all in a pipe."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Self

SHOW_AFTER_S: Final = 0.4  # what is faster needs no line
REDRAW_EVERY_S: Final = 0.1
BAR_WIDTH: Final = 24


class ProgressLine:
    """Use as a context manager; call ``share`` with 0 … 1 as often as you like."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._enabled = sys.stderr.isatty()
        self._started = self._drawn = time.monotonic()
        self._visible = False

    def share(self, share: float) -> None:
        now = time.monotonic()
        too_soon = now - self._started < SHOW_AFTER_S or now - self._drawn < REDRAW_EVERY_S
        if not self._enabled or too_soon:
            return
        self._drawn = now
        share = min(1.0, max(0.0, share))
        filled = round(share * BAR_WIDTH)
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        left = ""
        if share > 0.02:  # before that the estimate is noise
            left = f"  about {(now - self._started) * (1 - share) / share:.0f} s left"
        sys.stderr.write(f"\r\x1b[K{self._label} {bar} {100 * share:3.0f} %{left}")
        sys.stderr.flush()
        self._visible = True

    def clear(self) -> None:
        """Take the line away, before something else is printed."""
        if self._visible:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._visible = False
        self._enabled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
