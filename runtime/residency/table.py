"""Models that left memory by themselves, and how long others stay: it outlives the actor.

It lies in a memory file that the launcher holds (``actors.messages.slot_file``), as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from actors.messages import LoadModel
from actors.messages.model_table import load_of, plain_of
from actors.messages.slot_file import SlotFile


@dataclass(frozen=True, slots=True)
class Asleep:
    """A model that wakes at its next use."""

    spec: LoadModel
    """How it was loaded, with the adapters that it had at last."""
    last_use: float
    """Monotonic seconds."""


class ResidencyTable:
    """Read once and written whole at every change."""

    def __init__(self, path: str) -> None:
        self._file = SlotFile(path)
        plain = json.loads(self._file.body or b'{"asleep": [], "keep_alive": {}}')
        self._asleep = {one["model"]: Asleep(load_of(one), at) for one, at in plain["asleep"]}
        self._keep_alive: dict[str, float] = plain["keep_alive"]

    @property
    def asleep(self) -> dict[str, Asleep]:
        """Those that sleep, by their names."""
        return dict(self._asleep)

    def get(self, model: str) -> Asleep | None:
        """The model, if it sleeps."""
        return self._asleep.get(model)

    def put_to_sleep(self, spec: LoadModel, last_use: float) -> None:
        """Note that it leaves memory, before it does."""
        self._asleep[spec.model] = Asleep(spec, last_use)
        self._write()

    def forget(self, model: str) -> bool:
        """It is awake, or is not wanted any more; whether it slept."""
        known = self._asleep.pop(model, None) is not None
        if known:
            self._write()
        return known

    def keep_alive(self, model: str) -> float | None:
        """What a caller has set for it; None: nothing."""
        return self._keep_alive.get(model)

    def set_keep_alive(self, model: str, seconds: float | None) -> None:
        """Set it, or forget what was set."""
        if self._keep_alive.get(model) == seconds:
            return
        if seconds is None:
            del self._keep_alive[model]
        else:
            self._keep_alive[model] = seconds
        self._write()

    def _write(self) -> None:
        plain = {
            "asleep": [(plain_of(one.spec), one.last_use) for one in self._asleep.values()],
            "keep_alive": self._keep_alive,
        }
        self._file.write(json.dumps(plain).encode())
