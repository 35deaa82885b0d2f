"""Models that leave memory, from the hold of what comes for them to the end of their process."""

from __future__ import annotations

from typing import Final

from actors import messages as m
from runtime.residency.moves import Leave
from runtime.residency.outside import AGAIN_S, Outside
from runtime.residency.readings import Readings
from runtime.residency.table import ResidencyTable
from supervision.messages import new_ref

DRAIN_S: Final = 10.0
"""For requests that inflight does not know of, as it was being restarted."""


class Leaving:
    """Each in three steps: held by inflight, noted in the table, unloaded by the registry."""

    def __init__(self, outside: Outside, readings: Readings, table: ResidencyTable) -> None:
        self._outside = outside
        self._readings = readings
        self._table = table
        self._leaves: dict[str, Leave] = {}

    def __contains__(self, model: object) -> bool:
        return model in self._leaves

    def names(self) -> set[str]:
        return set(self._leaves)

    def spec(self, model: str) -> m.LoadModel | None:
        """How a model that leaves was loaded; None: it does not leave."""
        leave = self._leaves.get(model)
        return None if leave is None else leave.spec

    def begin(self, model: str, *, if_idle: bool) -> None:
        """Begin to unload it; first nothing new may begin in it."""
        spec, entry = self._readings.wanted.get(model), self._readings.entry(model)
        if spec is None or entry is None or model in self._leaves:
            return  # a caller unloads it
        leave = Leave(new_ref(), spec, if_idle)
        if self._hold(model, leave, entry.incarnation):
            self._leaves[model] = leave
        else:
            self._outside.look_in(AGAIN_S)

    def held(self, held: m.ModelHeld) -> None:
        """Nothing runs in the model, or it is not idle and stays."""
        leave = self._leaves.get(held.model)
        if leave is None or leave.ref != held.ref or leave.is_unloading:
            return
        if not held.is_held:
            del self._leaves[held.model]
            self._outside.look_in(AGAIN_S)
            return
        self._readings.refresh()
        entry, spec = self._readings.entry(held.model), self._readings.wanted.get(held.model)
        if entry is None or spec is None:  # a caller has unloaded it meanwhile
            del self._leaves[held.model]
            self._outside.tell("inflight", m.ReleaseModel(held.model))
            return
        leave.is_unloading = True
        self._table.put_to_sleep(spec, self._readings.last_use(held.model, entry))
        self._unload(held.model, leave)

    def ended(self, ref: str) -> m.LoadModel | None:
        """The registry has unloaded it: its process is gone. None: it is none of ours.

        Inflight holds what has come for it until ``release``.
        """
        for model, leave in self._leaves.items():
            if leave.ref == ref:
                del self._leaves[model]
                return leave.spec
        return None

    def release(self, model: str) -> None:
        """What has come for it meanwhile may be asked for."""
        self._outside.tell("inflight", m.ReleaseModel(model))

    def inflight_is_new(self) -> None:
        """It knows of no hold."""
        for model, leave in self._leaves.items():
            entry = self._readings.entry(model)
            if not leave.is_unloading and entry is not None:
                leave.ref = new_ref()
                self._hold(model, leave, entry.incarnation)

    def registry_is_new(self) -> None:
        """It has the table of what is to be loaded, and does not know who waits for it."""
        for model, leave in self._leaves.items():
            if leave.is_unloading:
                self._unload(model, leave)

    def _hold(self, model: str, leave: Leave, incarnation: int) -> bool:
        hold = m.HoldModel(leave.ref, model, incarnation, leave.if_idle)
        return self._outside.tell("inflight", hold)

    def _unload(self, model: str, leave: Leave) -> None:
        self._outside.tell("registry", m.UnloadModel(leave.ref, model, DRAIN_S))
