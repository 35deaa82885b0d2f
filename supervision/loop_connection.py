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
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from supervision import forks
from supervision.address import Address
from supervision.errors import (
    NodeNotRunning,
    NoReply,
    SupervisionError,
    TargetDown,
)
from supervision.host_session import end_of_node
from supervision.loop_endpoint import Box, LoopEndpoint, Sink
from supervision.messages import (
    Addressed,
    DirectoryListing,
    Entry,
    ListDirectory,
    Located,
    WhereIs,
    WrongIncarnation,
    new_ref,
)
from supervision.node_file import NodeRecord, RuntimeDir
from supervision.routing import LOOK_S, RETRY_S, SEND_S, Route, Router

_FLUSH_S: Final = 0.5
_LATE_S: Final = 30.0
"""How long the first message is awaited of a request that was left before it came."""
_UNTIL_UP_S: Final = 1.0
_YIELD_EVERY: Final = 32

T = TypeVar("T")
"""After so many messages that had come already a reader lets other tasks run."""


class LoopConnection:
    """A connection to one node for code on event loops. Close it on one of its loops."""

    def __init__(self, runtime_dir: Path) -> None:
        """Raises NodeNotRunning if no node lives in this folder. Connects to nothing yet."""
        self._router = Router(RuntimeDir(Path(runtime_dir)))
        self._endpoints: dict[asyncio.AbstractEventLoop, LoopEndpoint] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = self._is_closed = False
        forks.register(self)

    def drop_inherited(self) -> None:
        """In a forked process: the endpoints are the parent's; close the copies."""
        endpoints, self._endpoints = self._endpoints, {}
        self._tasks = set()
        for endpoint in endpoints.values():
            endpoint.abandon()

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
        """``tell``, and wait for nothing; an error is dropped.

        On a thread without a loop, where a stream may be collected, one of its loops sends it.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            send = functools.partial(self.notify, target, message, timeout_s=timeout_s)
            for one in list(self._endpoints)[:1]:
                with contextlib.suppress(RuntimeError):  # that loop has ended
                    one.call_soon_threadsafe(send)
            return
        if self._is_closed:
            return
        endpoint, entry = self._endpoints.get(loop), self._router._entries.get(target)
        if endpoint is not None and entry is not None and entry.address is not None:
            endpoint.post(entry.address, Addressed(entry.id, entry.incarnation, message))
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
        note: Callable[[LoopEndpoint, Route], None] = lambda *_: None,
    ) -> tuple[LoopEndpoint, Route, str]:
        """Send until a process has it or may have it; ``wait`` sets a monitor on a named target.

        Returns the endpoint that it left on, its route, and the ref of the monitor. ``note`` is
        called just before each time it leaves.
        """
        why = ""
        while True:
            endpoint = self._endpoint()
            route = await self._resolve(endpoint, target, message, deadline)
            why = route.why or why
            if route.address is not None:
                monitor = ""
                if wait and route.id:
                    root = self._router.record.root_address
                    monitor = endpoint.host.watch(root, route.id, route.incarnation)
                left = min(SEND_S, max(0.0, deadline - time.monotonic()))
                note(endpoint, route)
                if await endpoint.send(route.address, route.message, left):
                    return endpoint, route, monitor
                why = f"nothing accepts messages at {route.address}"
                if isinstance(target, str):
                    self._router._entries.pop(target, None)
            if time.monotonic() + RETRY_S > deadline:
                raise NoReply(target, timeout_s, why)
            await asyncio.sleep(RETRY_S)
            self._router.reread()

    async def _resolve(
        self, endpoint: LoopEndpoint, target: str | Address, message: object, deadline: float
    ) -> Route:
        if isinstance(target, Address):
            return Route(target, message)
        root = self._router.record.root_address
        if target == "root":
            return Route(root, message)
        entry = self._router._entries.get(target)
        if entry is None or not entry.is_up:
            answer = await self._look_up(endpoint, root, target, deadline)
            if not isinstance(answer, Located):
                return Route(None, why="the directory has no such id" if answer else "")
            entry = answer.entry
        if not entry.is_up or entry.address is None:
            return Route(None, why=f"it is {entry.state} (last exit: {entry.last_exit})")
        self._router._entries[target] = entry
        addressed = Addressed(entry.id, entry.incarnation, message)
        return Route(entry.address, addressed, entry.id, entry.incarnation)

    async def _look_up(
        self, endpoint: LoopEndpoint, root: Address, target: str, deadline: float
    ) -> object | None:
        """The root's answer to where a child is; None when it does not come."""
        until_up_s = min(_UNTIL_UP_S, max(0.0, deadline - time.monotonic()))
        request = WhereIs(new_ref(), target, until_up_s)
        box = endpoint.open(request.ref)
        try:
            if not await endpoint.send(root, request, min(SEND_S, deadline - time.monotonic())):
                return None
            while not box.messages and (now := time.monotonic()) < deadline:
                await endpoint.wait(box, min(deadline, now + LOOK_S))
                if box.messages:
                    break
                if box.error is not None:  # the endpoint was closed meanwhile
                    self.require_open()
                    return None
                if end_of_node(self._router.folder, endpoint.host.boot):
                    return None
            return box.messages.popleft() if box.messages else None
        finally:
            endpoint.forget(request.ref)

    def _endpoint(self) -> LoopEndpoint:
        """The running loop's endpoint to the present boot of the node."""
        self.require_open()
        loop = asyncio.get_running_loop()
        endpoint = self._endpoints.get(loop)
        if (
            endpoint is not None
            and endpoint.host.boot == self._router.boot
            and not endpoint.is_closed
        ):
            return endpoint
        for one in [one for one in self._endpoints if one.is_closed()]:
            self._endpoints.pop(one).abandon()
        if endpoint is not None:
            endpoint.close()
        endpoint = self._endpoints[loop] = LoopEndpoint(self._router, self._router._secret, loop)
        return endpoint

    # ── ending ───────────────────────────────────────────────────────────────

    def require_open(self) -> None:
        """Raises NodeNotRunning once this connection is closed."""
        if self._is_closing:
            raise NodeNotRunning(self._router.folder.path, "this connection is closed")

    async def close(self, leave: Callable[[], None] = lambda: None) -> None:
        """Close the endpoints, once what was sent on this loop has left; requests raise.

        ``leave`` is called when no more requests are taken, and may still ``notify``.
        """
        self._is_closing = True
        leave()
        self._is_closed = True
        endpoints, self._endpoints = self._endpoints, {}
        own = endpoints.pop(asyncio.get_running_loop(), None)
        for loop, one in endpoints.items():
            with contextlib.suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(one.close)
        deadline = time.monotonic() + _FLUSH_S
        if own is not None:
            while own.unwritten() and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            own.close()
        for loop, one in endpoints.items():
            while not (one.is_closed or loop.is_closed()) and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            if not one.is_closed and loop.is_closed():  # it ended before it could close this
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
            raise TypeError(f"a {type(message).__name__} has no ref, so no answer can be matched")
        self._connection = connection
        self._target = target
        self._message = message
        self._ref = ref
        self._idle_s = idle_s
        self._ends_at = ends_at
        self._any_sign = any_sign
        self._on_full = on_full
        self._looks_at_node = looks_at_node
        self._box: Box | None = None
        self._endpoint: LoopEndpoint | None = None
        self._is_closed = False
        self._n_read = 0

    async def next(self) -> object:
        """The next message; raises what ``Connection.stream`` raises."""
        deadline = self._deadline()
        while True:
            if self._is_closed:
                self._connection.require_open()
                raise SupervisionError("the request was left while its answer was awaited")
            endpoint, box = self._endpoint, self._box
            if endpoint is None or box is None or not box.is_sent:
                await self._send(max(RETRY_S, deadline - time.monotonic()))
                continue
            endpoint.require_own()
            if box.messages:
                message = box.messages.popleft()
                if not isinstance(message, WrongIncarnation):
                    self._n_read += 1
                    if not self._n_read % _YIELD_EVERY:
                        await asyncio.sleep(0)
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
            await endpoint.wait(box, deadline)
            if self._any_sign and not box.messages and box.address in endpoint.read_from:
                deadline = min(self._ends_at, endpoint.read_from[box.address] + self._idle_s)
            deadline = max(deadline, min(self._ends_at, box.fed_at + self._idle_s))

    def ready(self, kind: type[T]) -> list[T]:
        """Messages of this kind that have come already, up to the first one of another kind."""
        box = self._box
        if box is None or not box.is_sent or self._is_closed:
            return []
        found: list[T] = []
        while box.messages and type(box.messages[0]) is kind and len(found) < _YIELD_EVERY:
            found.append(box.messages.popleft())  # type: ignore[arg-type]  # of that kind
        return found

    def divert(self, sink: Sink) -> None:
        """Hand what comes while ``next`` waits to ``sink``, until it refuses a message.

        ``next`` returns that one, and what follows. Does nothing before the request is sent.
        """
        if self._box is not None and self._box.is_sent:
            self._box.sink = sink

    def _deadline(self) -> float:
        """Of a silence that begins now."""
        return min(self._ends_at, time.monotonic() + self._idle_s)

    async def _send(self, within_s: float) -> None:
        self._move(self._connection._endpoint())

        def note(endpoint: LoopEndpoint, route: Route) -> None:
            box = self._move(endpoint)
            box.is_sent = True
            box.address = route.address

        deadline = time.monotonic() + within_s
        endpoint, route, monitor = await self._connection.send(
            self._target, self._message, deadline, within_s, wait=True, note=note
        )
        box = self._move(endpoint)
        box.monitor = monitor
        box.incarnation = route.incarnation or endpoint.host.boot[1]
        endpoint.check(box)

    def _move(self, endpoint: LoopEndpoint) -> Box:
        """Receive on this endpoint from now on."""
        if self._endpoint is not endpoint or self._box is None:
            if self._endpoint is not None:
                self._endpoint.forget(self._ref)
            self._endpoint = endpoint
            self._box = endpoint.open(self._ref)
            self._box.target = self._target
            self._box.looks_at_node = self._looks_at_node
            self._box.on_full = self._on_full
        return self._box

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        """Receive no more. ``on_late`` is called with the first message, if one still comes.

        Only if the request may have been sent, and nothing came of it yet.
        """
        self._is_closed = True
        endpoint, self._endpoint = self._endpoint, None
        box, self._box = self._box, None
        if endpoint is None or box is None:
            return
        endpoint.forget(self._ref)
        endpoint.release(box)
        if on_late is None or not box.is_sent:
            return
        if box.messages:
            on_late(box.messages[0])
        elif not box.has_received:
            endpoint.late[self._ref] = (on_late, time.monotonic() + _LATE_S)
