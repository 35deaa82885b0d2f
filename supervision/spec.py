"""Specs: what a supervisor must keep alive, and how. Values only, checked when they are built."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

from supervision.errors import SpecError


class Strategy(enum.Enum):
    """Who else restarts when one child fails."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"
    SIMPLE_ONE_FOR_ONE = "simple_one_for_one"
    """Children are added at run time from one template and are independent of each other."""


class Restart(enum.Enum):
    """When a child is started again after it ended."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class ChildKind(enum.Enum):
    """The two kinds of child."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


class ShutdownMarker(enum.Enum):
    """How to stop a child where a number of seconds will not do."""

    BRUTAL_KILL = "brutal_kill"
    INFINITY = "infinity"


BRUTAL_KILL: Final = ShutdownMarker.BRUTAL_KILL
"""Stop the child with SIGKILL, at once and unasked."""
INFINITY: Final = ShutdownMarker.INFINITY
"""Ask the child to stop and wait as long as it takes. Meant for supervisors."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pause before a restart: ``first_s``, then times ``factor`` each, at most ``max_s``.

    Restarts older than the supervisor's period no longer count.
    """

    first_s: float = 0.1
    factor: float = 2.0
    max_s: float = 10.0

    def __post_init__(self) -> None:
        _positive("Backoff.first_s", self.first_s)
        _positive("Backoff.max_s", self.max_s)
        if not (math.isfinite(self.factor) and self.factor >= 1.0):
            raise SpecError("Backoff.factor", self.factor, "must be a finite number ≥ 1")

    def delay_s(self, restarts: int) -> float:
        """Seconds to wait before restart number ``restarts`` (the first is 1)."""
        exponent = min(max(restarts - 1, 0), 64)
        return min(self.max_s, self.first_s * self.factor**exponent)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child: who it is, how it starts, when it restarts, how it stops."""

    id: str
    """Unique in the whole tree."""
    actor: str
    """``package.module.ClassName`` of a Worker, imported in the child's own process."""
    args: object = None
    """Picklable, frozen; handed to ``init``. A SupervisorSpec where kind is SUPERVISOR."""
    restart: Restart = Restart.PERMANENT
    shutdown: float | ShutdownMarker = 5.0
    """Seconds between the request to stop and SIGKILL, or a marker."""
    kind: ChildKind = ChildKind.WORKER
    init_timeout_s: float = 10.0
    """Seconds from fork to ready; a child that is later is killed."""
    backoff: Backoff | None = None
    """No pause by default: a restart costs milliseconds and intensity bounds it."""
    restart_if_never_ready: bool = True
    """False: a child that never became ready stays down and its supervisor starts without it."""

    def __post_init__(self) -> None:
        _text("ChildSpec.id", self.id)
        _text("ChildSpec.actor", self.actor)
        module, _, name = self.actor.rpartition(".")
        if not (module and name.isidentifier()):
            raise SpecError("ChildSpec.actor", self.actor, "must be 'package.module.ClassName'")
        _member("ChildSpec.restart", self.restart, Restart)
        _member("ChildSpec.kind", self.kind, ChildKind)
        _positive("ChildSpec.init_timeout_s", self.init_timeout_s)
        if not isinstance(self.shutdown, ShutdownMarker):
            _positive("ChildSpec.shutdown", self.shutdown)
        if (self.kind is ChildKind.SUPERVISOR) != isinstance(self.args, SupervisorSpec):
            raise SpecError(
                "ChildSpec.args", self.args, f"child {self.id!r} is a {self.kind.value}, and a "
                "SupervisorSpec is the args of supervisors and of nobody else",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """A supervisor: its children in start order, its strategy, and how much failure it bears.

    More than ``intensity`` restarts within ``period_s`` seconds and it gives up: it stops its
    children in reverse order and exits, which its own supervisor handles like any other crash.
    A ``simple_one_for_one`` supervisor counts per child and drops only the child that fails so
    often: one bad model must not take the others with it.
    """

    strategy: Strategy
    children: tuple[ChildSpec, ...] = ()
    intensity: int = 5
    period_s: float = 30.0
    template: ChildSpec | None = None
    """simple_one_for_one: every child is this spec with its own id and args."""

    def __post_init__(self) -> None:
        _member("SupervisorSpec.strategy", self.strategy, Strategy)
        _positive("SupervisorSpec.period_s", self.period_s)
        _count("SupervisorSpec.intensity", self.intensity)
        _children("SupervisorSpec.children", self.children)
        dynamic = self.strategy is Strategy.SIMPLE_ONE_FOR_ONE
        if dynamic != (self.template is not None):
            raise SpecError(
                "SupervisorSpec.template", self.template, "belongs to simple_one_for_one only"
            )
        if dynamic and self.children:
            raise SpecError(
                "SupervisorSpec.children", self.children, "simple_one_for_one starts with none"
            )
        repeated = first_repeated(ids_below(self))
        if repeated is not None:
            raise SpecError("ChildSpec.id", repeated, "appears twice in one tree")


def ids_below(spec: SupervisorSpec) -> list[str]:
    """Every child id below this supervisor, depth first, in start order."""
    found: list[str] = []
    for child in spec.children:
        found.append(child.id)
        if isinstance(child.args, SupervisorSpec):
            found.extend(ids_below(child.args))
    return found


def actors_below(spec: SupervisorSpec) -> list[str]:
    """Every actor class path below this supervisor, templates included."""
    found: list[str] = []
    for child in (*spec.children, *((spec.template,) if spec.template else ())):
        found.append(child.actor)
        if isinstance(child.args, SupervisorSpec):
            found.extend(actors_below(child.args))
    return found


def first_repeated(ids: list[str]) -> str | None:
    """The first id that appears twice, if any."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None


def _text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise SpecError(field, value, "must be a text that is not empty")


def _positive(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(field, value, "must be a number")
    if not (math.isfinite(value) and value > 0):
        raise SpecError(field, value, "must be a finite number > 0")


def _count(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SpecError(field, value, "must be an integer ≥ 0")


def _children(field: str, value: object) -> None:
    if not isinstance(value, tuple):
        raise SpecError(field, value, "must be a tuple")
    for child in value:
        if not isinstance(child, ChildSpec):
            raise SpecError(field, child, "must be a ChildSpec")


def _member(field: str, value: object, kind: type[enum.Enum]) -> None:
    if not isinstance(value, kind):
        raise SpecError(field, value, f"must be one of {[m.name for m in kind]}")
