"""LoRA adapters of the stub backend, as strict as the real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from native.adapters import LoadedAdapter, adapters_identity
from native.errors import AdapterRefused, InvalidParam, ModelNotFound

MAGIC = b"stub adapter"
"""A file that begins with this is an adapter of every stub."""


class StubAdapters:
    """Adapters of one stub; those applied become part of every cell's content (``salt``)."""

    def __init__(self) -> None:
        self._known: dict[int, LoadedAdapter] = {}
        self._next = 1

    @property
    def all(self) -> tuple[LoadedAdapter, ...]:
        return tuple(self._known.values())

    @property
    def salt(self) -> bytes:
        return adapters_identity(self.all).encode()

    def load(self, path: str | Path, scale: float) -> LoadedAdapter:
        try:
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise ModelNotFound(path, f"cannot be read: {error}") from error
        if not data.startswith(MAGIC):
            raise AdapterRefused(path, f"it does not begin with {MAGIC!r}")
        known = LoadedAdapter(self._next, str(path), blake3(data).digest(), scale, len(data))
        self._next += 1
        self._known[known.id] = known
        return known

    def rescale(self, adapter: int, scale: float) -> None:
        self._known[adapter] = replace(self._find(adapter), scale=scale)

    def remove(self, adapter: int) -> None:
        self._find(adapter)
        del self._known[adapter]

    def _find(self, adapter: int) -> LoadedAdapter:
        found = self._known.get(adapter)
        if found is None:
            raise InvalidParam("adapter", adapter, "the id of an adapter that is loaded")
        return found
