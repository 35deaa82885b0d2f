"""Models on their way: those that are waited for, load or leave, and why one does not come."""

from __future__ import annotations

from dataclasses import dataclass

from actors import messages as m
from runtime.residency.memory import Need
from runtime.residency.policy import Limits, Refusal, Resident, Why
from runtime.settings.sizes import format_size


@dataclass(slots=True)
class Pending:
    """A model that is to be loaded."""

    spec: m.LoadModel
    since: float
    need: Need | None = None
    """None while it is not known."""
    tries: int = 0
    after: frozenset[int] = frozenset()
    """Processes that must have ended before: it did not fit beside them."""


@dataclass(slots=True)
class Load:
    """A model that the registry loads."""

    ref: str
    spec: m.LoadModel
    wish: Pending
    share: float = 0.0
    is_others: bool = False
    """Another has begun to load it."""


@dataclass(slots=True)
class Leave:
    """A model that leaves memory."""

    ref: str
    spec: m.LoadModel
    if_idle: bool
    is_unloading: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A model that did not load lately."""

    answer: m.ModelNotLoaded
    until: float
    times: int


def unknown(model: str) -> m.ModelNotLoaded:
    """The answer for a name that no model has."""
    detail = f"no model {model!r} is known; load it first (`load {model}=PATH`)"
    return m.ModelNotLoaded("", m.LoadFailure.UNKNOWN, "ModelUnknown", detail)


def loading(load: Load) -> Resident:
    """A model that is not in the tree yet."""
    need = load.wish.need or Need()
    return Resident(load.spec.model, need.n_bytes, need.host_bytes, is_busy=True, is_loading=True)


def why_no_room(refusal: Refusal, limits: Limits) -> str:
    """Why a wish cannot be, and what to do."""
    wish = refusal.wish
    if refusal.why is Why.PINNED:
        names = ", ".join(refusal.pinned)
        return (
            f"no room for model {wish.model!r}: it needs {format_size(wish.n_bytes)}, and the "
            f"pinned models ({names}) do not leave memory; unpin or unload one, or raise "
            "models_memory or models_max"
        )
    most = min(one for one in (limits.max_bytes, limits.room, wish.n_bytes) if one is not None)
    return (
        f"model {wish.model!r} needs {format_size(wish.n_bytes)} of memory, and "
        f"{format_size(max(0, most))} may be used; lower its n_ctx, or raise models_memory"
    )
