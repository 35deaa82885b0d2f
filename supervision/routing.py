"""Finding a process of a node by its name, from outside, and sending to it: for Connection.

Names are looked up at the root and remembered with their incarnation. Where no process is found,
the Router looks again, with ``node.json`` read again, until the deadline. A message is sent a
second time only if it certainly reached no process. While a thread waits for an answer, a monitor
on the target and a check of the node, several times a second, end the wait if none can come.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from supervision import forks
from supervision.address import Address
from supervision.codec import ValueCodec
from supervision.errors import NodeNotRunning, NodeRestarted, NoReply, TargetDown
from supervision.frozen import frozen
from supervision.host_context import HostContext
from supervision.host_session import ThreadEndpoint, end_of_node
from supervision.messages import (
    Addressed,
    ChildStarted,
    Down,
    Entry,
    Located,
    WhereIs,
    WrongIncarnation,
    new_ref,
)
from supervision.node_file import NodeRecord, RuntimeDir
from supervision.session import Secret

SEND_S: Final = 5.0
"""A process that is not stuck accepts a message in milliseconds, however long it handles it."""
RETRY_S: Final = 0.005
LOOK_S: Final = 0.1
"""How often a waiting thread checks that the node runs; that a target ended, the root reports."""
_UNTIL_UP_S: Final = 1.0
"""The root is asked to answer when a child is up, and asked again after this."""


@frozen
class Route:
    """Where a message goes, or why it cannot go now."""

    address: Address | None
    message: object = None
    id: str = ""
    """The name, if there is one to watch."""
    incarnation: int = 0
    why: str = ""


@frozen
class Sent:
    """A message that arrived, or may have arrived."""

    endpoint: ThreadEndpoint
    route: Route
    monitor: str
    """The ref of the standing monitor on its target, or empty."""


class Router:
    """The way to one node: its record, the endpoints of all threads, and the entries of names."""

    def __init__(
        self, folder: RuntimeDir, codec: Callable[[tuple[str, ...]], ValueCodec] = ValueCodec
    ) -> None:
        """``codec`` makes that of each endpoint, from the packages whose values may travel.

        Raises NodeNotRunning if no node lives in this folder.
        """
        self.folder = folder
        self._codec = codec
        self.record, self._secret = _read(folder)
        self.on_down: list[Callable[[Down], None]] = []
        """Called with every Down that arrives, on the thread that reads it."""
        self._here = threading.local()
        self._lock = threading.Lock()
        self._endpoints: list[ThreadEndpoint] = []
        self._entries: dict[str, Entry] = {}
        self._closed = False
        self._process = forks.here()
        forks.register(self)

    def drop_inherited(self) -> None:
        """In a forked process: forget the parent's endpoints; ``endpoint`` makes new ones here."""
        self._process = forks.here()
        endpoints, self._endpoints = self._endpoints, []
        self._lock = threading.Lock()  # a thread of the parent may have held the old one
        self._here = threading.local()
        self._entries = {}
        for endpoint in endpoints:
            endpoint.context.close()

    def close(self) -> None:
        """Close the endpoints of all threads. No thread may be inside a call."""
        if not forks.is_here(self._process):
            self.drop_inherited()
        with self._lock:
            self._closed = True
            for endpoint in self._endpoints:
                self._close_endpoint(endpoint)
            self._endpoints.clear()

    @property
    def boot(self) -> tuple[int, int]:
        """(pid, boot) of the node as it was known last."""
        return self.record.pid, self.record.boot

    def send(
        self,
        target: str | Address,
        message: object,
        deadline: float,
        timeout_s: float,
        *,
        wait: bool = False,
    ) -> Sent:
        """Send until it has arrived or may have; ``wait`` sets a monitor on a named target."""
        why = ""
        while True:
            endpoint = self.endpoint()
            route = self._resolve(endpoint, target, message, deadline)
            why = route.why or why
            if route.address is not None:
                monitor = ""
                if wait and route.id:
                    monitor = endpoint.watch(self.record.root_address, route.id, route.incarnation)
                left = min(SEND_S, max(0.0, deadline - time.monotonic()))
                if endpoint.context.send(route.address, route.message, left):
                    return Sent(endpoint, route, monitor)
                why = f"no process accepts messages at {route.address}"
                if isinstance(target, str):
                    self._entries.pop(target, None)
            if time.monotonic() + RETRY_S > deadline:
                raise NoReply(target, timeout_s, why)
            endpoint.next("", time.monotonic() + RETRY_S)
            self.reread()

    def _resolve(
        self, endpoint: ThreadEndpoint, target: str | Address, message: object, deadline: float
    ) -> Route:
        if isinstance(target, Address):
            return Route(target, message)
        root = self.record.root_address
        if target == "root":
            return Route(root, message)
        entry = self._entries.get(target)
        if entry is None or not entry.is_up:
            until_up_s = min(_UNTIL_UP_S, max(0.0, deadline - time.monotonic()))
            request = WhereIs(new_ref(), target, until_up_s)
            left = min(SEND_S, max(0.0, deadline - time.monotonic()))
            if not endpoint.context.send(root, request, left):
                return Route(None, why="the root supervisor is gone" if left > RETRY_S else "")
            answer = self._await_root(endpoint, request.ref, deadline)
            if not isinstance(answer, Located):
                return Route(None, why="the directory has no such id" if answer else "")
            entry = answer.entry
        if not entry.is_up or entry.address is None:
            return Route(None, why=f"it is {entry.state} (last exit: {entry.last_exit})")
        self._entries[target] = entry
        addressed = Addressed(entry.id, entry.incarnation, message)
        return Route(entry.address, addressed, entry.id, entry.incarnation)

    def _await_root(self, endpoint: ThreadEndpoint, ref: str, deadline: float) -> object | None:
        """The root's answer; None at the deadline, or when that root is gone."""
        while (now := time.monotonic()) < deadline:
            answer = endpoint.next(ref, min(deadline, now + LOOK_S))
            if answer is not None or end_of_node(self.folder, endpoint.boot) is not None:
                return answer
        return None

    def answer(
        self, sent: Sent, target: str | Address, ref: str | None, deadline: float
    ) -> object | None:
        """The answer, or None at the deadline; raises TargetDown when it will not come.

        Without ``ref`` any message is the answer.
        """
        while (now := time.monotonic()) < deadline:
            answer = self.next_or_down(sent, target, ref, min(deadline, now + LOOK_S))
            if answer is not None:
                return answer
            reason = end_of_node(self.folder, sent.endpoint.boot)
            if reason is not None:
                unread_answer = sent.endpoint.unread_answer(ref, sent.route.address)
                if unread_answer is not None:
                    return unread_answer
                incarnation = sent.route.incarnation or sent.endpoint.boot[1]
                raise TargetDown(target, incarnation, reason)
            sent.endpoint.renew(self.record.root_address, sent.route.id, sent.monitor)
        return None

    def next_or_down(
        self, sent: Sent, target: str | Address, ref: str | None, deadline: float
    ) -> object | None:
        """The next message with this ref; None at the deadline; raises TargetDown at its Down."""
        message = sent.endpoint.next(ref, deadline, sent.monitor)
        if not (isinstance(message, Down) and message.ref == sent.monitor):
            return message
        unread_answer = sent.endpoint.unread_answer(ref, sent.route.address)
        if unread_answer is not None:
            return unread_answer
        raise TargetDown(target, message.incarnation, message.reason)

    def refused(self, endpoint: ThreadEndpoint, refusal: WrongIncarnation) -> None:
        """A process refused a message: look its target up again, a moment later."""
        self._forget(refusal.id, refusal.wanted)
        endpoint.next("", time.monotonic() + RETRY_S)

    def _notice(self, message: object) -> None:
        """Take note of every message, before it is matched with a request."""
        match message:
            case ChildStarted(_, entry):  # the root may learn of it a moment later
                self._entries[entry.id] = entry
            case Down(_, child_id, incarnation, _):
                self._forget(child_id, incarnation)
                for notify in self.on_down:
                    notify(message)
            case _:
                pass

    def _forget(self, child_id: str, incarnation: int) -> None:
        entry = self._entries.get(child_id)
        if entry is not None and entry.incarnation <= incarnation:
            self._entries.pop(child_id, None)

    def endpoint(self) -> ThreadEndpoint:
        """This thread's endpoint to the present boot of the node."""
        if not forks.is_here(self._process):
            self.drop_inherited()
        boot = self.boot
        endpoint: ThreadEndpoint | None = getattr(self._here, "endpoint", None)
        if endpoint is not None and endpoint.boot == boot and not self._closed:
            return endpoint
        with self._lock:
            if self._closed:
                raise NodeNotRunning(self.folder.path, "this connection is closed")
            if endpoint is not None:
                self._endpoints.remove(endpoint)
                self._close_endpoint(endpoint)
            self._close_abandoned()
            context = HostContext(self._secret, self._codec(self._secret.packages))
            endpoint = ThreadEndpoint(context, boot, threading.current_thread(), self._notice)
            self._endpoints.append(endpoint)
        self._here.endpoint = endpoint
        return endpoint

    def _close_abandoned(self) -> None:
        """Close the endpoints of threads that have ended."""
        for one in [one for one in self._endpoints if not one.thread.is_alive()]:
            self._endpoints.remove(one)
            self._close_endpoint(one)

    def _close_endpoint(self, endpoint: ThreadEndpoint) -> None:
        is_current = endpoint.boot == self.boot and end_of_node(self.folder, endpoint.boot) is None
        endpoint.close(self.record.root_address if is_current else None)

    def require_same_boot(self, endpoint: ThreadEndpoint) -> None:
        """Raises NodeRestarted if the node is not the one of this endpoint any more."""
        self.reread()
        if self.boot != endpoint.boot:
            raise NodeRestarted(self.folder.path)

    def reread(self) -> None:
        """Read ``node.json`` again: the node may have restarted."""
        record = self.folder.read()
        if record is None or not record.is_alive:
            raise NodeNotRunning(self.folder.path, "it has stopped")
        if (record.pid, record.boot) == (self.record.pid, self.record.boot):
            return
        if record.pid != self.record.pid:
            with contextlib.suppress(NodeNotRunning):
                record, self._secret = _read(self.folder)
        self.record = record
        self._entries.clear()


def _read(folder: RuntimeDir) -> tuple[NodeRecord, Secret]:
    record, cookie = folder.read(), folder.cookie()
    if record is None or cookie is None:
        raise NodeNotRunning(folder.path, "there is no readable node.json and cookie")
    if not record.is_alive:
        raise NodeNotRunning(folder.path, f"its pid {record.pid} is dead")
    return record, Secret(cookie, record.packages)
