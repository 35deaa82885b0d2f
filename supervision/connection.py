"""How a host process (a CLI, a test, an application) talks to a node. It never starts one.

Threads: a Connection may be shared; each thread gets a private endpoint of its own, so that one
thread never reads another's replies. Every request carries a ``ref`` and only messages with that
ref answer it: a late reply to an earlier request is dropped, not mistaken for the next one.

Restarts: names are looked up at the root and remembered with their incarnation. When a target's
process is gone the Connection looks again, and when the root itself is gone it reads ``node.json``
anew, until the deadline. A message is sent again only if it certainly reached nobody.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from supervision._hosts import HostContext
from supervision._wire import LOOPBACK, make_codec
from supervision.address import Address
from supervision.errors import NodeNotRunning, NodeRestarted, NoReply
from supervision.frames import FrameCodec
from supervision.messages import (
    Addressed,
    ChildStarted,
    DirectoryListing,
    Entry,
    ListDirectory,
    Located,
    WhereIs,
    new_ref,
)
from supervision.node_file import NodeRecord, RuntimeDir

_SEND_S: Final = 5.0
"""A live process accepts a message in milliseconds, however long it takes to handle it."""
_RETRY_S: Final = 0.005
_QUIET_S: Final = 1.0
"""How long a stream may be silent before somebody looks whether the other end lives."""


@dataclass(slots=True)
class _Endpoint:
    """What one thread owns."""

    context: HostContext
    boot: tuple[int, int]
    thread: threading.Thread
    streams: dict[str, deque[object]] = field(default_factory=dict)
    """Messages that came for a stream while its thread asked something else."""


class Connection:
    """An open line to one node. Use ``attach``."""

    def __init__(self, folder: RuntimeDir, record: NodeRecord, codec: FrameCodec) -> None:
        self._folder = folder
        self._record = record
        self._codec = codec
        self._here = threading.local()
        self._lock = threading.Lock()
        self._endpoints: list[_Endpoint] = []
        self._entries: dict[str, Entry] = {}
        self._closed = False

    @classmethod
    def attach(cls, runtime_dir: Path, *, timeout_s: float = 5.0) -> Connection:
        """A connection to the node of this folder, whose root has answered.

        Raises NodeNotRunning at once if no node lives there, or after ``timeout_s`` if one lives
        but does not answer.
        """
        folder = RuntimeDir(Path(runtime_dir))
        record, codec = _read(folder)
        connection = cls(folder, record, codec)
        try:
            connection._call_root(ListDirectory(new_ref()), timeout_s)
        except NoReply as error:
            connection.close()
            raise NodeNotRunning(folder.path, f"pid {record.pid} does not answer") from error
        return connection

    @property
    def record(self) -> NodeRecord:
        """What ``node.json`` said when it was read last."""
        return self._record

    # ── requests ─────────────────────────────────────────────────────────────

    def ask(self, target: str | Address, message: object, *, timeout_s: float) -> object:
        """Send and return the answer with the same ``ref``; raises NoReply at the deadline."""
        deadline = time.monotonic() + timeout_s
        endpoint = self._send(target, message, deadline, timeout_s)
        answer = self._await(endpoint, _ref_of(message), deadline)
        if answer is None:
            raise NoReply(target, timeout_s, "it got the message")
        return answer

    def tell(self, target: str | Address, message: object) -> None:
        """Send without an answer; raises NoReply if nobody could be reached."""
        self._send(target, message, time.monotonic() + _SEND_S, _SEND_S)

    def stream(
        self,
        target: str | Address,
        message: object,
        *,
        idle_timeout_s: float,
        on_quiet: Callable[[], None] | None = None,
    ) -> Iterator[object]:
        """Send, then yield every message with the same ``ref`` until the caller stops.

        Raises NoReply when nothing came for ``idle_timeout_s``, and NodeRestarted as soon as it is
        seen that the node is another one than the message was sent to. ``on_quiet`` is called about
        every second in which nothing came; it may raise. The message is sent at once, not at the
        first step. Iterate on the thread that called.
        """
        ref = _ref_of(message)
        endpoint = self._endpoint()
        endpoint.streams[ref] = deque()
        try:
            sent = self._send(target, message, time.monotonic() + idle_timeout_s, idle_timeout_s)
        except BaseException:
            endpoint.streams.pop(ref, None)
            raise
        sent.streams.setdefault(ref, endpoint.streams.get(ref, deque()))
        return self._stream(sent, ref, target, idle_timeout_s, on_quiet)

    def _stream(
        self,
        endpoint: _Endpoint,
        ref: str,
        target: str | Address,
        idle_timeout_s: float,
        on_quiet: Callable[[], None] | None,
    ) -> Iterator[object]:
        waiting = endpoint.streams[ref]
        deadline = time.monotonic() + idle_timeout_s
        try:
            while True:
                if waiting:
                    yield waiting.popleft()
                    continue
                quiet_at = min(deadline, time.monotonic() + _QUIET_S)
                message = self._await(endpoint, ref, quiet_at)
                if message is not None:
                    yield message
                    deadline = time.monotonic() + idle_timeout_s
                    continue
                if time.monotonic() >= deadline:
                    raise NoReply(target, idle_timeout_s, "the stream went quiet")
                self._require_same_boot(endpoint)
                if on_quiet is not None:
                    on_quiet()
        finally:
            endpoint.streams.pop(ref, None)

    def where(self, child_id: str, *, timeout_s: float = 5.0) -> Entry | None:
        """The root's entry for an id, which may be down; None if the tree has no such child."""
        answer = self._call_root(WhereIs(new_ref(), child_id), timeout_s)
        return answer.entry if isinstance(answer, Located) else None

    def directory(self, *, timeout_s: float = 5.0) -> tuple[Entry, ...]:
        """Every entry that the root knows."""
        answer = self._call_root(ListDirectory(new_ref()), timeout_s)
        return answer.entries if isinstance(answer, DirectoryListing) else ()

    def close(self) -> None:
        """Close the endpoints of all threads. No thread may be inside a call."""
        with self._lock:
            self._closed = True
            for endpoint in self._endpoints:
                endpoint.context.close()
            self._endpoints.clear()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── inside ───────────────────────────────────────────────────────────────

    def _send(
        self, target: str | Address, message: object, deadline: float, timeout_s: float
    ) -> _Endpoint:
        """Send until somebody has it; the endpoint that the answer will come to."""
        why = ""
        while True:
            endpoint = self._endpoint()
            address, wrapped, news = self._resolve(endpoint, target, message, deadline)
            why = news or why
            if address is not None:
                left = min(_SEND_S, max(0.0, deadline - time.monotonic()))
                if endpoint.context.send(address, wrapped, left):
                    return endpoint
                why = f"nobody accepts messages at {address}"
                if isinstance(target, str):
                    self._entries.pop(target, None)
            if time.monotonic() + _RETRY_S > deadline:
                raise NoReply(target, timeout_s, why)
            self._await(endpoint, "", time.monotonic() + _RETRY_S)
            self._reread()

    def _resolve(
        self, endpoint: _Endpoint, target: str | Address, message: object, deadline: float
    ) -> tuple[Address | None, object, str]:
        if isinstance(target, Address):
            return target, message, ""
        if target == "root":
            return self._record.root_address, message, ""
        entry = self._entries.get(target)
        if entry is None or not entry.is_up:
            request = WhereIs(new_ref(), target)
            left = min(_SEND_S, max(0.0, deadline - time.monotonic()))
            if not endpoint.context.send(self._record.root_address, request, left):
                return None, message, "the root supervisor is gone" if left > _RETRY_S else ""
            answer = self._await(endpoint, request.ref, deadline)
            if not isinstance(answer, Located):
                return None, message, "the directory has no such id" if answer else ""
            entry = answer.entry
        if not entry.is_up or entry.address is None:
            return None, message, f"it is {entry.state} (last exit: {entry.last_exit})"
        self._entries[target] = entry
        return entry.address, Addressed(entry.id, entry.incarnation, message), ""

    def _call_root(self, request: WhereIs | ListDirectory, timeout_s: float) -> object:
        return self.ask("root", request, timeout_s=timeout_s)

    def _await(self, endpoint: _Endpoint, ref: str, deadline: float) -> object | None:
        """The next message with this ref; others are kept for their streams, or dropped."""
        while (left := deadline - time.monotonic()) > 0:
            message = endpoint.context.receive(left)
            if message is None:
                return None
            if isinstance(message, ChildStarted):  # the root may hear of it a moment later
                self._entries[message.entry.id] = message.entry
            its_ref = getattr(message, "ref", None)
            if its_ref == ref:
                return message
            if its_ref in endpoint.streams:
                endpoint.streams[its_ref].append(message)
        return None

    def _endpoint(self) -> _Endpoint:
        """This thread's endpoint to the present boot of the node."""
        boot = (self._record.pid, self._record.boot)
        endpoint: _Endpoint | None = getattr(self._here, "endpoint", None)
        if endpoint is not None and endpoint.boot == boot:
            return endpoint
        with self._lock:
            if self._closed:
                raise NodeNotRunning(self._folder.path, "this connection is closed")
            if endpoint is not None:
                self._endpoints.remove(endpoint)
                endpoint.context.close()
            self._close_abandoned()
            admin = Address(LOOPBACK, self._record.port)
            context = HostContext.open(admin, self._codec)
            endpoint = _Endpoint(context, boot, threading.current_thread())
            self._endpoints.append(endpoint)
        self._here.endpoint = endpoint
        return endpoint

    def _close_abandoned(self) -> None:
        """Close the endpoints of threads that have ended."""
        for one in [one for one in self._endpoints if not one.thread.is_alive()]:
            self._endpoints.remove(one)
            one.context.close()

    def _require_same_boot(self, endpoint: _Endpoint) -> None:
        self._reread()
        if (self._record.pid, self._record.boot) != endpoint.boot:
            raise NodeRestarted(self._folder.path)

    def _reread(self) -> None:
        """The node may have started anew: look at ``node.json``."""
        record = self._folder.read()
        if record is None or not record.is_alive:
            raise NodeNotRunning(self._folder.path, "it has stopped")
        if (record.pid, record.boot) == (self._record.pid, self._record.boot):
            return
        if record.pid != self._record.pid:
            with contextlib.suppress(NodeNotRunning):
                record, self._codec = _read(self._folder)
        self._record = record
        self._entries.clear()


def _ref_of(message: object) -> str:
    ref = getattr(message, "ref", None)
    if not isinstance(ref, str) or not ref:
        raise TypeError(f"a {type(message).__name__} has no ref, so no answer can be told apart")
    return ref


def _read(folder: RuntimeDir) -> tuple[NodeRecord, FrameCodec]:
    record, cookie = folder.read(), folder.cookie()
    if record is None or cookie is None:
        raise NodeNotRunning(folder.path, "there is no readable node.json and cookie")
    if not record.is_alive:
        raise NodeNotRunning(folder.path, f"its pid {record.pid} is dead")
    try:
        with socket.create_connection((LOOPBACK, record.port), timeout=1.0):
            pass
    except OSError as error:
        raise NodeNotRunning(folder.path, f"port {record.port} does not answer") from error
    return record, make_codec(cookie, record.packages)
