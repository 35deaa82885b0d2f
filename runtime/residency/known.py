"""The models that can be loaded: of the settings, of the folder, and those that sleep."""

from __future__ import annotations

from dataclasses import replace

from actors import messages as m
from runtime.residency.folder import Offered
from runtime.residency.settings import ResidencyArgs
from runtime.residency.table import ResidencyTable


class KnownModels:
    """By their ids."""

    def __init__(self, args: ResidencyArgs, table: ResidencyTable) -> None:
        """``table`` has those that sleep."""
        self._presets = {one.model: one for one in args.presets}
        self._of_settings = {one.model: one for one in args.known}
        self._defaults = args.defaults or m.LoadModel("", "", "")
        self._table = table
        self.offered: dict[str, Offered] = {}
        """Those of the folder."""

    def __len__(self) -> int:
        return len({*self._of_settings, *self.offered})

    def names(self) -> set[str]:
        return {*self._of_settings, *self.offered, *self._table.asleep}

    def found(self, models: dict[str, Offered]) -> list[str]:
        """The folder has changed; returns the models that are new there, or another file."""
        before, self.offered = self.offered, models
        for model in before.keys() - models.keys():
            self._table.forget(model)
        return [model for model, one in models.items() if before.get(model) != one]

    def of_file(self, one: Offered) -> m.LoadModel:
        """How a model of the folder is loaded."""
        return replace(self._presets.get(one.model, self._defaults), model=one.model, path=one.path)

    def spec(self, model: str) -> m.LoadModel | None:
        """How a model is loaded that is not; None: it is not known."""
        asleep = self._table.get(model)
        if asleep is not None:
            return asleep.spec
        offered = self.offered.get(model)
        return self._of_settings.get(model) if offered is None else self.of_file(offered)
