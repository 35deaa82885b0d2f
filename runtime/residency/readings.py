"""What is known of models now: the tree, the registry's table, their use, and what they take.

It is written by what comes in, and read by all that decides or answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.actor_ids import model_actor_id, model_of
from actors.messages.model_table import ModelTable
from runtime.residency.known import KnownModels
from runtime.residency.memory import Measured, Taken, taken_by

if TYPE_CHECKING:
    from supervision import Entry


class Readings:
    """Of every model that is loaded, or may be."""

    def __init__(
        self,
        directory: Callable[[], Mapping[str, Entry]],
        wanted_path: str,
        known: KnownModels,
        measured: Measured,
    ) -> None:
        """``directory``: the entries of the tree, by id. ``wanted_path``: the registry's table."""
        self._directory = directory
        self._wanted_path = wanted_path
        self._measured = measured
        self.known = known
        self.wanted = ModelTable(wanted_path)
        """What the registry has loaded, and how, as it was read last."""
        self.uses: dict[str, m.ModelUse] = {}
        """As inflight reported it last."""
        self._up: dict[str, int] = {}
        """Incarnations of models that are up."""
        self._devices: dict[str, int] = {}
        """Bytes on GPUs, by model."""

    def refresh(self) -> None:
        """Read the registry's table again."""
        self.wanted = ModelTable(self._wanted_path)

    # ── the tree ────────────────────────────────────────────────────────────────────────────────

    def entry(self, model: str) -> Entry | None:
        return self._directory().get(model_actor_id(model))

    def models(self) -> Iterator[tuple[str, Entry]]:
        """Those in the tree that are loaded, or on their way."""
        for one in self._directory().values():
            model = model_of(one.id)
            if model is not None and one.state != "down":
                yield model, one

    def is_absent(self, model: str) -> bool:
        entry = self.entry(model)
        return entry is None or entry.state in ("down", "stopping")

    def is_noted(self, model: str, entry: Entry) -> bool:
        """Whether this incarnation was noted as being up."""
        return self._up.get(model) == entry.incarnation

    def note_up(self, model: str, entry: Entry) -> None:
        """This incarnation is up."""
        self._up[model] = entry.incarnation

    def forget(self, model: str) -> None:
        """Its process is gone."""
        self._up.pop(model, None)
        self._devices.pop(model, None)

    # ── one model ───────────────────────────────────────────────────────────────────────────────

    def spec(self, model: str) -> m.LoadModel | None:
        """How it is loaded, or would be; None: it is not known."""
        return self.wanted.get(model) or self.known.spec(model)

    def is_pinned(self, model: str) -> bool:
        spec = self.spec(model)
        return spec is not None and spec.pin

    def last_use(self, model: str, entry: Entry) -> float:
        """Monotonic seconds: of its last request, or when it was loaded."""
        loaded = time.monotonic() - max(0.0, time.time() - entry.started_at)
        use = self.uses.get(model)
        return loaded if use is None else max(use.last_use, loaded)

    def n_requests(self, model: str) -> int:
        use = self.uses.get(model)
        return 0 if use is None else use.n_requests

    # ── memory ──────────────────────────────────────────────────────────────────────────────────

    def note_status(self, model: str | None, status: Mapping[str, object]) -> None:
        """A model reports what it takes on GPUs; None: it is no model that reports."""
        taken = status.get("memory_taken")
        if model is not None and isinstance(taken, dict):
            self._devices[model] = sum(
                n for name, n in taken.items() if name.startswith("device_") and isinstance(n, int)
            )

    def taken(self) -> dict[str, Taken]:
        """What the processes of loaded models take; noted for when they are loaded again."""
        found: dict[str, Taken] = {}
        for model, entry in self.models():
            taken = None if entry.pid is None else taken_by(entry.pid)
            if taken is None:
                continue
            found[model] = replace(taken, device=self._devices.get(model, 0))
            spec = self.wanted.get(model)
            if entry.is_up and spec is not None:
                self._measured.note(spec, found[model])
        return found

    def measured(self, spec: m.LoadModel) -> Taken | None:
        """What the model took when it ran last, where that is known."""
        return self._measured.get(spec)
