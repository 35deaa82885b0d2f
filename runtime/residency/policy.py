"""Which models are loaded, and which leave memory for them. No clock, no process, no file.

Wishes are served in the order in which they came: one that does not fit yet lets none behind it
go first, so that each is served. For the first one that does not fit, models leave: those without
requests before those with some, which end first; the least recently used before others. One that is
pinned never leaves; where that leaves no room, or a limit is too low, the wish is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is loaded, or being loaded."""

    model: str
    n_bytes: int = 0
    """On the host and on GPUs."""
    host_bytes: int = 0
    last_use: float = 0.0
    is_pinned: bool = False
    is_busy: bool = False
    """Requests for it run or wait."""
    is_loading: bool = False
    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """A model that is to be loaded, and what it is expected to take."""

    model: str
    n_bytes: int
    host_bytes: int
    since: float
    """When it was asked for first."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What loaded models may take together; None: no limit."""

    max_models: int | None = None
    max_bytes: int | None = None
    room: int | None = None
    """Host memory that is free, in bytes, were no model loaded; None: not known."""

    def hold(self, models: Iterable[Resident]) -> bool:
        """Whether these may be loaded at the same time."""
        ones = tuple(models)
        return (
            (self.max_models is None or len(ones) <= self.max_models)
            and (self.max_bytes is None or sum(one.n_bytes for one in ones) <= self.max_bytes)
            and (self.room is None or sum(one.host_bytes for one in ones) <= self.room)
        )

    def left_beside(self, models: Sequence[Resident]) -> int | None:
        """Bytes that another model may take beside these; None: no limit."""
        left = []
        if self.max_bytes is not None:
            left.append(self.max_bytes - sum(one.n_bytes for one in models))
        if self.room is not None:
            left.append(self.room - sum(one.host_bytes for one in models))
        return min(left, default=None)


class Why(Enum):
    """Why a wish cannot be."""

    TOO_BIG = "too_big"
    """It would not fit if it were alone."""
    PINNED = "pinned"
    """Those that are pinned leave no room."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A wish that cannot be, and the pinned models that are in its way."""

    wish: Wish
    why: Why
    pinned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now: the rest is decided when that is done, or something has changed."""

    loads: tuple[str, ...] = ()
    leaves: tuple[Resident, ...] = ()
    """Models that leave memory; a busy one when its requests have ended."""
    refused: tuple[Refusal, ...] = ()


def decide(residents: Sequence[Resident], wishes: Sequence[Wish], limits: Limits) -> Plan:
    """The next step from here to where every wish is loaded or refused.

    No wish is for a model that is a resident.
    """
    there = list(residents)
    loads: list[str] = []
    refused: list[Refusal] = []
    leaves: tuple[Resident, ...] = ()
    for wish in sorted(wishes, key=lambda one: (one.since, one.model)):
        new = _resident(wish)
        pinned = [one for one in there if one.is_pinned]
        if not limits.hold([*pinned, new]):
            why = Why.PINNED if pinned and limits.hold([new]) else Why.TOO_BIG
            refused.append(Refusal(wish, why, tuple(one.model for one in pinned)))
        elif limits.hold([*there, new]):
            loads.append(wish.model)
            there.append(new)
        else:
            leaves = _to_leave(there, new, limits)
            break
    else:
        leaves = _surplus(there, limits)
    return Plan(tuple(loads), leaves, tuple(refused))


def _resident(wish: Wish) -> Resident:
    return Resident(wish.model, wish.n_bytes, wish.host_bytes, is_busy=True, is_loading=True)


def _to_leave(there: list[Resident], new: Resident, limits: Limits) -> tuple[Resident, ...]:
    """Those that must leave beside those that do already; what is being loaded is waited for."""
    stay = [one for one in there if not one.is_leaving]
    leaves: list[Resident] = []
    for one in _in_turn(stay):
        if limits.hold([*stay, new]):
            break
        stay.remove(one)
        leaves.append(one)
    if not limits.hold([*stay, new]):
        return ()  # not before those that are being loaded are up, and may leave too
    # A later one may have made an earlier one's leave unnecessary.
    for one in list(leaves):
        if limits.hold([*stay, one, new]):
            stay.append(one)
            leaves.remove(one)
    return tuple(leaves)


def _surplus(there: list[Resident], limits: Limits) -> tuple[Resident, ...]:
    """Without a wish: idle ones above what is configured, as after a load by a caller."""
    own = replace(limits, room=None)
    stay = [one for one in there if not one.is_leaving]
    leaves = []
    for one in _in_turn(stay):
        if one.is_busy or own.hold(stay):
            break
        stay.remove(one)
        leaves.append(one)
    return tuple(leaves)


def _in_turn(models: Iterable[Resident]) -> list[Resident]:
    """Those that may leave, the first to leave first."""
    free = [one for one in models if not (one.is_pinned or one.is_loading or one.is_leaving)]
    return sorted(free, key=lambda one: (one.is_busy, one.last_use, one.model))


@dataclass(frozen=True, slots=True)
class Idle:
    """A loaded model without requests, and since when (monotonic seconds)."""

    model: str
    since: float
    keep_alive_s: float | None
    """None, or below 0: without end."""

    @property
    def ends_at(self) -> float | None:
        """When it is to sleep; None: never."""
        if self.keep_alive_s is None or self.keep_alive_s < 0:
            return None
        return self.since + self.keep_alive_s


def expired(models: Iterable[Idle], now: float) -> tuple[list[str], float | None]:
    """Those whose time is over, and when the next one's is."""
    ends = [(one.model, one.ends_at) for one in models]
    due = [model for model, at in ends if at is not None and at <= now]
    return due, min((at for _, at in ends if at is not None and at > now), default=None)
