"""What one event loop has of a ``LoopConnection``: an endpoint, and the requests that wait there.

Messages are put into the ``Box`` of their ``ref``, which wakes the task that waits there. What is
due by time (acknowledgements, deadlines, monitors, a look whether the node lives) are timers of the
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from supervision import forks
from supervision.address import Address
from supervision.endpoint import Endpoint
from supervision.errors import (
    ForkedProcess,
    NodeNotRunning,
    NodeRestarted,
    SupervisionError,
    TargetDown,
)
from supervision.host_session import RENEW_S, ThreadEndpoint, end_of_node
from supervision.link import Done, Outcome
from supervision.messages import Down
from supervision.routing import LOOK_S, Router
from supervision.session import Secret

MAX_UNREAD: Final = 10_000
"""Messages that one request may hold unread; then its ``on_full`` is called, once."""
_LOOK_ANYWAY_S: Final = 1.0
"""How long messages alone may show that the node lives: its processes end with it, at once."""
_CLOSING_S: Final = 0.5
"""How long the connection of a process that has ended may stand until its messages are read."""


class Sink(Protocol):
    """Takes messages in place of the task that waits for them, without waking it.

    Called between the steps of tasks. Must not raise: the messages of others come after.
    """

    def take(self, message: object) -> bool:
        """Whether it is taken. Else the task gets it and all that follow."""

    def flush(self) -> None:
        """All that had come is handed out; called after one or several ``take`` that were True."""


class Box:
    """Messages with one ref, and the task that waits for them."""

    __slots__ = (
        "address", "error", "fed_at", "has_received", "incarnation", "is_sent", "looks_at_node",
        "messages", "monitor", "on_full", "sink", "target", "waiter",
    )  # fmt: skip

    def __init__(self) -> None:
        self.messages: deque[object] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.error: SupervisionError | None = None
        """Raised when no message is left."""
        self.is_sent = False
        self.has_received = False
        self.address: Address | None = None
        self.incarnation = 0
        self.monitor = ""
        self.target: str | Address = ""
        self.looks_at_node = False
        self.on_full: Callable[[], None] | None = None
        self.sink: Sink | None = None
        """Until the first message that it does not take, or that comes while no task waits."""
        self.fed_at = 0.0
        """When it took the last one."""

    def put(self, message: object) -> Sink | None:
        """A message came. The sink that has taken it; None: the task gets it."""
        sink, waiter = self.sink, self.waiter
        if sink is not None:
            waits = waiter is not None and not (waiter.done() or self.messages or self.error)
            if waits and sink.take(message):
                self.has_received = True
                self.fed_at = time.monotonic()
                return sink
            self.sink = None
        self.append(message)
        return None

    def append(self, message: object) -> None:
        """A message came for the task; ``ThreadEndpoint`` calls this, which has boxes by ref."""
        self.messages.append(message)
        self.has_received = True
        if self.on_full is not None and len(self.messages) >= MAX_UNREAD:
            on_full, self.on_full = self.on_full, None
            on_full()
        self.wake()

    def wake(self) -> None:
        """Let the task that waits look again."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: SupervisionError) -> None:
        """Raise this when no message is left."""
        if self.error is None:
            self.error = error
            self.wake()


class _Context:
    """What ``ThreadEndpoint`` needs of an endpoint, on a loop."""

    def __init__(self, secret: Secret, wake: Callable[[], None]) -> None:
        self.endpoint = Endpoint(secret)
        self._wake = wake
        self._process = forks.here()

    @property
    def is_own(self) -> bool:
        return forks.is_here(self._process)

    @property
    def owner_pid(self) -> int:
        return self._process[0]

    def post(self, target: Address, message: object, done: Done | None = None) -> None:
        self.endpoint.send(target, message, done)
        self._wake()


class LoopEndpoint:
    """What one loop has of a ``LoopConnection``: an endpoint, and the requests that wait there."""

    def __init__(self, router: Router, secret: Secret, loop: asyncio.AbstractEventLoop) -> None:
        import threading

        self._router = router
        self._loop = loop
        self._context = _Context(secret, self._arm)
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._waiting: dict[Box, float] = {}
        """Boxes that a task waits at, and until when."""
        self._ending: dict[Box, tuple[TargetDown, float]] = {}
        """Boxes whose target has ended; its last messages may still come until then."""
        self.late: dict[str, tuple[Callable[[object], None], float]] = {}
        """What is called with the first message of a request that was left, and until when."""
        self.read_from: dict[Address, float] = {}
        """When something came last, by sender."""
        self._came_at = self._looked_at = 0.0
        """When something came from anywhere, and when it was looked whether the node lives."""
        self._fed: dict[Sink, None] = {}
        """Sinks that have taken something of what is being handed out."""
        self._sending: set[asyncio.Future[Outcome]] = set()
        """Outcomes of messages that a task waits for."""
        self.is_closed = False
        self.host = ThreadEndpoint(
            self._context,  # type: ignore[arg-type]  # posts, which is all that is used of it here
            router.boot,
            threading.current_thread(),
            router._notice,
        )
        loop.add_reader(self._context.endpoint.fileno(), self._read)

    # ── requests ─────────────────────────────────────────────────────────────

    def open(self, ref: str) -> Box:
        """A box for messages with this ref."""
        box = Box()
        self.host.streams[ref] = box  # type: ignore[assignment]  # it appends, no more
        return box

    def forget(self, ref: str) -> None:
        """Drop what comes with this ref from now on."""
        box = self.host.streams.pop(ref, None)
        if isinstance(box, Box):
            self._ending.pop(box, None)

    def release(self, box: Box) -> None:
        """Let the task that waits at a forgotten box look again; from any thread."""
        if box.waiter is None:
            return
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if is_here:
            box.wake()
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the task with it
            self._loop.call_soon_threadsafe(box.wake)

    def require_own(self) -> None:
        """Raises ForkedProcess in a process that was forked from the owner."""
        if not self._context.is_own:
            raise ForkedProcess("this endpoint to a node", self._context.owner_pid)

    async def wait(self, box: Box, deadline: float) -> None:
        """Wait for a message, an error, or the deadline, to within ``LOOK_S``."""
        if box.messages or box.error is not None:
            return
        if self.is_closed:
            raise NodeNotRunning(self._router.folder.path, "this connection is closed")
        box.waiter = self._loop.create_future()
        self._waiting[box] = deadline
        if self._ticker is None:
            self._ticker = self._loop.call_later(LOOK_S, self._tick)
        try:
            await box.waiter
        finally:
            box.waiter = None
            self._waiting.pop(box, None)

    async def send(self, target: Address, message: object, timeout_s: float) -> bool:
        """Send; returns when the target's process has it, at the latest after ``timeout_s``.

        False: it was certainly not delivered. True: it was, or that is unknown.
        """
        arrived: asyncio.Future[Outcome] = self._loop.create_future()
        self._sending.add(arrived)
        arrived.add_done_callback(self._sending.discard)

        def done(outcome: Outcome) -> None:
            if not arrived.done():
                arrived.set_result(outcome)

        self._read()  # a process that died since the last look has closed its connection
        if self.is_closed:
            arrived.cancel()
            raise NodeNotRunning(self._router.folder.path, "this connection is closed")
        outgoing = self._context.endpoint.send(target, message, done, prompt=True)
        self._arm()
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                outcome = await arrived
        except TimeoutError:
            return not self._context.endpoint.cancel(target, outgoing)
        return outcome is not Outcome.REFUSED

    def post(self, target: Address, message: object) -> None:
        """Send and wait for nothing."""
        if not self.is_closed and self._context.is_own:
            self._context.post(target, message)

    def unwritten(self) -> int:
        """Messages that have not left this process."""
        return 0 if self.is_closed else self._context.endpoint.unwritten()

    # ── the endpoint in the loop ─────────────────────────────────────────────

    def _arm(self) -> None:
        """See to it that the endpoint is served when something is due by time."""
        if self.is_closed:
            return
        due = self._context.endpoint.due_s()
        timer = self._timer
        if (
            isinstance(timer, asyncio.TimerHandle)
            and due is not None
            and due > 0
            and timer.when() <= self._loop.time() + due
        ):
            return  # it is served in time, and again then: cheaper than another timer
        if timer is not None:
            timer.cancel()
            self._timer = None
        if due is not None and due <= 0:
            self._timer = self._loop.call_soon(self._at_timer)
        elif due is not None:
            self._timer = self._loop.call_later(due, self._at_timer)

    def _at_timer(self) -> None:
        self._timer = None
        self._read()

    def _read(self) -> None:
        """Serve the endpoint, and hand out what has come."""
        if self.is_closed or not self._context.is_own:
            return
        endpoint = self._context.endpoint
        waiting = endpoint.inbox.copy()
        endpoint.inbox.clear()  # else poll would not look at its connections
        endpoint.poll(0.0)
        waiting.extend(endpoint.inbox)
        endpoint.inbox.clear()
        now = self.host.read_at = time.monotonic()
        for sender, message in waiting:
            self.read_from[sender] = self._came_at = now
            self._take(message)
        if self._fed:
            fed, self._fed = self._fed, {}
            for sink in fed:
                sink.flush()
        if self._ending:
            self._look_at_ending()
        self._arm()

    def _take(self, message: object) -> None:
        ref = getattr(message, "ref", None)
        box = self.host.streams.get(ref)  # type: ignore[arg-type]  # no other ref is in it
        if box is not None:
            self.host.notice(message)
            sink = box.put(message)  # type: ignore[attr-defined]  # a Box, see ``open``
            if sink is not None:
                self._fed[sink] = None
            return
        if isinstance(message, Down):
            self.host._is_for(message, "", "")
            self._down(message)
            return
        self.host.notice(message)
        late = self.late.pop(ref, None) if isinstance(ref, str) else None
        if late is not None:
            late[0](message)

    def _boxes(self) -> Iterator[Box]:
        for box in list(self.host.streams.values()):
            if isinstance(box, Box):
                yield box

    def _down(self, down: Down) -> None:
        until = time.monotonic() + _CLOSING_S
        for box in self._boxes():
            if box.monitor == down.ref:
                error = TargetDown(box.target, down.incarnation, down.reason)
                self._ending.setdefault(box, (error, until))

    def check(self, box: Box) -> None:
        """The monitor was set before the box had its ref: its Down may have come already."""
        down = self.host.downs.get(box.monitor)
        if down is not None:
            self._down(down)
            self._arm()

    def _look_at_ending(self) -> None:
        """What a process sent before it ended has been read once its connection is closed."""
        now = time.monotonic()
        for box, (error, until) in list(self._ending.items()):
            address = box.address
            if address is None or now >= until or not self._context.endpoint.is_connected(address):
                del self._ending[box]
                box.fail(error)

    def _tick(self) -> None:
        """Several times a second while a task waits: deadlines, monitors, and the node itself."""
        self._ticker = None
        if self.is_closed or not self._context.is_own or not self._waiting:
            return
        self._read()
        now = time.monotonic()
        if now - self._came_at >= LOOK_S or now - self._looked_at >= _LOOK_ANYWAY_S:
            self._looked_at = now
            self._look_at_node()
        root = self._router.record.root_address
        for child_id, standing in list(self.host.standing.items()):
            if standing.renewed_at is None or now - standing.renewed_at > RENEW_S:
                self.host.renew(root, child_id, standing.ref)
        for box, deadline in list(self._waiting.items()):
            if now >= deadline:
                box.wake()
        for ref in [ref for ref, (_, until) in self.late.items() if now >= until]:
            del self.late[ref]
        if self._waiting and not self.is_closed:
            self._ticker = self._loop.call_later(LOOK_S, self._tick)

    def _look_at_node(self) -> None:
        """Fail what waits for an answer of a node that has ended, or is another one now."""
        reason = end_of_node(self._router.folder, self.host.boot)
        if reason is None:
            return
        error: SupervisionError | None = None
        try:
            self._router.reread()
            if self._router.boot != self.host.boot:
                error = NodeRestarted(self._router.folder.path)
        except NodeNotRunning as stopped:
            error = stopped
        until = time.monotonic() + _CLOSING_S
        for box in self._boxes():
            if box.looks_at_node and box.is_sent:
                down = TargetDown(box.target, box.incarnation or self.host.boot[1], reason)
                self._ending.setdefault(box, (down, until))
            elif error is not None and not box.looks_at_node:
                box.fail(error)

    # ── ending ───────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Close the endpoint; what still waits raises NodeNotRunning, or NodeRestarted."""
        if self.is_closed:
            return
        if not self._context.is_own:
            self.abandon()
            return
        self.is_closed = True
        self._loop.remove_reader(self._context.endpoint.fileno())
        for timer in (self._timer, self._ticker):
            if timer is not None:
                timer.cancel()
        self._context.endpoint.close()
        error: SupervisionError = NodeNotRunning(
            self._router.folder.path, "this connection is closed"
        )
        if self._router.boot != self.host.boot:
            error = NodeRestarted(self._router.folder.path)
        for box in self._boxes():
            box.fail(error)
        for arrived in list(self._sending):
            if not arrived.done():
                arrived.set_result(Outcome.UNKNOWN)  # who waits for an answer finds its box failed

    def abandon(self) -> None:
        """In a forked process, or when the loop has ended: close the descriptors, and no more.

        The loop's own set of descriptors is shared with the parent, so it is left as it is.
        """
        self.is_closed = True
        with contextlib.suppress(OSError):
            self._context.endpoint.abandon()
