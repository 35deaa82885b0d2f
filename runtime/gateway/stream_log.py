"""The log of one answer: what a successor needs to continue it on the same socket.

A request's socket and its log, a memory file, lie on the launcher's descriptor shelf while it is
answered. The log begins with the request; then comes a record for each write to the socket, with
the events that its bytes show, appended before the write. When the worker is killed, its successor
takes both from the shelf. The kernel states how many bytes of the answer it has accepted: those
that the peer has acknowledged, and those in its queue. The rest of the logged bytes is sent, the
events are read into a new renderer, the request is sent to the node again with the tokens that the
log holds, and the answer continues.

Only for TCP without TLS: nothing else counts acknowledged bytes, and the state of TLS is lost.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from runtime.client.results import Event, TokenEvent
from runtime.gateway.keys import Key
from supervision.codec import FrameRefused, ValueCodec
from supervision.shelf import ShelfClient

STREAMS: Final = "gateway/stream/"
"""Beginning of the names of logs on the shelf; then the worker's number."""
CONNECTIONS: Final = "gateway/connection/"
"""The same of connections."""
_CLEAN: Final = b"R\0"
_DIRTY: Final = b"R\1"
_WHOLE: Final = b"R\2"
_RECEIVED_HEAD: Final = struct.Struct("<2sBQ")
"""Of a log of what has come: one of the three, how often it was taken over, and how many bytes the
kernel has accepted for the connection once a whole answer is sent."""
MODEL: Final = "model:"
TAKEN: Final = "taken"
HELD: Final = "held"
HELD_S: Final = 0.3
"""A worker that has had a request for so long was not ended by it."""
ENDED: Final = b"ended"
"""Beside the log of a response on the shelf: it need not be read to see that."""
ALONE_AFTER: Final = 2
"""Such takeovers in a row after which an answer is continued alone: another one that was continued
at the same time may be what ends the workers."""
MAX_TAKEN: Final = 10
"""Takeovers in a row that ended before that, and with nothing sent: it may be the request that ends
the workers."""
MAX_TAKEN_AT_ALL: Final = 100
"""Those with nothing sent, however long they lasted."""
MAX_LOG_BYTES: Final = 16 << 20
"""A longer answer is not continued after a kill."""
_CODEC: Final = ValueCodec(("actors", "cache", "native", "runtime"))
"""Used by the thread of the event loop alone."""
_LENGTHS: Final = struct.Struct("<II")
"""Of a record: bytes of its events, bytes of the answer."""
_ACKED: Final = struct.Struct("=Q")
_ACKED_AT: Final = 120
"""Where ``tcpi_bytes_acked`` lies in Linux's ``struct tcp_info``, since 4.1."""
_TCP_INFO_BYTES: Final = 256
_MARK: Final = b"stream_log:Mark"
"""In the bytes of events among which there may be one."""
_FLUSH_S: Final = 0.05
_READS: Final = 100

Numbered = tuple[int, Event]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of an answer that no event of a reply stands for.

    ``begin``, ``end``, ``failed``; ``model:ID``, which model the request's name has meant;
    ``items:JSON``, what was stored and it refers to; ``taken``, a successor continues it; ``held``,
    that was ``HELD_S`` ago.
    """

    name: str


class LoggedHead(msgspec.Struct, kw_only=True):
    """The request, and what was fixed when its answer began."""

    call_id: str
    connection_id: str
    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    """Without keys."""
    body: bytes
    key: Key
    answer_id: str
    created: int
    seed: int
    base: int
    """Bytes that the connection had carried before the answer."""
    at: float
    """Unix time of the request."""

    @property
    def client(self) -> str:
        """Its ``User-Agent``."""
        return dict(self.headers).get(b"user-agent", b"").decode("latin-1")


@dataclass(slots=True)
class Logged:
    """What a log holds."""

    head: LoggedHead
    items: list[tuple[int, Event | Mark]] = field(default_factory=list)
    """Events with the number of their reply, and marks."""
    data: bytes = b""
    """Of the answer, from its status line on."""
    n_taken: int = 0
    """Short takeovers since it had its last byte."""
    n_taken_at_all: int = 0
    """All takeovers since then."""
    n_bytes: int = 0
    """Of the log's whole records."""

    @property
    def is_given_up(self) -> bool:
        """Whether it may be this request that ends the workers."""
        return self.n_taken >= MAX_TAKEN or self.n_taken_at_all >= MAX_TAKEN_AT_ALL

    @property
    def marks(self) -> set[str]:
        return {item.name for _, item in self.items if isinstance(item, Mark)}

    @property
    def model(self) -> str | None:
        """The model that answers, if that was decided before anything was sent."""
        return self.find(MODEL)

    def find(self, prefix: str) -> str | None:
        """What was noted after this prefix."""
        names = [one.removeprefix(prefix) for one in self.marks if one.startswith(prefix)]
        return names[0] if names else None

    def events(self, number: int) -> list[Event]:
        """Those of one reply."""
        return [item for n, item in self.items if n == number and not isinstance(item, Mark)]


class ReceivedLog:
    """What has come on a connection and is not answered: for one that is accepted, or idle.

    A successor reads it as if it came just now, so that a pooled connection outlives its worker
    too. Once an answer begins that is not logged, the connection cannot be continued.
    """

    def __init__(self, shelf: ShelfClient, name: str, fd: int, n_taken: int) -> None:
        self._shelf = shelf
        self._name = name
        self._fd: int | None = fd
        self._size = 0
        self._n_taken = n_taken
        self._is_dirty = False

    @classmethod
    def prepare(cls, shelf: ShelfClient, name: str, n_taken: int = 0) -> ReceivedLog | None:
        """A log for a connection that is still to come; None: there is no descriptor for it."""
        try:
            fd = os.memfd_create("llama-actors-connection", os.MFD_CLOEXEC)
        except OSError:
            return None
        os.write(fd, _RECEIVED_HEAD.pack(_CLEAN, n_taken, 0))
        return cls(shelf, name, fd, n_taken)

    def keep(self, sock: socket.socket) -> bool:
        """Put the connection and this log on the shelf; False where that cannot be done."""
        if self._fd is None or not self._shelf.keep(self._name, [sock.fileno(), self._fd]):
            self.close()
            return False
        return True

    def add(self, data: bytes) -> None:
        """These bytes have come, and are about to be read."""
        if self._fd is None:
            return
        self._size += len(data)
        try:
            if self._size > MAX_LOG_BYTES:
                self.drop()
            else:
                write_all(self._fd, data)
        except OSError:
            self.drop()

    def clear(self) -> None:
        """What has come is answered, or is in the log of an answer."""
        if self._fd is not None and (self._size or self._is_dirty or self._n_taken):
            os.ftruncate(self._fd, _RECEIVED_HEAD.size)
            os.lseek(self._fd, _RECEIVED_HEAD.size, os.SEEK_SET)
            os.pwrite(self._fd, _RECEIVED_HEAD.pack(_CLEAN, 0, 0), 0)
            self._size, self._is_dirty, self._n_taken = 0, False, 0

    def answers(self, until: int = 0) -> None:
        """An answer begins that is not logged.

        ``until``: where it is written at once, the bytes that the kernel has accepted for the
        connection when it has all of it.
        """
        if self._fd is not None and not self._is_dirty:
            self._is_dirty = True
            head = _RECEIVED_HEAD.pack(_WHOLE if until else _DIRTY, self._n_taken, until)
            os.pwrite(self._fd, head, 0)

    def drop(self) -> None:
        """Take it from the shelf."""
        if self._fd is not None:
            self._shelf.forget(self._name)
            self.close()

    def close(self) -> None:
        """Note nothing more; what is on the shelf stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@dataclass(frozen=True, slots=True)
class Received:
    """What had come on a connection, and was not answered."""

    data: bytes = b""
    n_taken: int = 0
    """How often a successor has read it."""


def read_received(fd: int, sock: socket.socket | None = None) -> Received | None:
    """What had come on a connection; None: an answer had begun, and is not sent whole."""
    raw = content(fd)
    if len(raw) < _RECEIVED_HEAD.size:
        return None
    state, n_taken, until = _RECEIVED_HEAD.unpack_from(raw)
    if state == _CLEAN:
        return Received(raw[_RECEIVED_HEAD.size :], n_taken)
    is_sent = state == _WHOLE and sock is not None and is_countable(sock)
    return Received() if is_sent and sock is not None and accepted(sock) == until else None


class StreamLog:
    """The log of an answer that this process gives."""

    def __init__(self, shelf: ShelfClient, name: str, fd: int, size: int) -> None:
        self._shelf = shelf
        self._name = name
        self._fd: int | None = fd
        self._size = size
        self._pending: list[list[Any]] = []
        self.n_data = 0
        """Bytes of the answer that were noted by this process."""

    @classmethod
    def begin(
        cls, shelf: ShelfClient, name: str, sock: socket.socket | None, head: LoggedHead
    ) -> StreamLog | None:
        """Put a new log and the socket on the shelf; None where that cannot be done.

        Without a socket it is the log of a response in the background: its bytes are frames.
        """
        packed = msgspec.msgpack.encode(head)
        if len(packed) > MAX_LOG_BYTES:
            return None
        try:
            fd = os.memfd_create("llama-actors-stream", os.MFD_CLOEXEC)
        except OSError:
            return None
        os.write(fd, struct.pack("<I", len(packed)))
        write_all(fd, packed)
        log = cls(shelf, name, fd, 4 + len(packed))
        if not shelf.keep(name, [fd] if sock is None else [sock.fileno(), fd]):
            log._close()
            return None
        return log

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    @property
    def n_bytes(self) -> int:
        """What it takes."""
        return self._size if self.is_open else 0

    def take(self, n_bytes: int) -> None:
        """Go on after these bytes: the last record may be cut. Note that this was a takeover."""
        if self._fd is None:
            return
        os.ftruncate(self._fd, n_bytes)
        os.lseek(self._fd, n_bytes, os.SEEK_SET)
        self._size = n_bytes
        self.note(-1, Mark(TAKEN))
        self.wrote(b"")

    def note(self, number: int, item: Event | Mark) -> None:
        """The next bytes that are written show this."""
        if self._fd is None:
            return
        if type(item) is TokenEvent and not item.logprobs:  # nearly always: packed in a tenth
            self._pending.append([number, item.index, item.text, item.kind, *item.tokens])
        else:
            self._pending.append([number, item])

    def remember(self, prefix: str, value: str) -> None:
        """Note what a successor could not know, at once."""
        self.note(-1, Mark(prefix + value))
        self.wrote(b"")

    def wrote(self, data: bytes) -> None:
        """These bytes are about to be written to the socket, or would be if it were open."""
        self.n_data += len(data)
        if self._fd is None:
            return
        events = _CODEC.pack(self._pending) if self._pending else b""
        self._pending = []
        record = _LENGTHS.pack(len(events), len(data)) + events + data
        self._size += len(record)
        if self._size > MAX_LOG_BYTES:
            self.drop()
            return
        try:
            write_all(self._fd, record)
        except OSError:  # no memory: the answer goes on without it
            self.drop()

    def end(self) -> None:
        """A response in the background has ended: its log is shown, and not continued."""
        if self._fd is not None:
            self._shelf.keep(self._name, [self._fd], ENDED)

    def finish(self, transport: asyncio.Transport) -> None:
        """The answer is complete; the log is needed until the kernel has all of it."""
        if self._fd is None:
            return
        if not transport.get_write_buffer_size():
            self.drop()
        else:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.finish, transport)

    def drop(self) -> None:
        """Take it from the shelf: the answer is complete, or its client is gone."""
        if self._fd is not None:
            self._shelf.forget(self._name)
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_log(fd: int) -> Logged | None:
    """All whole records of a log; None where not even its head is whole."""
    raw = content(fd)
    if len(raw) < 4:
        return None
    n_head = struct.unpack_from("<I", raw)[0]
    try:
        head = msgspec.msgpack.decode(raw[4 : 4 + n_head], type=LoggedHead)
        found = Logged(head, n_bytes=4 + n_head)
        parts = []
        for events, data in _records(raw, 4 + n_head):
            items = list(_items(events))
            found.items += items
            parts.append(data)
            found.n_bytes += _LENGTHS.size + len(events) + len(data)
            n_taken = items.count((-1, Mark(TAKEN)))
            is_held = (-1, Mark(HELD)) in items
            found.n_taken = 0 if data or is_held else found.n_taken + n_taken
            found.n_taken_at_all = 0 if data else found.n_taken_at_all + n_taken
    except (msgspec.DecodeError, FrameRefused, TypeError, ValueError):
        return None
    found.data = b"".join(parts)
    return found


def _records(raw: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    while at + _LENGTHS.size <= len(raw):
        n_events, n_data = _LENGTHS.unpack_from(raw, at)
        start, middle = at + _LENGTHS.size, at + _LENGTHS.size + n_events
        at = middle + n_data
        if at > len(raw):
            return  # its writer was killed while it wrote this
        yield raw[start:middle], raw[middle:at]


def _items(events: bytes) -> Iterable[tuple[int, Event | Mark]]:
    if not events:
        return []
    return [_item(*one) for one in _CODEC.unpack(events)]


def _item(number: int, item: Any, *rest: Any) -> tuple[int, Event | Mark]:
    if not rest:
        return number, item
    text, kind, *tokens = rest
    return number, TokenEvent(item, tuple(tokens), text, (), kind)


def read_records(fd: int, at: int) -> tuple[list[tuple[set[str], bytes]], int]:
    """The names of the marks and the bytes of each whole record from ``at`` on; and where it ends.

    ``at`` 0: of the first. Its writer may go on while this is read.
    """
    if not at:
        n_head = os.pread(fd, 4, 0)
        at = 4 + struct.unpack("<I", n_head)[0] if len(n_head) == 4 else 0
    found = []
    for events, data in _records(content(fd, at), 0) if at else ():
        items = _items(events) if _MARK in events else ()
        marks = {item.name for _, item in items if isinstance(item, Mark)}
        found.append((marks, data))
        at += _LENGTHS.size + len(events) + len(data)
    return found, at


def content(fd: int, at: int = 0) -> bytes:
    """All that a file has from ``at`` on."""
    size = os.fstat(fd).st_size
    parts: list[bytes] = []
    while at < size and (part := os.pread(fd, size - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# ── what the kernel has ─────────────────────────────────────────────────────────────────────────


def is_countable(sock: socket.socket) -> bool:
    """Whether the kernel counts what the peer of this socket has acknowledged."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    with contextlib.suppress(OSError, struct.error):
        accepted(sock)
        return True
    return False


def accepted(sock: socket.socket) -> int:
    """Bytes that the kernel has accepted for this socket in all: acknowledged, or in its queue."""
    for _ in range(_READS):
        before = _acked(sock)
        queued = array.array("i", [0])
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
        if _acked(sock) == before:  # else an acknowledgement came between the two
            break
    return before + queued[0]


def _acked(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    acked: int = _ACKED.unpack_from(info, _ACKED_AT)[0]
    return acked
