"""The LoRA adapters of one llama.cpp model, and which of them its context applies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from native import _faults
from native._llama import ffi, lib
from native.adapter_file import AdapterFile
from native.adapters import LoadedAdapter
from native.errors import AdapterRefused, InvalidParam


class LoraAdapters:
    """Owns the adapters that ``load`` reads.

    The caller holds the backend's lock, and no sequence of the context holds KV.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._handles: dict[int, Any] = {}
        self._known: dict[int, LoadedAdapter] = {}
        self._next = 1

    @property
    def all(self) -> tuple[LoadedAdapter, ...]:
        return tuple(self._known.values())

    def load(self, file: AdapterFile, scale: float) -> LoadedAdapter:
        """Read a checked file; it is not applied before ``apply``."""
        out = ffi.new("la_adapter **")
        lib.la_log_clear()
        if lib.la_adapter_load(self._model, os.fsencode(file.path), out):
            raise AdapterRefused(file.path, _faults.log_tail() or _faults.last_text())
        try:
            file.check_unchanged()
        except BaseException:
            lib.la_adapter_free(out[0])
            raise
        known = LoadedAdapter(self._next, file.path, file.fingerprint, scale, file.n_bytes)
        self._next += 1
        self._handles[known.id], self._known[known.id] = out[0], known
        return known

    def remove(self, adapter: int, context: Any) -> None:
        """Take it out of ``context``, then free it."""
        self._find(adapter)
        handle = self._handles.pop(adapter)
        del self._known[adapter]
        try:
            self.apply(context)
        finally:
            lib.la_adapter_free(handle)

    def rescale(self, adapter: int, scale: float) -> None:
        self._known[adapter] = replace(self._find(adapter), scale=scale)

    def apply(self, context: Any) -> None:
        """Make ``context`` apply exactly what is known here, at its scale."""
        ids: Sequence[int] = list(self._known)
        handles = ffi.new("la_adapter *[]", [self._handles[one] for one in ids])
        scales = ffi.new("float[]", [self._known[one].scale for one in ids])
        status = lib.la_adapters_apply(context, len(ids), handles, scales)
        if status:
            _faults.raise_status(status)

    def close(self) -> None:
        """Free all; the context is gone by now."""
        for handle in self._handles.values():
            lib.la_adapter_free(handle)
        self._handles.clear()
        self._known.clear()

    def _find(self, adapter: int) -> LoadedAdapter:
        found = self._known.get(adapter)
        if found is None:
            raise InvalidParam("adapter", adapter, "the id of an adapter that is loaded")
        return found
