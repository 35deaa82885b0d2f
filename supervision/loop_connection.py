"""How code on an asyncio event loop talks to a node: ``Connection`` for one loop, without threads.

One endpoint serves every request of the loop. Its descriptor is watched by the loop; what is due by
time (acknowledgements, deadlines, a look whether the node lives) are timers of the loop. Messages
are handed to the request whose ``ref`` they carry, so any number of requests wait at the same time.

The meaning of every call, and of every error, is that of ``Connection``. A ``LoopConnection`` may
be used from several loops, one after the other or each in its own thread: each gets an endpoint of
its own. In a forked process it opens new ones when it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from supervision import forks
from supervision.address import Address
from supervision.endpoint import Endpoint
from supervision.errors import (
    ForkedProcess,
    NodeNotRunning,
    NodeRestarted,
    NoReply,
    SupervisionError,
    TargetDown,
)
from supervision.host_session import RENEW_S, ThreadEndpoint, end_of_node
from supervision.link import Done, Outcome
from supervision.messages import (
    Addressed,
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
from supervision.routing import LOOK_S, RETRY_S, SEND_S, Route, Router
from supervision.session import Secret

MAX_UNREAD: Final = 10_000
"""Messages that one request may hold unread; then ``on_full`` is called, once."""
_FLUSH_S: Final = 0.5
_CLOSING_S: Final = 0.5
"""How long the connection of a process that has ended may stand until its messages are read."""
_LATE_S: Final = 30.0
"""How long the first message is awaited of a request that was left before it came."""
_UNTIL_UP_S: Final = 1.0


class LoopConnection:
    """A connection to one node for code on event loops. Close it on one of its loops."""

    def __init__(self, runtime_dir: Path) -> None:
        """Raises NodeNotRunning if no node lives in this folder. Connects to nothing yet."""
        self._router = Router(RuntimeDir(Path(runtime_dir)))
        self._lines: dict[asyncio.AbstractEventLoop, _LoopLine] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        forks.register(self)

    def drop_inherited(self) -> None:
        """In a forked process: the endpoints are the parent's; close the copies."""
        lines, self._lines = self._lines, {}
        self._tasks = set()
        for line in lines.values():
            line.abandon()

    @property
    def record(self) -> NodeRecord:
        """What ``node.json`` held when it was read last."""
        return self._router.record

    # ── requests ─────────────────────────────────────────────────────────────

    async def ask(self, target: str | Address, message: object, *, timeout_s: float) -> object:
        """Send and return the answer with the same ``ref``; raises NoReply at the deadline."""
        ends_at = time.monotonic() + timeout_s
        replies = Replies(self, target, message, timeout_s, ends_at, looks_at_node=True)
        try:
            return await replies.next()
        finally:
            replies.close()

    def stream(
        self,
        target: str | Address,
        message: object,
        *,
        idle_timeout_s: float,
        ends_at: float | None = None,
        any_sign: bool = False,
        on_full: Callable[[], None] | None = None,
    ) -> Replies:
        """Every message with the same ``ref``; the request is sent by the first step.

        ``any_sign``: whatever comes from the target's process ends a silence, for it reports on all
        requests of this endpoint together. ``on_full`` is called once when ``MAX_UNREAD`` messages
        were not read.
        """
        limit = math.inf if ends_at is None else ends_at
        return Replies(
            self, target, message, idle_timeout_s, limit, any_sign=any_sign, on_full=on_full
        )

    async def tell(
        self, target: str | Address, message: object, *, timeout_s: float = SEND_S
    ) -> None:
        """Send without an answer; raises NoReply if no process could be reached."""
        await self.send(target, message, time.monotonic() + timeout_s, timeout_s, wait=False)

    def notify(self, target: str, message: object, *, timeout_s: float = SEND_S) -> None:
        """``tell``, and wait for nothing; an error is dropped. Does nothing without a loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._is_closed:
            return
        line, entry = self._lines.get(loop), self._router._entries.get(target)
        if line is not None and entry is not None and entry.address is not None:
            line.post(entry.address, Addressed(entry.id, entry.incarnation, message))
            return
        task = loop.create_task(self._tell_and_drop(target, message, timeout_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_and_drop(self, target: str, message: object, timeout_s: float) -> None:
        with contextlib.suppress(SupervisionError):
            await self.tell(target, message, timeout_s=timeout_s)

    async def where(self, child_id: str, *, timeout_s: float = 5.0) -> Entry | None:
        """The root's entry for an id, which may be down; None if the tree has no such child."""
        answer = await self._ask_root(WhereIs(new_ref(), child_id), timeout_s)
        return answer.entry if isinstance(answer, Located) else None

    async def directory(self, *, timeout_s: float = 5.0) -> tuple[Entry, ...]:
        """Every entry that the root has."""
        answer = await self._ask_root(ListDirectory(new_ref()), timeout_s)
        return answer.entries if isinstance(answer, DirectoryListing) else ()

    async def _ask_root(self, request: object, timeout_s: float) -> object:
        """Ask the root; again if it dies meanwhile, for these questions change nothing."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                return await self.ask("root", request, timeout_s=left)
            except TargetDown:
                if time.monotonic() + RETRY_S > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
                self._router.reread()

    # ── sending ──────────────────────────────────────────────────────────────

    async def send(
        self,
        target: str | Address,
        message: object,
        deadline: float,
        timeout_s: float,
        *,
        wait: bool,
        note: Callable[[_LoopLine, Route], None] = lambda *_: None,
    ) -> tuple[_LoopLine, Route, str]:
        """Send until a process has it or may have it; ``wait`` sets a monitor on a named target.

        Returns the line that it left on, its route, and the ref of the monitor. ``note`` is called
        just before each time it leaves.
        """
        why = ""
        while True:
            line = self._line()
            route = await self._resolve(line, target, message, deadline)
            why = route.why or why
            if route.address is not None:
                monitor = ""
                if wait and route.id:
                    root = self._router.record.root_address
                    monitor = line.own.watch(root, route.id, route.incarnation)
                left = min(SEND_S, max(0.0, deadline - time.monotonic()))
                note(line, route)
                if await line.send(route.address, route.message, left):
                    return line, route, monitor
                why = f"nothing accepts messages at {route.address}"
                if isinstance(target, str):
                    self._router._entries.pop(target, None)
            if time.monotonic() + RETRY_S > deadline:
                raise NoReply(target, timeout_s, why)
            await asyncio.sleep(RETRY_S)
            self._router.reread()

    async def _resolve(
        self, line: _LoopLine, target: str | Address, message: object, deadline: float
    ) -> Route:
        if isinstance(target, Address):
            return Route(target, message)
        root = self._router.record.root_address
        if target == "root":
            return Route(root, message)
        entry = self._router._entries.get(target)
        if entry is None or not entry.is_up:
            answer = await self._look_up(line, root, target, deadline)
            if not isinstance(answer, Located):
                return Route(None, why="the directory has no such id" if answer else "")
            entry = answer.entry
        if not entry.is_up or entry.address is None:
            return Route(None, why=f"it is {entry.state} (last exit: {entry.last_exit})")
        self._router._entries[target] = entry
        addressed = Addressed(entry.id, entry.incarnation, message)
        return Route(entry.address, addressed, entry.id, entry.incarnation)

    async def _look_up(
        self, line: _LoopLine, root: Address, target: str, deadline: float
    ) -> object | None:
        """The root's answer to where a child is; None when it does not come."""
        until_up_s = min(_UNTIL_UP_S, max(0.0, deadline - time.monotonic()))
        request = WhereIs(new_ref(), target, until_up_s)
        box = line.open(request.ref)
        try:
            if not await line.send(root, request, min(SEND_S, deadline - time.monotonic())):
                return None
            while not box.messages and (now := time.monotonic()) < deadline:
                await line.wait(box, min(deadline, now + LOOK_S))
                if not box.messages and end_of_node(self._router.folder, line.own.boot):
                    return None
            return box.messages.popleft() if box.messages else None
        finally:
            line.forget(request.ref)

    def _line(self) -> _LoopLine:
        """The running loop's endpoint to the present boot of the node."""
        if self._is_closed:
            raise NodeNotRunning(self._router.folder.path, "this connection is closed")
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is not None and line.own.boot == self._router.boot and not line.is_closed:
            return line
        for one in [one for one in self._lines if one.is_closed()]:
            self._lines.pop(one).abandon()
        if line is not None:
            line.close()
        line = self._lines[loop] = _LoopLine(self._router, self._router._secret, loop)
        return line

    # ── ending ───────────────────────────────────────────────────────────────

    async def close(self) -> None:
        """Close the endpoint of this loop, once what was sent has left; requests raise."""
        self._is_closed = True
        line = self._lines.get(asyncio.get_running_loop())
        if line is not None:
            deadline = time.monotonic() + _FLUSH_S
            while line.unwritten() and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
        lines, self._lines = self._lines, {}
        for one in lines.values():
            if one is line:
                one.close()
            else:
                one.abandon()


class Replies:
    """The messages that answer one request. For one task at a time."""

    def __init__(
        self,
        connection: LoopConnection,
        target: str | Address,
        message: object,
        idle_s: float,
        ends_at: float,
        *,
        any_sign: bool = False,
        on_full: Callable[[], None] | None = None,
        looks_at_node: bool = False,
    ) -> None:
        """``looks_at_node``: raise TargetDown, and not NodeRestarted, when the node has ended."""
        ref = getattr(message, "ref", None)
        if not isinstance(ref, str) or not ref:
            raise TypeError(f"a {type(message).__name__} has no ref; no answer can be told apart")
        self._connection = connection
        self._target = target
        self._message = message
        self._ref = ref
        self._idle_s = idle_s
        self._ends_at = ends_at
        self._any_sign = any_sign
        self._on_full = on_full
        self._looks_at_node = looks_at_node
        self._box: _Box | None = None
        self._line: _LoopLine | None = None

    async def next(self) -> object:
        """The next message; raises what ``Connection.stream`` raises."""
        deadline = self._deadline()
        while True:
            line, box = self._line, self._box
            if line is None or box is None or not box.is_sent:
                await self._send(max(RETRY_S, deadline - time.monotonic()))
                continue
            line.require_own()
            if box.messages:
                message = box.messages.popleft()
                if not isinstance(message, WrongIncarnation):
                    return message
                self._connection._router._forget(message.id, message.wanted)
                box.is_sent = False
                await asyncio.sleep(RETRY_S)
                continue
            if box.error is not None:
                raise box.error
            if time.monotonic() >= deadline:
                why = "the stream went quiet"
                if self._looks_at_node:
                    why = "it has the message, or may have it"
                raise NoReply(self._target, self._idle_s, why)
            await line.wait(box, deadline)
            if self._any_sign and not box.messages and box.address in line.read_from:
                deadline = min(self._ends_at, line.read_from[box.address] + self._idle_s)

    def _deadline(self) -> float:
        """Of a silence that begins now."""
        return min(self._ends_at, time.monotonic() + self._idle_s)

    async def _send(self, within_s: float) -> None:
        self._move(self._connection._line())

        def note(line: _LoopLine, route: Route) -> None:
            box = self._move(line)
            box.is_sent = True
            box.address = route.address

        deadline = time.monotonic() + within_s
        line, route, monitor = await self._connection.send(
            self._target, self._message, deadline, within_s, wait=True, note=note
        )
        box = self._move(line)
        box.monitor = monitor
        box.incarnation = route.incarnation or line.own.boot[1]
        line.check(box)

    def _move(self, line: _LoopLine) -> _Box:
        """Receive on this line from now on."""
        if self._line is not line or self._box is None:
            self.close()
            self._line = line
            self._box = line.open(self._ref)
            self._box.target = self._target
            self._box.looks_at_node = self._looks_at_node
            self._box.on_full = self._on_full
        return self._box

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        """Receive no more. ``on_late`` is called with the first message, if one still comes.

        Only if the request may have been sent, and nothing came of it yet.
        """
        line, self._line = self._line, None
        box, self._box = self._box, None
        if line is None or box is None:
            return
        line.forget(self._ref)
        if on_late is None or not box.is_sent:
            return
        if box.messages:
            on_late(box.messages[0])
        elif not box.has_received:
            line.late[self._ref] = (on_late, time.monotonic() + _LATE_S)


class _Box:
    """Messages with one ref, and the task that waits for them."""

    __slots__ = (
        "address", "error", "has_received", "incarnation", "is_sent", "looks_at_node", "messages",
        "monitor", "on_full", "target", "waiter",
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

    def append(self, message: object) -> None:
        """A message came; called by ``Line``, which has the boxes by ref."""
        self.messages.append(message)
        self.has_received = True
        if self.on_full is not None and len(self.messages) >= MAX_UNREAD:
            on_full, self.on_full = self.on_full, None
            on_full()
        self.wake()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: SupervisionError) -> None:
        if self.error is None:
            self.error = error
            self.wake()


class _Context:
    """What ``Line`` needs of an endpoint, on a loop."""

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


class _LoopLine:
    """What one loop has of a ``LoopConnection``: an endpoint, and the requests that wait there."""

    def __init__(self, router: Router, secret: Secret, loop: asyncio.AbstractEventLoop) -> None:
        import threading

        self._router = router
        self._loop = loop
        self._context = _Context(secret, self._arm)
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._waiting: dict[_Box, float] = {}
        """Boxes that a task waits at, and until when."""
        self._ending: dict[_Box, tuple[TargetDown, float]] = {}
        """Boxes whose target has ended; its last messages may still come until then."""
        self.late: dict[str, tuple[Callable[[object], None], float]] = {}
        """What is called with the first message of a request that was left, and until when."""
        self.read_from: dict[Address, float] = {}
        """When something came last, by sender."""
        self.is_closed = False
        self.own = ThreadEndpoint(
            self._context,  # type: ignore[arg-type]  # posts, which is all that is used of it here
            router.boot,
            threading.current_thread(),
            router._notice,
        )
        loop.add_reader(self._context.endpoint.fileno(), self._read)

    # ── requests ─────────────────────────────────────────────────────────────

    def open(self, ref: str) -> _Box:
        """A box for messages with this ref."""
        box = _Box()
        self.own.streams[ref] = box  # type: ignore[assignment]  # it appends, no more
        return box

    def forget(self, ref: str) -> None:
        """Drop what comes with this ref from now on."""
        box = self.own.streams.pop(ref, None)
        if isinstance(box, _Box):
            self._ending.pop(box, None)

    def require_own(self) -> None:
        """Raises ForkedProcess in a process that was forked from the owner."""
        if not self._context.is_own:
            raise ForkedProcess("this line to a node", self._context.owner_pid)

    async def wait(self, box: _Box, deadline: float) -> None:
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

        False: it was certainly not delivered. True: it was, or that cannot be known.
        """
        arrived: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if not arrived.done():
                arrived.set_result(outcome)

        self._read()  # a process that died since the last look has closed its connection
        if self.is_closed:
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None and due <= 0:
            self._timer = self._loop.call_soon(self._read)
        elif due is not None:
            self._timer = self._loop.call_later(due, self._read)

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
        now = self.own.read_at = time.monotonic()
        for sender, message in waiting:
            self.read_from[sender] = now
            self._take(message)
        if self._ending:
            self._look_at_ending()
        self._arm()

    def _take(self, message: object) -> None:
        ref = getattr(message, "ref", None)
        if ref in self.own.streams:
            self.own.notice(message)
            self.own.streams[ref].append(message)
            return
        if isinstance(message, Down):
            self.own._is_for(message, "", "")
            self._down(message)
            return
        self.own.notice(message)
        late = self.late.pop(ref, None) if isinstance(ref, str) else None
        if late is not None:
            late[0](message)

    def _boxes(self) -> Iterator[_Box]:
        for box in list(self.own.streams.values()):
            if isinstance(box, _Box):
                yield box

    def _down(self, down: Down) -> None:
        until = time.monotonic() + _CLOSING_S
        for box in self._boxes():
            if box.monitor == down.ref:
                error = TargetDown(box.target, down.incarnation, down.reason)
                self._ending.setdefault(box, (error, until))

    def check(self, box: _Box) -> None:
        """Its monitor was set before it was known: it may have reported already."""
        down = self.own.downs.get(box.monitor)
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
        self._look_at_node()
        now = time.monotonic()
        root = self._router.record.root_address
        for child_id, standing in list(self.own.standing.items()):
            if standing.renewed_at is None or now - standing.renewed_at > RENEW_S:
                self.own.renew(root, child_id, standing.ref)
        for box, deadline in list(self._waiting.items()):
            if now >= deadline:
                box.wake()
        for ref in [ref for ref, (_, until) in self.late.items() if now >= until]:
            del self.late[ref]
        if self._waiting and not self.is_closed:
            self._ticker = self._loop.call_later(LOOK_S, self._tick)

    def _look_at_node(self) -> None:
        """Fail what waits for an answer of a node that has ended, or is another one now."""
        reason = end_of_node(self._router.folder, self.own.boot)
        if reason is None:
            return
        error: SupervisionError | None = None
        try:
            self._router.reread()
            if self._router.boot != self.own.boot:
                error = NodeRestarted(self._router.folder.path)
        except NodeNotRunning as stopped:
            error = stopped
        until = time.monotonic() + _CLOSING_S
        for box in self._boxes():
            if box.looks_at_node and box.is_sent:
                down = TargetDown(box.target, box.incarnation or self.own.boot[1], reason)
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
        if self._router.boot != self.own.boot:
            error = NodeRestarted(self._router.folder.path)
        for box in self._boxes():
            box.fail(error)

    def abandon(self) -> None:
        """In a forked process, or when the loop has ended: close the descriptors, and no more.

        The loop's own set of descriptors is shared with the parent, so it is left as it is.
        """
        self.is_closed = True
        with contextlib.suppress(OSError):
            self._context.endpoint.abandon()
