"""Loading and unloading models: between callers and the registry."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING

from actors.messages.exact import Exact
from actors.messages.markers import Markers
from native import BackendKind
from native.params import ModelParams
from supervision.frozen import frozen

if TYPE_CHECKING:
    from supervision import Entry


@frozen
class LoadModel:
    """Anyone → registry: load this model and keep it loaded.

    Answered by ``ModelLoading`` meanwhile, and one ``ModelLoaded`` or ``ModelNotLoaded``.
    """

    ref: str
    model: str
    path: str
    backend: BackendKind = "llama"
    params: ModelParams = field(default_factory=ModelParams)
    markers: Markers = field(default_factory=Markers)
    chat_template: str | None = None
    """In place of the one in the file."""
    exact: Exact = Exact.REPEAT
    """Of requests that name no level; with ``ALWAYS``, of all requests."""
    keep_alive_s: float | None = None
    """Seconds without requests after which it leaves memory; None: as the node has it."""
    pin: bool = False
    """It stays in memory, whatever else needs room."""


@frozen
class ModelLoading:
    """Registry → asker: this share of the file is read, 0 to 1."""

    ref: str
    share: float


@frozen
class ModelLoaded:
    """Registry → asker: the model is ready; its directory entry has address and pid."""

    ref: str
    entry: Entry


class LoadFailure(Enum):
    """Why a model is not loaded."""

    ALREADY_LOADED = "already_loaded"
    REFUSED = "refused"
    """``kind`` names the error in ``native.errors``."""
    CRASHED = "crashed"
    """The loading process ended; the file is malformed, or memory ran out."""
    UNAVAILABLE = "unavailable"
    """Models cannot be loaded just now: their supervisor is restarting or stopping."""
    UNKNOWN = "unknown"
    """There is no model of this name."""
    NO_ROOM = "no_room"
    """Models that are pinned, or the limits, leave no room for it."""


@frozen
class ModelNotLoaded:
    """Registry → asker: the model is not loaded, and why."""

    ref: str
    reason: LoadFailure
    kind: str
    detail: str
    retry_after_s: float | None = None
    """Seconds after which a request for it tries again."""


@frozen
class UnloadModel:
    """Anyone → registry: unload this model. Answered by ``ModelUnloaded``.

    Its running requests may continue for ``drain_s`` seconds; new ones are refused at once.
    """

    ref: str
    model: str
    drain_s: float = 0.0


@frozen
class Drain:
    """Registry → model: take no new requests, and send ``Drained`` when the last one has ended."""

    ref: str


@frozen
class Drained:
    """Model → registry: nothing runs or waits here any more, and nothing will."""

    ref: str


@frozen
class ModelUnloaded:
    """Registry → asker: its process is gone; ``was_loaded`` is False when there was none."""

    ref: str
    was_loaded: bool


@frozen
class ListWantedModels:
    """Anyone → registry: which models shall be loaded? Answered by ``WantedModelsListed``."""

    ref: str


@frozen
class WantedModelsListed:
    """Registry → asker: models that shall be loaded, also those that are restarting just now."""

    ref: str
    models: tuple[str, ...]
