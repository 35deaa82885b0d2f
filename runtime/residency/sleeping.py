"""How long models stay loaded without requests, and which of them are to sleep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from runtime.residency.policy import Idle, Resident, expired
from runtime.residency.readings import Readings
from runtime.residency.table import ResidencyTable

SOONEST_S: Final = 0.25
"""Between two looks at models that have requests."""
ENDLESS_S: Final = 1e9
"""So long, or longer, is without end."""


class Sleeping:
    """A caller's number counts before that of the model, and that before the node's."""

    def __init__(
        self, keep_alive_s: float | None, readings: Readings, table: ResidencyTable
    ) -> None:
        """``keep_alive_s``: of models that name no other; ``table`` has what callers have set."""
        self._default_s = keep_alive_s
        self._readings = readings
        self._table = table

    def keep_alive_s(self, model: str) -> float | None:
        """None: without end."""
        spec = self._readings.spec(model)
        if spec is not None and spec.pin:
            return None
        found = self._table.keep_alive(model)
        if found is None and spec is not None:
            found = spec.keep_alive_s
        if found is None:
            found = self._default_s
        return None if found is None or not 0 <= found <= ENDLESS_S else found

    def set(self, model: str, seconds: float | None) -> None:
        """From now on, until the model leaves; None: as it was."""
        self._table.set_keep_alive(model, seconds)

    def keeps_some_alive(self) -> bool:
        """Whether a model that is loaded is to sleep at some time."""
        return any(self.keep_alive_s(model) is not None for model, _ in self._readings.models())

    def due(self, residents: Iterable[Resident], now: float) -> tuple[list[str], float | None]:
        """Those whose time is over, and seconds until there may be more; None: none will."""
        idle: list[Idle] = []
        waits: list[float] = []
        for one in residents:
            keep_s = self.keep_alive_s(one.model)
            if keep_s is None or one.is_loading or one.is_leaving:
                continue
            if one.is_busy:
                waits.append(max(keep_s, SOONEST_S))
            else:
                idle.append(Idle(one.model, one.last_use, keep_s))
        found, next_at = expired(idle, now)
        if next_at is not None:
            waits.append(next_at - now)
        return found, min(waits, default=None)
