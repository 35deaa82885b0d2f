"""Which models should be loaded: a small table that outlives every actor of the node.

It lies in a memory file that the launcher holds, so it survives the registry, the models supervisor
and a restart of the whole tree, and dies with the node. Two slots are written in turn, each with a
generation and a checksum: a writer killed in the middle costs its own change, never the table.

slot, little-endian: u64 generation, u32 length, 32 bytes BLAKE3 of (generation, length, body), then
the body: JSON, a list of models.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from typing import Any, Final

from blake3 import blake3

from actors.messages import LoadModel
from actors.messages.exact import Exact
from actors.messages.markers import Markers
from native.params import ModelParams

SLOT_BYTES: Final = 16 << 20  # thousands of models, or hundreds with chat templates of their own
_HEAD: Final = struct.Struct("<QI32s")
_COVERED: Final = struct.Struct("<QI")


class ModelTable:
    """The table, read once and written whole at every change."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._generation = 0
        self._models: dict[str, LoadModel] = {}
        for slot in (0, 1):
            generation, models = self._read(slot)
            if generation > self._generation:
                self._generation, self._models = generation, models

    def __contains__(self, model: str) -> bool:
        return model in self._models

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
        self._generation += 1
        body = json.dumps([_plain(wanted) for wanted in self._models.values()]).encode()
        if len(body) > SLOT_BYTES - _HEAD.size:
            raise ValueError(f"{len(self._models)} models do not fit the table of models to load")
        covered = _COVERED.pack(self._generation, len(body))
        record = covered + blake3(covered + body).digest() + body
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, record, self._generation % 2 * SLOT_BYTES)
        finally:
            os.close(fd)

    def _read(self, slot: int) -> tuple[int, dict[str, LoadModel]]:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(fd, _HEAD.size, slot * SLOT_BYTES)
            if len(head) < _HEAD.size:
                return 0, {}
            generation, length, digest = _HEAD.unpack(head)
            body = os.pread(fd, min(length, SLOT_BYTES), slot * SLOT_BYTES + _HEAD.size)
        finally:
            os.close(fd)
        if blake3(_COVERED.pack(generation, length) + body).digest() != digest:
            return 0, {}  # torn: the other slot holds the table as it was before
        wanted = [_wanted(plain) for plain in json.loads(body)]
        return generation, {one.model: one for one in wanted}


def _plain(wanted: LoadModel) -> dict[str, Any]:
    return {
        "model": wanted.model,
        "path": wanted.path,
        "backend": wanted.backend,
        "params": dataclasses.asdict(wanted.params),
        "chat_template": wanted.chat_template,
        "exact": wanted.exact.value,
        "markers": [wanted.markers.thinking, wanted.markers.tool_call],
    }


def _wanted(plain: dict[str, Any]) -> LoadModel:
    return LoadModel(
        ref="",
        model=plain["model"],
        path=plain["path"],
        backend=plain["backend"],
        params=ModelParams(**plain["params"]),
        chat_template=plain["chat_template"],
        exact=Exact(plain["exact"]),
        markers=Markers(*(None if one is None else tuple(one) for one in plain["markers"])),
    )
