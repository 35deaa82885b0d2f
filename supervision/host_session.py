"""What one thread of a host owns of a Connection: its endpoint, and what it waits for there.

A thread reads its endpoint only while it waits for something. So a message for another
request is kept here meanwhile, and a monitor whose Down may have been lost while the thread did not
read is renewed at the root before it is relied on again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from supervision import process
from supervision.address import Address
from supervision.exits import ExitKind, ExitReason
from supervision.host_context import HostContext
from supervision.link import Outcome
from supervision.messages import Demonitor, Down, Monitor, new_ref
from supervision.node_file import RuntimeDir

_UNREAD_S: Final = 5.0
"""After so long without reading, the root may have forgotten this thread's monitors: renew them."""
RENEW_S: Final = 5.0
"""How often to renew while waiting: when the root has too many monitors it forgets old ones."""
ROOT_S: Final = 1.0
"""The root accepts at once; if it is stuck, an ask continues without a monitor."""
_GOODBYE_S: Final = 0.1
_DOWNS: Final = 64


@dataclass(slots=True)
class _Standing:
    """The monitor that this thread has on one name."""

    ref: str
    incarnation: int
    renewed_at: float | None = None
    """None: not yet, or its Down may have been missed since."""


@dataclass(slots=True)
class ThreadEndpoint:
    """What one thread owns. ``notice`` sees every message first."""

    context: HostContext
    boot: tuple[int, int]
    """(pid, boot) of the node that this endpoint belongs to."""
    thread: threading.Thread
    notice: Callable[[object], None]
    streams: dict[str, deque[object]] = field(default_factory=dict)
    """Messages that came for a stream while its thread asked something else."""
    standing: dict[str, _Standing] = field(default_factory=dict)
    downs: dict[str, Down] = field(default_factory=dict)
    """The last ones that came, by ref: one may arrive while the thread waits for something else."""
    read_at: float = field(default_factory=time.monotonic)

    def next(self, ref: str | None, deadline: float, monitor: str = "") -> object | None:
        """The next message with this ref (with None, the next of any), or the Down of this monitor.

        None at the deadline.

        What comes for a stream is kept for it; anything else is dropped.
        """
        if monitor in self.downs:
            return self.downs[monitor]
        self._check_liveness()
        try:
            while True:
                # A thread that gets its CPU late still takes what has been read for it.
                message = self.context.receive(max(0.0, deadline - time.monotonic()))
                if message is None:
                    return None
                if self._is_for(message, ref, monitor):
                    return message
        finally:
            self.read_at = time.monotonic()

    def unread_answer(self, ref: str | None, address: Address | None) -> object | None:
        """What a process that has ended had sent with this ref; None if nothing."""
        if address is not None:
            for message in self.context.receive_until_closed(address):
                if self._is_for(message, ref, ""):
                    return message
        return None

    def _is_for(self, message: object, ref: str | None, monitor: str) -> bool:
        """Note what came; whether it is the answer, or the Down, that is waited for."""
        self.notice(message)
        its_ref = getattr(message, "ref", None)
        if isinstance(message, Down):
            self._keep(message)
        if its_ref == ref or (monitor and its_ref == monitor):
            return True
        if its_ref in self.streams:
            self.streams[its_ref].append(message)
            return False
        return ref is None and not isinstance(message, Down)

    def watch(self, root: Address, child_id: str, incarnation: int) -> str:
        """The ref of this thread's monitor on an incarnation, set or renewed if need be.

        One message the first time, and none while the thread keeps reading.
        """
        self._check_liveness()
        one = self.standing.get(child_id)
        if one is None or one.incarnation != incarnation:
            one = self.standing[child_id] = _Standing(new_ref(), incarnation)
        if one.renewed_at is None:
            self._renew(root, child_id, one)
        return one.ref

    def renew(self, root: Address, child_id: str, monitor: str) -> None:
        """While waiting: renew a monitor that has stood for long."""
        one = self.standing.get(child_id)
        if one is None or one.ref != monitor:
            return
        if one.renewed_at is None or time.monotonic() - one.renewed_at > RENEW_S:
            self._renew(root, child_id, one)

    def close(self, root: Address | None) -> None:
        """Close the endpoint; with ``root``, take back this thread's monitors there."""
        if root is not None and self.standing and self.context.is_own:
            self.context.send(root, Demonitor(""), _GOODBYE_S)
        self.context.close()

    def _check_liveness(self) -> None:
        now = time.monotonic()
        if now - self.read_at <= _UNREAD_S:
            return
        for one in self.standing.values():
            if one.renewed_at is not None and now - one.renewed_at > _UNREAD_S:
                one.renewed_at = None

    def _renew(self, root: Address, child_id: str, one: _Standing) -> None:
        """Not waited for: a root that is busy must not hold up what it only watches."""
        one.renewed_at = time.monotonic()

        def sent(outcome: Outcome) -> None:
            if outcome is not Outcome.ARRIVED:
                one.renewed_at = None

        self.context.post(root, Monitor(one.ref, child_id, one.incarnation), sent)

    def _keep(self, down: Down) -> None:
        one = self.standing.get(down.id)
        if one is not None and one.ref == down.ref:
            del self.standing[down.id]
        self.downs[down.ref] = down
        if len(self.downs) > _DOWNS:
            del self.downs[next(iter(self.downs))]


def end_of_node(folder: RuntimeDir, boot: tuple[int, int]) -> ExitReason | None:
    """Why this boot of the node is over, as seen from outside; None while it runs."""
    record = folder.read()
    if record is None:
        return ExitReason(ExitKind.SHUTDOWN, "the node has stopped")
    if not record.is_alive:
        return ExitReason(ExitKind.KILLED, "the launcher died, and the node with it")
    if (record.pid, record.boot) != boot:
        return ExitReason(ExitKind.KILLED, "the node restarted")
    if not process.is_alive(record.root_pid):
        return ExitReason(ExitKind.KILLED, "the root supervisor died, and the node with it")
    return None
