"""Monitors that a host has set, for Connection.

The root keeps one only while a thread waits for it: a thread that does not read could not take a
Down anyway. It may come late but is never lost, because a monitor names an incarnation: the root
answers at once if that has ended meanwhile, and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from supervision import forks
from supervision.errors import UnknownMonitor
from supervision.host_session import RENEW_S, ROOT_S, ThreadEndpoint, end_of_node
from supervision.messages import Demonitor, Down, Located, Monitor, WhereIs, new_ref
from supervision.monitors import NOPROC, has_process
from supervision.routing import LOOK_S, RETRY_S, Router


@dataclass(slots=True)
class _HostMonitor:
    """One that a caller has set; its Down, once it is known."""

    id: str
    incarnation: int
    boot: tuple[int, int]
    down: Down | None = None
    at_root: bool = False


class HostMonitors:
    """The monitors of one Connection; any thread may wait for any of them."""

    def __init__(self, router: Router, ask_root: Callable[[object, float], object]) -> None:
        """``ask_root`` asks a question that changes nothing, within so many seconds."""
        self._router = router
        self._ask_root = ask_root
        self._monitors: dict[str, _HostMonitor] = {}
        router.on_down.append(self._take)
        forks.register(self)

    def drop_inherited(self) -> None:
        """In a forked process: its parent's monitors are the parent's."""
        self._monitors = {}

    def _take(self, down: Down) -> None:
        one = self._monitors.get(down.ref)
        if one is not None:
            one.down = down

    def add(self, child_id: str, timeout_s: float) -> str:
        """Watch the present incarnation of a child; the ``ref`` for ``wait_down``.

        If it has ended already, or no such child is known, its Down is there at once. Raises
        NoReply if the root does not answer in time.
        """
        ref = new_ref()
        deadline = time.monotonic() + timeout_s
        while True:
            boot = self._router.boot
            left = max(0.0, deadline - time.monotonic())
            answer = self._ask_root(WhereIs(new_ref(), child_id), left)
            if isinstance(answer, Located):
                one = _HostMonitor(child_id, answer.entry.incarnation, boot)
                if not has_process(answer.entry):
                    reason = answer.entry.last_exit or NOPROC
                    one.down = Down(ref, child_id, one.incarnation, reason)
            else:  # it may have left the tree: the root remembers for a while why
                answer = self._ask_root(Monitor(ref, child_id, 0), left)
                one = _HostMonitor(child_id, 0, boot)
                one.down = answer if isinstance(answer, Down) else None
            if boot == self._router.boot and (one.down or one.incarnation):
                self._monitors[ref] = one
                return ref

    def wait(self, ref: str, timeout_s: float) -> Down | None:
        """The Down of this monitor, once; None if its target has not ended within ``timeout_s``.

        When the whole node ends, that is the reason. Any thread may wait, one at a time. Raises
        UnknownMonitor if there is no such monitor or its Down was taken.
        """
        deadline = time.monotonic() + timeout_s
        endpoint: ThreadEndpoint | None = None
        asked_at = 0.0
        while True:
            one = self._monitors.get(ref)
            if one is None:
                raise UnknownMonitor(ref)
            if one.down is None:
                reason = end_of_node(self._router.folder, one.boot)
                if reason is not None:
                    one.down = Down(ref, one.id, one.incarnation, reason)
            if one.down is not None:
                del self._monitors[ref]
                return one.down
            now = time.monotonic()
            if now >= deadline and endpoint is not None:
                return None
            if endpoint is None or now - asked_at > RENEW_S:
                endpoint, asked_at = self._router.endpoint(), now
                request = Monitor(ref, one.id, one.incarnation)
                one.at_root = endpoint.context.send(
                    self._router.record.root_address, request, ROOT_S
                )
            endpoint.next("", min(max(deadline, now + RETRY_S), now + LOOK_S), ref)

    def remove(self, ref: str) -> None:
        """Stop watching; a ``ref`` that is not watched is ignored."""
        one = self._monitors.pop(ref, None)
        if one is not None and one.at_root and one.boot == self._router.boot:
            self._router.endpoint().context.send(
                self._router.record.root_address, Demonitor(ref), ROOT_S
            )
