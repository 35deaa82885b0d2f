"""Which models are in memory: between callers, inflight and the actor ``residency``."""

from __future__ import annotations

from enum import Enum

from supervision.frozen import frozen


@frozen
class NeedModel:
    """Inflight or a client → residency: have this model loaded.

    Answered by ``ModelAwaited`` at once, ``ModelLoading`` meanwhile, and one ``ModelLoaded`` or
    ``ModelNotLoaded``; of a name that is not known, by ``ModelNotLoaded`` alone.
    """

    ref: str
    model: str
    since: float
    """Monotonic seconds at which the oldest request for it has come: it is served in that order."""


@frozen
class ModelAwaited:
    """Residency → asker: the model is known, and will be loaded, or not, with a reason."""

    ref: str


@frozen
class HoldModel:
    """Residency → inflight: give this model no more requests. Answered by ``ModelHeld``.

    What comes for it waits, until its process is gone or the model is released.
    """

    ref: str
    model: str
    incarnation: int
    """Of the process that is meant: its successor is not held."""
    if_idle: bool = False
    """Only if no request for it runs or waits."""


@frozen
class ModelHeld:
    """Inflight → residency: nothing runs in the model; not ``is_held``: it is not idle."""

    ref: str
    model: str
    is_held: bool


@frozen
class ReleaseModel:
    """Residency → inflight: the model stays, or has left; what waits may start, or wake it."""

    model: str


@frozen
class ListModelUse:
    """Residency → inflight: which models are used? Answered by ``ModelUseListed``."""

    ref: str


@frozen
class ModelUse:
    """The requests and questions of one model."""

    model: str
    n_requests: int
    """Those that run or wait now."""
    last_use: float
    """Monotonic seconds at which the last one began or ended."""


@frozen
class ModelUseListed:
    """Inflight → residency: every model that was used since inflight has started."""

    ref: str
    models: tuple[ModelUse, ...]


@frozen
class SetKeepAlive:
    """Anyone → residency: how long this model stays loaded without requests, from now on.

    Answered by ``KeepAliveSet``. Holds until the model is unloaded, or another value is set.
    """

    ref: str
    model: str
    seconds: float | None
    """None: as it is configured; below 0: without end; 0: until its requests have ended."""


@frozen
class KeepAliveSet:
    """Residency → asker: done; ``is_known`` is False where there is no such model."""

    ref: str
    is_known: bool


@frozen
class ListModels:
    """Anyone → residency: the models that are known, by name. Answered by ``ModelsListed``."""

    ref: str
    after: str = ""
    """Only those after this name."""


class ModelState(Enum):
    """What a known model is doing."""

    AVAILABLE = "available"
    """It was not loaded yet, or was unloaded by a caller; it is loaded at its first use."""
    LOADING = "loading"
    """Or it waits until there is room, or is started again after a crash."""
    UP = "up"
    DRAINING = "draining"
    """It leaves memory when its requests have ended."""
    ASLEEP = "asleep"
    """It has left memory by itself; what is cached of it is kept, and it wakes at its next use."""
    FAILED = "failed"
    """It did not load; its next use tries again after a pause."""


@frozen
class KnownModel:
    """A model that is loaded, or would be at its next use."""

    model: str
    state: ModelState
    path: str
    file_bytes: int
    memory_bytes: int | None = None
    """As measured of its process; what is expected where it is not loaded; None: not known."""
    is_pinned: bool = False
    keep_alive_s: float | None = None
    """Seconds without requests after which it sleeps; None: never."""
    last_use: float | None = None
    """Unix time."""
    expires_at: float | None = None
    """Unix time at which it will sleep if nothing asks for it."""
    failure: str = ""
    """Why it did not load."""


@frozen
class ModelsListed:
    """Residency → asker: so many of them as fit one message."""

    ref: str
    models: tuple[KnownModel, ...]
    is_last: bool
