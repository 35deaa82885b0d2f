"""The connection of a host process (a CLI, a test, an application) to a running node.

Threads: a Connection may be shared; each thread gets a private endpoint of its own, so that one
thread never reads another's replies. Every request carries a ``ref`` and only messages with that
ref answer it: a late reply to an earlier request is dropped, not mistaken for the next one.

Forks: in a child process a Connection opens endpoints of the child's own when it is used. A stream
that was open across the fork stays the parent's, and raises ForkedProcess in the child.

Restarts: callers name a child, and the name finds its present process, also after the whole node
restarted (``routing.py``). When the process that was asked ends, the call raises at once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from supervision.address import Address
from supervision.codec import ValueCodec
from supervision.errors import NodeNotRunning, NoReply, TargetDown
from supervision.frozen import frozen
from supervision.host_monitors import HostMonitors
from supervision.machine import require_machine
from supervision.messages import (
    DirectoryListing,
    Down,
    Entry,
    ListDirectory,
    Located,
    WhereIs,
    WrongIncarnation,
    new_ref,
)
from supervision.node_file import NodeRecord, RuntimeDir
from supervision.routing import RETRY_S, SEND_S, Router, Sent

_QUIET_S: Final = 1.0
"""How long a stream may be silent before the node is checked."""
_GLANCE_S: Final = 0.001
"""What has arrived is read, also after the deadline: a slow reader loses nothing."""


@frozen
class _Limits:
    """How long a stream may take: in each silence, and as a whole."""

    idle_s: float
    ends_at: float

    def deadline(self) -> float:
        """Of a silence that begins now."""
        return min(self.ends_at, time.monotonic() + self.idle_s)


class Connection:
    """A connection to one node. Use ``attach``."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._monitors = HostMonitors(router, self._call_root)

    @classmethod
    def attach(
        cls,
        runtime_dir: Path,
        *,
        timeout_s: float = 5.0,
        codec: Callable[[tuple[str, ...]], ValueCodec] = ValueCodec,
    ) -> Connection:
        """A connection to the node of this folder, whose root has answered.

        ``codec`` makes that of each thread, from the packages whose values may travel.

        Raises NodeNotRunning at once if no node runs there, or after ``timeout_s`` if one runs but
        does not answer.
        """
        require_machine()
        connection = cls(Router(RuntimeDir(Path(runtime_dir)), codec))
        try:
            connection._call_root(ListDirectory(new_ref()), timeout_s)
        except NoReply as error:
            connection.close()
            record = connection.record
            why = f"pid {record.pid} does not answer"
            raise NodeNotRunning(Path(runtime_dir), why) from error
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def record(self) -> NodeRecord:
        """``node.json`` as it was read last."""
        return self._router.record

    # ── requests ─────────────────────────────────────────────────────────────

    def ask(self, target: str | Address, message: object, *, timeout_s: float) -> object:
        """Send and return the answer with the same ``ref``; raises NoReply at the deadline.

        Raises TargetDown, a NoReply, as soon as a *named* target is known to have ended without
        an answer, or its node has. A message that a process refused because it was for another one
        is sent again, to that one; a message that may have been handled never is.
        """
        ref = _ref_of(message)
        deadline = time.monotonic() + timeout_s
        while True:
            sent = self._router.send(target, message, deadline, timeout_s, wait=True)
            answer = self._router.answer(sent, target, ref, deadline)
            if answer is None:
                raise NoReply(target, timeout_s, "it has the message, or may have it")
            if not isinstance(answer, WrongIncarnation):
                return answer
            self._router.refused(sent.endpoint, answer)

    def tell(self, target: str | Address, message: object, *, timeout_s: float = SEND_S) -> None:
        """Send without an answer; raises NoReply if no process could be reached."""
        self._router.send(target, message, time.monotonic() + timeout_s, timeout_s)

    def stream(
        self,
        target: str | Address,
        message: object,
        *,
        idle_timeout_s: float,
        ends_at: float | None = None,
        on_quiet: Callable[[], None] | None = None,
        until_down: bool = False,
    ) -> Iterator[object]:
        """Send, then yield every message with the same ``ref`` until the caller stops.

        Raises NoReply when nothing came for ``idle_timeout_s``, or nothing more by ``ends_at`` on
        the monotonic clock; ForkedProcess in a forked child; and NodeRestarted as soon as it is
        seen that the node is another one than the message was sent to. ``on_quiet`` is called about
        every second in which nothing came; it may raise. With ``until_down``, TargetDown is raised
        as soon as the target has ended; without, another process may continue to answer. The
        message is sent at once, not at the first step. Iterate on the thread that called.
        """
        ref = _ref_of(message)

        def send(within_s: float) -> Sent:
            endpoint = self._router.endpoint()
            waiting = endpoint.streams[ref] = deque()
            try:
                deadline = time.monotonic() + within_s
                sent = self._router.send(target, message, deadline, within_s, wait=until_down)
            except BaseException:
                endpoint.streams.pop(ref, None)
                raise
            if sent.endpoint is not endpoint:
                endpoint.streams.pop(ref, None)
                sent.endpoint.streams[ref] = waiting
            return sent

        limits = _Limits(idle_timeout_s, math.inf if ends_at is None else ends_at)
        sent = send(limits.deadline() - time.monotonic())
        return self._stream(sent, send, ref, target, limits, on_quiet)

    def _stream(
        self,
        sent: Sent,
        send: Callable[[float], Sent],
        ref: str,
        target: str | Address,
        limits: _Limits,
        on_quiet: Callable[[], None] | None,
    ) -> Iterator[object]:
        deadline = limits.deadline()
        try:
            while True:
                sent.endpoint.context.require_own()
                waiting = sent.endpoint.streams[ref]
                if waiting:
                    message = waiting.popleft()
                else:
                    now = time.monotonic()
                    quiet_at = max(now + _GLANCE_S, min(deadline, now + _QUIET_S))
                    message = self._router.next_or_down(sent, target, ref, quiet_at)
                if isinstance(message, WrongIncarnation):
                    self._router.refused(sent.endpoint, message)
                    sent.endpoint.streams.pop(ref, None)
                    sent = send(max(RETRY_S, deadline - time.monotonic()))
                elif message is not None:
                    yield message
                    deadline = limits.deadline()
                else:
                    if time.monotonic() >= deadline:
                        raise NoReply(target, limits.idle_s, "the stream went quiet")
                    self._router.require_same_boot(sent.endpoint)
                    sent.endpoint.renew(
                        self._router.record.root_address, sent.route.id, sent.monitor
                    )
                    if on_quiet is not None:
                        on_quiet()
        finally:
            sent.endpoint.streams.pop(ref, None)

    # ── monitors ─────────────────────────────────────────────────────────────

    def monitor(self, child_id: str, *, timeout_s: float = 5.0) -> str:
        """Watch the present incarnation of a child; the ``ref`` for ``wait_down``.

        If it has ended already, or no such child is known (``NOPROC``), its Down is there at once.
        Raises NoReply if the root does not answer in time.
        """
        return self._monitors.add(child_id, timeout_s)

    def wait_down(self, ref: str, timeout_s: float) -> Down | None:
        """The Down of this monitor, once; None if its target has not ended within ``timeout_s``.

        When the whole node ends, that is the reason. Any thread may wait, one at a time. Raises
        UnknownMonitor if there is no such monitor or its Down was taken.
        """
        return self._monitors.wait(ref, timeout_s)

    def demonitor(self, ref: str) -> None:
        """Stop watching; a ``ref`` that is not watched is ignored."""
        self._monitors.remove(ref)

    # ── the directory ────────────────────────────────────────────────────────

    def where(self, child_id: str, *, timeout_s: float = 5.0) -> Entry | None:
        """The root's entry for an id, which may be down; None if the tree has no such child."""
        answer = self._call_root(WhereIs(new_ref(), child_id), timeout_s)
        return answer.entry if isinstance(answer, Located) else None

    def directory(self, *, timeout_s: float = 5.0) -> tuple[Entry, ...]:
        """Every entry of the root's directory."""
        answer = self._call_root(ListDirectory(new_ref()), timeout_s)
        return answer.entries if isinstance(answer, DirectoryListing) else ()

    def _call_root(self, request: object, timeout_s: float) -> object:
        """Ask the root; again if it dies meanwhile, because these requests change nothing."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                return self.ask("root", request, timeout_s=left)
            except TargetDown:
                if time.monotonic() + RETRY_S > deadline:
                    raise
                self._router.endpoint().next("", time.monotonic() + RETRY_S)
                self._router.reread()

    def close(self) -> None:
        """Close the endpoints of all threads. No thread may be inside a call."""
        self._router.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ref_of(message: object) -> str:
    ref = getattr(message, "ref", None)
    if not isinstance(ref, str) or not ref:
        raise TypeError(f"a {type(message).__name__} has no ref to recognise its answer by")
    return ref
