"""Models on their way: those that are waited for, load or leave."""

from __future__ import annotations

from dataclasses import dataclass

from actors import messages as m
from runtime.residency.memory import Need
from runtime.residency.policy import Resident


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


def loading(load: Load) -> Resident:
    """A model that is not in the tree yet."""
    need = load.wish.need or Need()
    return Resident(load.spec.model, need.n_bytes, need.host_bytes, is_busy=True, is_loading=True)
