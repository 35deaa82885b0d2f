"""The memory-pressure scheduler: reads a source, has cache_meta evict rows. Off by default.

Owns: its settings, which a restart takes back to the configured ones. Answers: ``SetPressure``,
``CheckPressure``. Asks: cache_meta. A process of its own because a source may block (a vendor's
library, a user's function) and must never delay the cache. Decisions are in
``node.pressure_policy``; a source that fails or hangs costs one line in the log, until it works
again.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.pressure_settings import BadPressureSetting, PressureSettings, settings_from
from actors.node.pressure_policy import (
    PressureCore,
    Reading,
    Verdict,
)
from actors.node.pressure_sources import Sampler
from supervision import EngineWorker
from supervision.messages import new_ref

if TYPE_CHECKING:
    from supervision import Address

EVICTION_TIMEOUT_S = 10.0  # cache_meta answers in milliseconds; past this it was restarted


@dataclass(frozen=True, slots=True)
class _Tick:
    """Timer: read the source, unless the settings have changed since."""

    round: int


@dataclass(frozen=True, slots=True)
class _Overdue:
    """Timer: a reading should be there."""

    number: int


@dataclass(frozen=True, slots=True)
class _Lost:
    """Timer: cache_meta should have answered."""

    ref: str


@dataclass(slots=True)
class _Eviction:
    """What was asked of cache_meta, and what came of it so far."""

    ref: str
    wanted: int
    rows: int = 0
    returned: int = 0


class PressureSchedulerActor(EngineWorker):
    """Carries readings to the core and its decisions to cache_meta."""

    def init(self, args: object) -> None:
        settings = PressureSettings() if args is None else args
        if not isinstance(settings, PressureSettings):
            raise TypeError(f"the scheduler is started with PressureSettings, not {args!r}")
        self._core = PressureCore(settings)
        self._sampler: Sampler | None = None
        self._number = 0
        self._asked: int | None = None  # the reading that is under way
        self._hangs = False
        self._round = 0
        self._eviction: _Eviction | None = None
        self._checks: list[tuple[Address, str]] = []
        self._reading: Reading | None = None
        self._read_at = 0.0
        self._trouble: str | None = None
        self._last_action: dict[str, object] | None = None
        self._counts = dict.fromkeys(("readings", "failures", "evictions", "rows", "returned"), 0)
        self._start_round()

    @property
    def _settings(self) -> PressureSettings:
        return self._core.settings

    # ── readings ─────────────────────────────────────────────────────────────────────────────

    def _start_round(self) -> None:
        self._round += 1
        if self._settings.enabled:
            self.after(self._settings.interval_s, _Tick(self._round))

    def handle_timer(self, payload: object) -> None:
        match payload:
            case _Tick(number) if number == self._round:
                self._ask()
                self.after(self._settings.interval_s, payload)
            case _Overdue(number) if number == self._asked and not self._hangs:
                self._hangs = True
                self._failed(f"no answer within {self._settings.timeout_s:g} s")
            case _Lost(ref) if self._eviction is not None and ref == self._eviction.ref:
                self._eviction_ended()
            case _:
                pass  # of a round, a reading or an eviction that is over

    def _ask(self) -> None:
        """At most one reading is under way; a source that hangs is not asked again meanwhile."""
        if self._asked is not None:
            return
        name = self._settings.source
        if self._sampler is None or self._sampler.name != name:
            self._drop_sampler()
            self._sampler = Sampler(name, self.post)
        self._number += 1
        self._asked = self._number
        self._sampler.ask(self._number)
        self.after(self._settings.timeout_s, _Overdue(self._number))

    def _drop_sampler(self) -> None:
        """Drop a source; one that hangs keeps its thread, and its answer is ignored."""
        if self._sampler is not None:
            self._sampler.close()
        self._sampler, self._asked, self._hangs = None, None, False

    def handle_events(self, events: list[object]) -> None:
        for event in events:
            match event:
                case (sampler, int(number), Reading() | str() as answer):
                    if sampler is self._sampler and number == self._asked:
                        self._answered(answer)
                case _:
                    raise TypeError(f"a sampler posted {event!r}: a bug in it")

    def _answered(self, answer: Reading | str) -> None:
        is_late, self._hangs, self._asked = self._hangs, False, None
        if isinstance(answer, str):
            self._failed(answer)
        elif not is_late:  # it may describe the past
            self._observe(answer)

    def _failed(self, why: str) -> None:
        self._counts["failures"] += 1
        if self._trouble is None:
            self.log.warning(
                "pressure source %s failed: %s; nothing is evicted by pressure until it answers",
                self._settings.source,
                why,
            )
        self._trouble = why
        self._answer_checks("source_failed")

    def _observe(self, reading: Reading) -> None:
        self._counts["readings"] += 1
        self._trouble = None
        self._reading, self._read_at = reading, time.monotonic()
        if not self._settings.enabled:
            self._answer_checks("disabled")
            return
        decision = self._core.observe(self._read_at, reading)
        if decision.verdict is Verdict.EVICT:
            self._evict(decision.nbytes)
        elif self._eviction is None:
            self._answer_checks(decision.verdict.value)

    # ── evictions ────────────────────────────────────────────────────────────────────────────

    def _evict(self, nbytes: int) -> None:
        self._counts["evictions"] += 1
        self._eviction = _Eviction("", nbytes)
        self._evict_more()

    def _evict_more(self) -> None:
        eviction = self._eviction
        if eviction is None:
            return
        eviction.ref = new_ref()
        left = eviction.wanted - eviction.returned
        ask = m.EvictBytes(eviction.ref, left, self._settings.tiers)
        if self.tell("cache_meta", ask):
            self.after(EVICTION_TIMEOUT_S, _Lost(eviction.ref))
        else:
            self._eviction_ended()

    def _evicted(self, answer: m.BytesEvicted) -> None:
        eviction = self._eviction
        if eviction is None or answer.ref != eviction.ref:
            return
        eviction.rows += answer.rows
        eviction.returned += answer.returned
        if answer.more and eviction.returned < eviction.wanted and self._settings.enabled:
            self._evict_more()
        else:
            self._eviction_ended()

    def _eviction_ended(self) -> None:
        eviction, self._eviction = self._eviction, None
        if eviction is None:
            return
        self._core.evicted(time.monotonic(), eviction.returned)
        self._counts["rows"] += eviction.rows
        self._counts["returned"] += eviction.returned
        self._last_action = {
            "at_unix_s": round(time.time(), 3),
            "wanted_bytes": eviction.wanted,
            "rows": eviction.rows,
            "returned_bytes": eviction.returned,
        }
        outcome = "evicted" if eviction.rows or eviction.returned else "nothing_to_evict"
        self._answer_checks(outcome, eviction)

    # ── requests ─────────────────────────────────────────────────────────────────────────────

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case m.SetPressure():
                self._set(message, sender)
            case m.CheckPressure(ref):
                self._checks.append((sender, ref))
                if self._hangs:
                    self._answer_checks("source_failed")
                else:
                    self._ask()
            case m.BytesEvicted():
                self._evicted(message)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def _set(self, wish: m.SetPressure, sender: Address) -> None:
        given = {f.name: getattr(wish, f.name) for f in dataclasses.fields(wish) if f.name != "ref"}
        try:
            settings = settings_from(
                {key: value for key, value in given.items() if value is not None}, self._settings
            )
        except BadPressureSetting as refused:
            self.tell(sender, m.PressureRefused(wish.ref, refused.key, refused.detail))
            return
        if settings.source != self._settings.source:
            self._drop_sampler()
            self._trouble = None
        self._core.settings = settings
        self._start_round()
        if self._checks and self._eviction is None:
            self._ask()
        self.tell(sender, m.PressureSet(wish.ref, settings))

    def _answer_checks(self, outcome: str, eviction: _Eviction | None = None) -> None:
        checks, self._checks = self._checks, []
        reading = self._reading or Reading(0, 0)
        rows, returned = (eviction.rows, eviction.returned) if eviction else (0, 0)
        for address, ref in checks:
            self.tell(
                address,
                m.PressureChecked(ref, outcome, reading.used, reading.total, rows, returned),
            )

    def status(self) -> dict[str, object]:
        reading = self._reading
        return {
            "enabled": self._settings.enabled,
            "pressure_source": self._settings.source,
            "settings": dataclasses.asdict(self._settings),
            "relieving": self._core.is_relieving,
            "last_reading": reading
            and {
                "used_bytes": reading.used,
                "total_bytes": reading.total,
                "share": round(reading.share, 4),
                "stalled_percent": reading.stalled,
                "where": reading.where,
                "age_s": round(time.monotonic() - self._read_at, 3),
            },
            "last_action": self._last_action,
            "trouble": self._trouble,
            **self._counts,
        }
