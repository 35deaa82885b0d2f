"""How fast one reply comes, while it comes, as llama-server shows it where a request asks for that.

The figures at its end are the model's own; these are by the clock of the gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.client.results import Event, PrefillEvent, TokenEvent
from runtime.gateway.wire.report import timing_facts

Clock = Callable[[], float]
"""Seconds that only grow."""


class Pace:
    """The times of one reply."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: float | None = None
        """When it was known how much of the prompt is reused: nothing was computed before."""
        self._read_s = 0.0
        self._first: float | None = None
        self._decoded_s = 0.0
        self._n_reused = self._n_new = self._n_read = self._n_tokens = 0

    def note(self, event: Event) -> None:
        """Something has come."""
        match event:
            case PrefillEvent(done, total, reused):
                now = self._clock()
                self._began = now if self._began is None else self._began
                self._n_reused, self._n_read = reused, done - reused
                self._n_new = total - reused
                self._read_s = now - self._began
            case TokenEvent(kind=kind, tokens=tokens) if kind != "prompt" and tokens:
                now = self._clock()
                if self._first is None:
                    self._first = now
                    self._n_read = self._n_new
                    self._read_s = 0.0 if self._began is None else now - self._began
                self._n_tokens += len(tokens)
                self._decoded_s = now - self._first
            case _:
                pass

    @property
    def read_ms(self) -> float:
        """Since the prompt was begun, as far as it is read."""
        return round(1e3 * self._read_s, 3)

    def timings(self, n_read: int | None = None) -> dict[str, Any]:
        """As at its end; ``n_read``: prompt tokens that were computed, if not all so far."""
        n_prompt = self._n_read if n_read is None else n_read
        read_ms = self.read_ms if n_prompt else 0.0
        decoded_ms = round(1e3 * self._decoded_s, 3)
        return timing_facts(self._n_reused, n_prompt, read_ms, self._n_tokens, decoded_ms)
