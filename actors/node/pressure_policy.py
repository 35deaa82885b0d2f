"""When memory is short, and how many bytes of cache to evict for it. No clock, no process.

Two watermarks, shares of the total. At or above ``high`` relief begins; it asks for exactly what
lies above ``low``, until usage is at ``low`` or nothing more can be evicted. In between, nothing
starts: usage that varies about one watermark changes nothing (hysteresis).

After each eviction the next reading is waited for, for ``settle_s``: freed memory shows up with a
delay, and the same overshoot must not be evicted twice. For the same reason no reading of that time
begins a relief.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from actors.messages.pressure_settings import PressureSettings


@dataclass(frozen=True, slots=True)
class Reading:
    """What a source measured: bytes in use of ``total``, and where."""

    used: int
    total: int
    stalled: float = 0.0
    """Percent of recent time in which a process waited for memory."""
    where: str = ""

    @property
    def share(self) -> float:
        return self.used / self.total if self.total > 0 else 0.0


class Verdict(enum.Enum):
    """What a reading led to."""

    BELOW = "below_watermark"
    WAITING = "waiting_for_effect"
    EVICT = "evict"
    TOO_LITTLE = "overshoot_too_small"


@dataclass(frozen=True, slots=True)
class Decision:
    """``nbytes`` to evict; 0 unless the verdict is EVICT."""

    verdict: Verdict
    nbytes: int = 0


@dataclass(slots=True)
class PressureCore:
    """The state between two readings. Times are seconds of one clock that never runs backwards."""

    settings: PressureSettings = field(default_factory=PressureSettings)
    is_relieving: bool = False
    _in_flight: bool = False
    _not_before: float = float("-inf")

    def observe(self, now: float, reading: Reading) -> Decision:
        """What to do about this reading. EVICT must be followed by one ``evicted``."""
        given = self.settings
        if reading.total <= 0:
            self.is_relieving = False
            return Decision(Verdict.BELOW)
        overshoot = reading.used - int(given.low * reading.total)
        is_stalled = 0.0 < given.stall_high <= reading.stalled
        if overshoot <= 0:
            self.is_relieving = False
            return Decision(Verdict.BELOW)
        begins = reading.used >= given.high * reading.total or is_stalled
        if not (self.is_relieving or begins):
            return Decision(Verdict.BELOW)
        if self._in_flight or now < self._not_before:
            return Decision(Verdict.WAITING)  # what this reading shows may be over: nothing begins
        self.is_relieving = True
        if overshoot < max(1, given.min_evict_bytes):
            self.is_relieving = False
            return Decision(Verdict.TOO_LITTLE)
        self._in_flight = True
        return Decision(Verdict.EVICT, overshoot)

    def evicted(self, now: float, nbytes: int) -> None:
        """The eviction ended (or was lost, with 0). Without any effect, relief ends too:

        it starts again only at the high watermark, and so does not ask an empty cache repeatedly.
        """
        self._in_flight = False
        self._not_before = now + settle_s(self.settings)
        if nbytes <= 0:
            self.is_relieving = False


def settle_s(settings: PressureSettings) -> float:
    """How long an eviction may take to show: the kernel's counters are seconds old at worst."""
    return max(settings.interval_s, 1.0)
