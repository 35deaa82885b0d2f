"""Models as they are listed for those who ask: their states, memory, and when they will sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from actors import messages as m
from runtime.residency.leaving import Leaving
from runtime.residency.listing import page, state_of
from runtime.residency.loading import Loading
from runtime.residency.memory import Taken, file_bytes
from runtime.residency.outside import Outside
from runtime.residency.readings import Readings
from runtime.residency.sleeping import Sleeping
from runtime.residency.table import ResidencyTable

if TYPE_CHECKING:
    from supervision import Address, Entry


class Lists:
    """Those who wait for a list, and what they get; reads all other parts and changes none."""

    def __init__(
        self,
        outside: Outside,
        readings: Readings,
        table: ResidencyTable,
        loading: Loading,
        leaving: Leaving,
        sleeping: Sleeping,
    ) -> None:
        self._outside = outside
        self._readings = readings
        self._table = table
        self._loading = loading
        self._leaving = leaving
        self._sleeping = sleeping
        self._waiting: list[tuple[Address, m.ListModels]] = []

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def ask(self, asked: m.ListModels, sender: Address) -> None:
        """Answered with the next readings of use."""
        self._waiting.append((sender, asked))

    def answer(self) -> None:
        """To all who wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        readings = self._readings
        readings.refresh()
        loaded = (model for model, _ in readings.models())
        names = {*readings.known.names(), *self._loading.loads(), *loaded}
        taken = readings.taken()
        models = [self._shown(name, taken.get(name)) for name in sorted(names)]
        for target, asked in waiting:
            self._outside.tell(target, page(models, asked))

    def _shown(self, model: str, taken: Taken | None) -> m.KnownModel:
        readings = self._readings
        entry, asleep = readings.entry(model), self._table.get(model)
        spec = readings.spec(model) or m.LoadModel("", model, "")
        state, failure = state_of(
            entry,
            is_coming=model in self._loading,
            is_leaving=model in self._leaving,
            failure=self._loading.failures.detail(model),
            is_asleep=asleep is not None,
        )
        unix = time.time() - time.monotonic()
        last, ends_at = self._times(model, entry)
        measured = taken or readings.measured(spec)
        offered = readings.known.offered.get(model)
        return m.KnownModel(
            model,
            state,
            spec.path,
            file_bytes(spec.path) if offered is None else offered.n_bytes,
            None if measured is None else measured.total,
            spec.pin,
            self._sleeping.keep_alive_s(model),
            None if last is None else unix + last,
            None if ends_at is None else unix + ends_at,
            failure[:512],
        )

    def _times(self, model: str, entry: Entry | None) -> tuple[float | None, float | None]:
        """Monotonic seconds of its last use, and of its sleep where that is to come."""
        if entry is None or not entry.is_up:
            asleep = self._table.get(model)
            return None if asleep is None else asleep.last_use, None
        last = self._readings.last_use(model, entry)
        keep_s = self._sleeping.keep_alive_s(model)
        if keep_s is None:
            return last, None
        begins = time.monotonic() if self._readings.n_requests(model) else last
        return last, begins + keep_s
