"""How far a prompt has been read, as llama-server reports it where a request asks for that.

And how far the model is loaded, where it is loaded for the request.
"""

from __future__ import annotations

from collections.abc import Iterator

from runtime.client.results import Event, LoadEvent, PrefillEvent, TokenEvent
from runtime.gateway.wire.pace import Pace

Report = dict[str, int]


class Progress:
    """The reports of one reply: first what was reused, then each step, at last the whole prompt."""

    def __init__(self) -> None:
        self._last: PrefillEvent | None = None
        self._is_over = False

    def reports(self, event: Event) -> Iterator[Report]:
        """Those that an event gives reason for; none of a prompt that needed no step."""
        if self._is_over:
            return
        last = self._last
        match event:
            case PrefillEvent(done, total, reused):
                if last is None and done > reused:
                    yield _report(reused, event)
                yield _report(done, event)
                self._last = event
                self._is_over = done >= total
            case TokenEvent(kind=kind) if kind != "prompt":
                self._is_over = True
                if last is not None:
                    yield _report(last.total, last)


def _report(processed: int, event: PrefillEvent) -> Report:
    return {"total": event.total, "cache": event.reused, "processed": processed}


def load_report(event: LoadEvent) -> dict[str, float]:
    """What is read of the model's file, 0 to 1."""
    return {"share": round(event.share, 3)}


def computed(report: Report) -> int:
    """Prompt tokens of a report that were not reused."""
    return report["processed"] - report["cache"]


def timed(report: Report, pace: Pace | None) -> dict[str, int | float]:
    """A report with the milliseconds since the prompt was begun, where they are known."""
    if pace is None:
        return {**report}
    return {**report, "time_ms": pace.read_ms if computed(report) else 0.0}
