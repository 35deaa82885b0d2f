"""Specs: what a supervisor must keep alive, and how. Values only, checked when they are built."""

from __future__ import annotations

import enum
import math
from typing import Final

from supervision.errors import SpecError
from supervision.frozen import frozen

ROOT_ID: Final = "root"
"""The id of the supervisor at the top of every tree; no child may have it."""


class Strategy(enum.Enum):
    """Which other children restart when one fails."""

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


class AutoShutdown(enum.Enum):
    """When a supervisor ends because its significant children ended by themselves."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    """The first that ends."""
    ALL_SIGNIFICANT = "all_significant"
    """The last that ends; one that was stopped before does not count as running."""


class ChildKind(enum.Enum):
    """The two kinds of child."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


class ShutdownMarker(enum.Enum):
    """How to stop a child where a number of seconds will not do."""

    BRUTAL_KILL = "brutal_kill"
    INFINITY = "infinity"


BRUTAL_KILL: Final = ShutdownMarker.BRUTAL_KILL
"""Stop the child with SIGKILL, at once."""
INFINITY: Final = ShutdownMarker.INFINITY
"""Ask the child to stop and wait as long as it takes. Meant for supervisors."""


@frozen
class Backoff:
    """The pause before a restart: ``first_s``, then times ``factor`` each, at most ``max_s``.

    The pause grows with the restarts that the supervisor's window holds: those of the last
    ``period_s`` seconds, of all its children together (of this child alone where the strategy is
    simple_one_for_one). So a child that ran well for one period starts from ``first_s`` again,
    and one that crashes in a loop waits longer each time until the intensity is exceeded.

    ``jitter`` keeps children that failed together from coming back together: the pause is drawn
    each time, evenly within that fraction below and above, and never above ``max_s``.
    """

    first_s: float = 0.1
    factor: float = 2.0
    max_s: float = 10.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        _positive("Backoff.first_s", self.first_s)
        _positive("Backoff.max_s", self.max_s)
        if self.max_s < self.first_s:
            raise SpecError("Backoff.max_s", self.max_s, f"must be ≥ first_s ({self.first_s})")
        _number("Backoff.factor", self.factor)
        if self.factor < 1.0:
            raise SpecError("Backoff.factor", self.factor, "must be ≥ 1")
        _number("Backoff.jitter", self.jitter)
        if not 0.0 <= self.jitter < 1.0:
            raise SpecError("Backoff.jitter", self.jitter, "must be ≥ 0 and < 1")

    def delay_s(self, restarts: int) -> float:
        """Seconds to wait before restart number ``restarts`` (the first is 1), without jitter."""
        try:
            delay_s = self.first_s * float(self.factor) ** max(restarts - 1, 0)
        except OverflowError:
            return self.max_s
        return min(self.max_s, delay_s)

    def range_s(self, restarts: int) -> tuple[float, float]:
        """The shortest and the longest pause that jitter makes of ``delay_s(restarts)``.

        ``delay_s · (1 - jitter)`` and ``min(max_s, delay_s · (1 + jitter))``.
        """
        delay_s = self.delay_s(restarts)
        return delay_s * (1.0 - self.jitter), min(self.max_s, delay_s * (1.0 + self.jitter))


@frozen
class ChildSpec:
    """One child: its id and class, how it starts, when it restarts, how it stops."""

    id: str
    """Unique in the whole tree."""
    actor: str
    """``package.module.ClassName`` of a Worker, or of a plain ``thespian.actors.Actor``; it is
    imported in the child's own process."""
    args: object = None
    """A frozen value that may travel in messages; given to ``init``. To a plain Thespian actor it
    is sent as its first message. A SupervisorSpec where kind is SUPERVISOR."""
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
    heartbeat_s: float | None = 30.0
    """A child that is up and shows no life for so long hangs, and is killed. None: it may."""
    engine_heartbeat_s: float | None = None
    """The same for an engine thread inside a step, for a worker that keeps its steps short or beats
    in them (``EngineWorker.engine_step``)."""
    significant: bool = False
    """Its end by itself, for good, may end its supervisor: ``SupervisorSpec.auto_shutdown``."""

    def __post_init__(self) -> None:
        _text("ChildSpec.id", self.id)
        if self.id == ROOT_ID:
            raise SpecError("ChildSpec.id", self.id, "is the id of the root supervisor")
        _text("ChildSpec.actor", self.actor)
        parts = self.actor.split(".")
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise SpecError("ChildSpec.actor", self.actor, "must be 'package.module.ClassName'")
        _member("ChildSpec.restart", self.restart, Restart)
        _member("ChildSpec.kind", self.kind, ChildKind)
        _positive("ChildSpec.init_timeout_s", self.init_timeout_s)
        for field in ("heartbeat_s", "engine_heartbeat_s"):
            if getattr(self, field) is not None:
                _positive(f"ChildSpec.{field}", getattr(self, field))
        if not isinstance(self.shutdown, ShutdownMarker):
            _seconds_or_marker("ChildSpec.shutdown", self.shutdown)
        if self.backoff is not None and not isinstance(self.backoff, Backoff):
            raise SpecError("ChildSpec.backoff", self.backoff, "must be a Backoff or None")
        _truth("ChildSpec.restart_if_never_ready", self.restart_if_never_ready)
        _truth("ChildSpec.significant", self.significant)
        if self.significant and self.restart is Restart.PERMANENT:
            raise SpecError(
                "ChildSpec.significant", self.significant,
                f"child {self.id!r} is permanent: it never ends for good",
            )  # fmt: skip
        if (self.kind is ChildKind.SUPERVISOR) != isinstance(self.args, SupervisorSpec):
            raise SpecError(
                "ChildSpec.args", self.args, f"child {self.id!r} is a {self.kind.value}, and a "
                "SupervisorSpec is the args of supervisors and of no other child",
            )  # fmt: skip


@frozen
class SupervisorSpec:
    """A supervisor: its children in start order, its strategy, and how much failure it bears.

    More than ``intensity`` restarts within ``period_s`` seconds and it gives up: it stops its
    children in reverse order and exits, which its own supervisor handles like any other crash.
    A ``simple_one_for_one`` supervisor counts per child and drops only the child that fails so
    often: the others are not affected.

    With ``auto_shutdown`` it also ends when its significant children have: in reverse order, with
    the reason shutdown. Only an end by itself and for good counts: normal or shutdown of a
    transient child, any of a temporary one; not a stop by terminate_child or with a sibling.
    """

    strategy: Strategy
    children: tuple[ChildSpec, ...] = ()
    intensity: int = 5
    period_s: float = 30.0
    template: ChildSpec | None = None
    """simple_one_for_one: every child is this spec with its own id and args."""
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER
    preload: tuple[str, ...] = ()
    """Modules that the supervisor's process imports before it forks a child, which then has them:
    a restart costs no imports. None that starts a thread or loads a native library."""

    def __post_init__(self) -> None:
        _member("SupervisorSpec.strategy", self.strategy, Strategy)
        _positive("SupervisorSpec.period_s", self.period_s)
        _count("SupervisorSpec.intensity", self.intensity)
        _children("SupervisorSpec.children", self.children)
        _member("SupervisorSpec.auto_shutdown", self.auto_shutdown, AutoShutdown)
        if self.template is not None and not isinstance(self.template, ChildSpec):
            raise SpecError("SupervisorSpec.template", self.template, "must be a ChildSpec or None")
        dynamic = self.strategy is Strategy.SIMPLE_ONE_FOR_ONE
        if dynamic != (self.template is not None):
            raise SpecError(
                "SupervisorSpec.template", self.template, "belongs to simple_one_for_one only"
            )
        if dynamic and self.children:
            raise SpecError(
                "SupervisorSpec.children", self.children, "simple_one_for_one starts with none"
            )
        for child in (*self.children, *((self.template,) if self.template else ())):
            require_significant_may_be(child, self.auto_shutdown)
        repeated = first_repeated(ids_below(self))
        if repeated is not None:
            raise SpecError("ChildSpec.id", repeated, "appears twice in one tree")


def require_significant_may_be(child: ChildSpec, auto_shutdown: AutoShutdown) -> None:
    """Raise SpecError where a significant child could never have an effect."""
    if child.significant and auto_shutdown is AutoShutdown.NEVER:
        raise SpecError(
            "ChildSpec.significant", child.significant,
            f"child {child.id!r} is below a supervisor whose auto_shutdown is never",
        )  # fmt: skip


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


def _number(field: str, value: object) -> None:
    try:
        is_number = not isinstance(value, bool) and isinstance(value, int | float)
        if is_number and math.isfinite(float(value)):  # type: ignore[arg-type]
            return
    except OverflowError:  # an integer beyond what floats reach
        pass
    raise SpecError(field, value, "must be a finite number")


def _positive(field: str, value: float) -> None:
    _number(field, value)
    if value <= 0:
        raise SpecError(field, value, "must be > 0")


def _seconds_or_marker(field: str, value: float) -> None:
    try:
        _positive(field, value)
    except SpecError as error:
        why = f"{error.why}, in seconds, or BRUTAL_KILL or INFINITY"
        raise SpecError(field, value, why) from None


def _truth(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SpecError(field, value, "must be True or False")


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
