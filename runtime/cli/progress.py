"""A progress bar on standard error; nothing at all in a pipe."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress

SHOW_AFTER_S: Final = 0.4  # after the first report: what is faster needs no bar, nor rich


class ProgressLine:
    """Use as a context manager; call ``share`` with 0 … 1 as often as you like."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._enabled = sys.stderr.isatty()
        self._began: float | None = None
        self._bar: Progress | None = None

    def share(self, share: float) -> None:
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        if not self._enabled or now - self._began < SHOW_AFTER_S:
            return
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task(self._label, total=1.0)
        self._bar.update(self._bar.task_ids[0], completed=min(1.0, max(0.0, share)))

    def clear(self) -> None:
        """Remove the bar, before something else is printed; it does not come back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
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


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        TaskProgressColumn(),
        TimeLeft(compact=True),
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
