"""The descriptor shelf: the launcher keeps descriptors for processes of the node, by name.

A process that owns a socket loses it when it dies. A copy on the shelf keeps it open, so that the
next incarnation, also one in the next boot of the node, continues with it. Whatever the shelf holds
ends with the launcher.

It is a Unix socket in the node's folder. A connection proves itself by the cookie, in its first
packet; then each packet is one request, in msgpack, with its descriptors beside it, and is answered
by one packet::

    ["put", name, data]   with descriptors: keep copies of them, in place of any of this name
    ["get", name]         the data and copies of the descriptors, which stay
    ["drop", name]        close them
    ["names", prefix, after]   the next names that begin so, in their order

"keep" is a "put" and "forget" a "drop" without an answer, for a process that does not wait.
"""

from __future__ import annotations

import array
import contextlib
import hmac
import logging
import os
import resource
import selectors
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack

from supervision import logs, process
from supervision.errors import NodeNotRunning
from supervision.frozen import frozen
from supervision.node_file import SHELF

MAX_ENTRIES: Final = 4096
MAX_FDS: Final = 4
"""Of one entry."""
MAX_PACKET: Final = 64 << 10
NAMES_AT_ONCE: Final = 256
_OTHER_FDS: Final = 128
"""Descriptors that a launcher needs beside those of its shelf, at most."""
_MAX_CONNECTIONS: Final = 64
_ANSWER_S: Final = 5.0
_LOG: Final = logging.getLogger(f"{logs.LOGGER}.launcher")


@frozen
class Shelved:
    """What lies under a name."""

    fds: tuple[int, ...]
    data: bytes = b""


class Shelf:
    """The launcher's side: served in its loop, never blocking."""

    def __init__(
        self,
        folder: Path,
        cookie: bytes,
        selector: selectors.BaseSelector,
        holds: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Listen. ``holds``: what lies there from the start; the descriptors become the shelf's."""
        self._cookie = cookie
        self._selector = selector
        self._entries = {name: Shelved(tuple(fds)) for name, fds in (holds or {}).items()}
        self._proved: dict[socket.socket, bool] = {}
        self._last_fd = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FDS
        self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        # A path of any length: a socket's own may have 108 bytes.
        self._socket.bind(f"/proc/self/fd/{self._folder_fd}/{SHELF}")
        (folder / SHELF).chmod(0o600)
        self._socket.listen(_MAX_CONNECTIONS)
        selector.register(self._socket, selectors.EVENT_READ, self._accept)
        for fd in (self._folder_fd, self._socket.fileno(), *self._held()):
            process.close_in_children.add(fd)

    def close(self) -> None:
        """Close every descriptor."""
        for one in (*self._proved, self._socket):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one)
            process.close_in_children.discard(one.fileno())
            one.close()
        self._proved.clear()
        for name in list(self._entries):
            self._drop(name)
        process.close_in_children.discard(self._folder_fd)
        os.close(self._folder_fd)

    def _held(self) -> list[int]:
        return [fd for entry in self._entries.values() for fd in entry.fds]

    # ── connections ──────────────────────────────────────────────────────────

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            peer, _ = self._socket.accept()
            if len(self._proved) >= _MAX_CONNECTIONS:
                peer.close()
                return
            peer.setblocking(False)
            self._proved[peer] = False
            process.close_in_children.add(peer.fileno())
            self._selector.register(peer, selectors.EVENT_READ, self._reader(peer))

    def _reader(self, peer: socket.socket) -> Callable[[], None]:
        return lambda: self._read(peer)

    def _leave(self, peer: socket.socket) -> None:
        self._proved.pop(peer, None)
        self._selector.unregister(peer)
        process.close_in_children.discard(peer.fileno())
        peer.close()

    def _read(self, peer: socket.socket) -> None:
        try:
            packet, fds = _receive(peer)
        except BlockingIOError:
            return
        except OSError:
            self._leave(peer)
            return
        if not packet:
            _close(fds)
            self._leave(peer)
        elif not self._proved[peer]:
            _close(fds)
            self._prove(peer, packet)
        else:
            self._serve(peer, packet, fds)

    def _prove(self, peer: socket.socket, packet: bytes) -> None:
        if not hmac.compare_digest(packet, self._cookie):
            _LOG.warning("a connection to the descriptor shelf had another cookie: refused")
            self._leave(peer)
            return
        self._proved[peer] = True
        self._answer(peer, [True])

    def _answer(self, peer: socket.socket, answer: list[Any], fds: Sequence[int] = ()) -> None:
        try:
            _send(peer, msgpack.packb(answer), fds)
        except OSError:  # it is gone, or does not read its answers
            self._leave(peer)

    # ── requests ─────────────────────────────────────────────────────────────

    def _serve(self, peer: socket.socket, packet: bytes, fds: Sequence[int]) -> None:
        try:
            match msgpack.unpackb(packet):
                case ["put", str(name), bytes(data)] if fds:
                    self._answer(peer, [self._put(name, Shelved(tuple(fds), data))])
                    return
                case ["put", str(_), bytes(_)]:  # this process has no room for more descriptors
                    self._answer(peer, [False])
                case ["keep", str(name), bytes(data)]:
                    if fds:
                        self._put(name, Shelved(tuple(fds), data))
                    return
                case ["forget", str(name)]:
                    self._drop(name)
                case ["get", str(name)]:
                    found = self._entries.get(name)
                    answer = [False] if found is None else [True, found.data]
                    self._answer(peer, answer, () if found is None else found.fds)
                case ["drop", str(name)]:
                    self._answer(peer, [self._drop(name)])
                case ["names", str(prefix), str(after)]:
                    names = sorted(
                        one for one in self._entries if one.startswith(prefix) and one > after
                    )
                    self._answer(peer, [True, names[:NAMES_AT_ONCE]])
                case _:
                    self._leave(peer)
        except (ValueError, msgpack.UnpackException):
            self._leave(peer)
        _close(fds)

    def _put(self, name: str, entry: Shelved) -> bool:
        if name not in self._entries and (
            len(self._entries) >= MAX_ENTRIES or max(entry.fds) > self._last_fd
        ):
            _close(entry.fds)
            return False
        self._drop(name)
        self._entries[name] = entry
        process.close_in_children.update(entry.fds)
        return True

    def _drop(self, name: str) -> bool:
        entry = self._entries.pop(name, None)
        if entry is None:
            return False
        process.close_in_children.difference_update(entry.fds)
        _close(entry.fds)
        return True


class ShelfClient:
    """A process's connection to the shelf of its node. For one thread; each call waits."""

    def __init__(self, folder: Path, cookie: bytes) -> None:
        """Raises NodeNotRunning if there is no shelf, or it refuses the cookie."""
        self._folder = folder
        self._unsent: deque[bytes] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_S)
        try:
            folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._socket.connect(f"/proc/self/fd/{folder_fd}/{SHELF}")
            finally:
                os.close(folder_fd)
            _send(self._socket, cookie)
            if not self._receive()[0]:
                raise NodeNotRunning(folder, "its descriptor shelf refused the cookie")
        except OSError as error:
            self._socket.close()
            raise NodeNotRunning(folder, f"its descriptor shelf: {error}") from error

    def put(self, name: str, fds: Sequence[int], data: bytes = b"") -> bool:
        """Leave copies of at most ``MAX_FDS`` descriptors there; False: the shelf is full."""
        return bool(self._ask(["put", name, data], fds)[0][0])

    def keep(self, name: str, fds: Sequence[int], data: bytes = b"") -> bool:
        """``put`` without an answer; False: it could not be sent at once."""
        return self._send_only(["keep", name, data], fds)

    def forget(self, name: str) -> bool:
        """``drop`` without an answer; False: it is sent by a later ``flush``."""
        sent = self._send_only(["forget", name])
        if not sent:
            self._unsent.append(msgpack.packb(["forget", name]))
        return sent

    def flush(self) -> None:
        """Send what could not be sent at once, as far as it can now."""
        with contextlib.suppress(OSError):
            while self._unsent:
                _send(self._socket, self._unsent[0], (), socket.MSG_DONTWAIT)
                self._unsent.popleft()

    def _send_only(self, request: list[Any], fds: Sequence[int] = ()) -> bool:
        self.flush()
        if self._unsent:  # in their order: a name may be used again
            return False
        try:
            _send(self._socket, msgpack.packb(request), fds, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def get(self, name: str) -> Shelved | None:
        """Copies of what lies there, which the caller closes; None: nothing does."""
        (found, *data), fds = self._ask(["get", name])
        return Shelved(tuple(fds), data[0]) if found else None

    def drop(self, name: str) -> bool:
        """Close what lies there; whether anything did."""
        return bool(self._ask(["drop", name])[0][0])

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin so."""
        found: list[str] = []
        while some := self._ask(["names", prefix, found[-1] if found else ""])[0][1]:
            found += some
        return found

    def close(self) -> None:
        """End the connection; what was put there stays."""
        self._socket.close()

    def _ask(self, request: list[Any], fds: Sequence[int] = ()) -> tuple[list[Any], list[int]]:
        try:
            while self._unsent:
                _send(self._socket, self._unsent.popleft())
            _send(self._socket, msgpack.packb(request), fds)
            return self._receive()
        except OSError as error:
            raise NodeNotRunning(self._folder, f"its descriptor shelf: {error}") from error

    def _receive(self) -> tuple[list[Any], list[int]]:
        packet, fds = _receive(self._socket)
        if not packet:
            raise ConnectionResetError("it ended")
        return msgpack.unpackb(packet), fds


def _send(peer: socket.socket, packet: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([packet], rights, socket.MSG_NOSIGNAL | flags)


def _receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    """A packet, empty at the end, and its descriptors."""
    found = array.array("i")
    room = socket.CMSG_SPACE(MAX_FDS * found.itemsize)
    packet, ancillary, flags, _ = peer.recvmsg(MAX_PACKET, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    if flags & socket.MSG_CTRUNC:  # some did not fit, or this process may have no more
        _close(found)
        return packet, []
    return packet, list(found)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
