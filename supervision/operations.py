"""How a supervisor starts and stops its children: in which order, and with which effects.

A static supervisor does one thing at a time, from a queue, and waits for each: a start until the
child is ready, a stop until it is gone. A dynamic one does everything at once. Which child starts
or stops, and why, is decided in ``core.py``.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Container, Mapping

from supervision.effects import Arm, AskToStop, Child, Effect, Kill, Spawn, State, Timer
from supervision.spec import BRUTAL_KILL, ShutdownMarker


class Op(enum.Enum):
    """What is done to a child."""

    START = "start"
    STOP = "stop"


class Operations:
    """What is under way, and what comes after it. Appends the effects to ``out``."""

    def __init__(
        self, children: Mapping[str, Child], out: list[Effect], *, one_at_a_time: bool
    ) -> None:
        self._children = children
        self._out = out
        self._one_at_a_time = one_at_a_time
        self._current: tuple[Op, str] | None = None
        self._waiting: deque[tuple[Op, str]] = deque()

    @property
    def is_idle(self) -> bool:
        """Nothing is under way and nothing waits. Always so where children are independent."""
        return self._current is None and not self._waiting

    def is_to_stop(self, child: Child) -> bool:
        """Whether the child's stop is queued and not begun."""
        return (Op.STOP, child.id) in self._waiting

    # ── requests ─────────────────────────────────────────────────────────────

    def start(self, child: Child) -> None:
        """Start the child, in its turn."""
        if not child.has_process:
            child.state = State.RESTARTING
        if self._one_at_a_time:
            self._add(Op.START, child)
        else:
            self._begin_start(child)

    def stop(self, child: Child) -> None:
        """Stop the child, in its turn."""
        if child.state is State.STOPPING:
            return
        if not self._one_at_a_time:
            self._begin_stop(child)
        elif self._current == (Op.START, child.id):
            # A start in flight is aborted, so that a stop does not wait for a slow init.
            self._current = (Op.STOP, child.id)
            self._begin_stop(child)
        else:
            self._add(Op.STOP, child)

    def bring_back(self, leader_id: str) -> None:
        """The pause is over, or there was none: start the children that went down with this one."""
        for child in self._children.values():
            if child.waits_for == leader_id:
                self.start(child)

    def kill(self, child: Child, why: str) -> None:
        """SIGKILL this incarnation, once."""
        if not child.killed:
            child.killed = True
            self._out.append(Kill(child.id, child.incarnation, why))

    def drop_starts(self, ids: Container[str]) -> None:
        """These children are not to start, or not now."""
        self._waiting = deque(
            one for one in self._waiting if one[0] is Op.STOP or one[1] not in ids
        )

    def only_stops(self) -> None:
        """Everything ends: what waits is dropped, and a start under way is not waited for."""
        self._waiting.clear()
        if self._current is not None and self._current[0] is Op.START:
            self._current = None

    # ── progress ─────────────────────────────────────────────────────────────

    def started(self, child: Child) -> None:
        """The child is ready, or its start has failed."""
        if self._current == (Op.START, child.id):
            self._current = None

    def stopped(self, child: Child) -> None:
        """The child is gone."""
        if self._current == (Op.STOP, child.id):
            self._current = None
        if self.is_to_stop(child):
            self._waiting.remove((Op.STOP, child.id))

    def advance(self) -> None:
        """Begin what is queued until one operation must be waited for."""
        while self._current is None and self._waiting:
            op, child_id = self._waiting.popleft()
            child = self._children.get(child_id)
            if child is None:
                continue
            if op is Op.START and not child.has_process:
                self._current = (op, child_id)
                self._begin_start(child)
            elif op is Op.STOP and child.has_process:
                self._current = (op, child_id)
                self._begin_stop(child)

    def _add(self, op: Op, child: Child) -> None:
        if (op, child.id) not in self._waiting:
            self._waiting.append((op, child.id))

    def _begin_start(self, child: Child) -> None:
        child.incarnation += 1
        child.state = State.STARTING
        child.failure = None
        child.killed = False
        child.waits_for = None
        self._out.append(Spawn(child.id, child.incarnation))
        self._out.append(Arm(Timer.INIT, child.id, child.incarnation, child.spec.init_timeout_s))

    def _begin_stop(self, child: Child) -> None:
        child.state = State.STOPPING
        how = child.spec.shutdown
        if how is BRUTAL_KILL:
            self.kill(child, "brutal_kill")
            return
        self._out.append(AskToStop(child.id, child.incarnation))
        if not isinstance(how, ShutdownMarker):
            self._out.append(Arm(Timer.STOP, child.id, child.incarnation, float(how)))
