"""Restart policy, as tables and a window.

A worker ends by itself. Four questions, in this order:

1. *Does this child restart at all?* ``RESTARTS_ON``: a permanent child always, a transient one
   when it failed (abnormal, killed), a temporary one never.
2. *May this supervisor restart once more?* ``RestartWindow``: more than ``intensity`` restarts
   within ``period_s`` seconds means that restarting does not help. It gives up and escalates.
3. *Who goes with it?* ``affected``: only the child, the child and those started after it, or all.
4. *If it does not restart, was it the last one that mattered?* ``ends_supervisor``: the end of a
   significant child may be the end of the supervisor.

Nothing here reads a clock or starts a process; times are arguments.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeVar

from supervision.exits import FAILURES, ExitKind
from supervision.spec import AutoShutdown, Restart, Strategy

RESTARTS_ON: Final[dict[Restart, frozenset[ExitKind]]] = {
    Restart.PERMANENT: frozenset(ExitKind),
    Restart.TRANSIENT: FAILURES,
    Restart.TEMPORARY: frozenset(),
}

C = TypeVar("C")


def affected(strategy: Strategy, children: tuple[C, ...], failed: C) -> tuple[C, ...]:
    """The children that a failure takes with it, in start order."""
    at = children.index(failed)
    match strategy:
        case Strategy.ONE_FOR_ONE | Strategy.SIMPLE_ONE_FOR_ONE:
            return children[at : at + 1]
        case Strategy.REST_FOR_ONE:
            return children[at:]
        case Strategy.ONE_FOR_ALL:
            return children


def ends_supervisor(auto_shutdown: AutoShutdown, others_active: bool) -> bool:
    """Whether the end of a significant child is to end its supervisor.

    ``others_active``: another significant child runs, or will run again.
    """
    match auto_shutdown:
        case AutoShutdown.NEVER:
            return False
        case AutoShutdown.ANY_SIGNIFICANT:
            return True
        case AutoShutdown.ALL_SIGNIFICANT:
            return not others_active


class RestartWindow:
    """Counts restarts inside a sliding window of ``period_s`` seconds."""

    def __init__(self, intensity: int, period_s: float) -> None:
        self.intensity = intensity
        self.period_s = period_s
        self._times: deque[float] = deque()

    def record(self, now: float) -> bool:
        """Note a restart at ``now`` (monotonic seconds). False: one too many, give up."""
        self._times.append(now)
        while now - self._times[0] > self.period_s:
            self._times.popleft()
        return len(self._times) <= self.intensity

    def count(self, now: float) -> int:
        """Restarts that still weigh at ``now``."""
        return sum(1 for one in self._times if now - one <= self.period_s)
