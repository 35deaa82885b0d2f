"""Which models should be loaded: a small table that outlives every actor of the node.

It lies in a memory file that the launcher holds (``slot_file``), as JSON: a list of models.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from actors.messages import LoadModel
from actors.messages.exact import Exact
from actors.messages.markers import Markers
from actors.messages.slot_file import SlotFile
from native.params import ModelParams


class ModelTable:
    """The table, read once and written whole at every change."""

    def __init__(self, path: str) -> None:
        self._file = SlotFile(path)
        wanted = [load_of(plain) for plain in json.loads(self._file.body or b"[]")]
        self._models = {one.model: one for one in wanted}

    def __contains__(self, model: str) -> bool:
        return model in self._models

    def get(self, model: str) -> LoadModel | None:
        """How it should be loaded; None: it should not."""
        return self._models.get(model)

    def all(self) -> tuple[LoadModel, ...]:
        """Every model that should be loaded, in order of the requests."""
        return tuple(self._models.values())

    def add(self, wanted: LoadModel) -> None:
        self._models[wanted.model] = wanted
        self._write()

    def set_adapters(self, model: str, lora: tuple[tuple[str, float], ...]) -> None:
        """Note which adapters the model applies now, for when it is loaded again."""
        wanted = self._models.get(model)
        if wanted is not None:
            params = dataclasses.replace(wanted.params, lora=lora)
            self.add(dataclasses.replace(wanted, params=params))

    def remove(self, model: str) -> None:
        if self._models.pop(model, None) is not None:
            self._write()

    def _write(self) -> None:
        self._file.write(json.dumps([plain_of(one) for one in self._models.values()]).encode())


def plain_of(wanted: LoadModel) -> dict[str, Any]:
    """A model to load as values that JSON can carry."""
    return {
        "model": wanted.model,
        "path": wanted.path,
        "backend": wanted.backend,
        "params": dataclasses.asdict(wanted.params),
        "chat_template": wanted.chat_template,
        "exact": wanted.exact.value,
        "keep_alive_s": wanted.keep_alive_s,
        "pin": wanted.pin,
        "markers": [wanted.markers.thinking, wanted.markers.tool_call],
    }


def load_of(plain: dict[str, Any]) -> LoadModel:
    """The inverse of ``plain_of``."""
    return LoadModel(
        ref="",
        model=plain["model"],
        path=plain["path"],
        backend=plain["backend"],
        params=ModelParams(**plain["params"]),
        chat_template=plain["chat_template"],
        exact=Exact(plain["exact"]),
        keep_alive_s=plain["keep_alive_s"],
        pin=plain["pin"],
        markers=Markers(*(None if one is None else tuple(one) for one in plain["markers"])),
    )
