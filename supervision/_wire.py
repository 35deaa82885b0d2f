"""What Thespian sends: on loopback, authenticated, capped, and closed when it is closed."""

from __future__ import annotations

import contextlib
import functools
import math
import pickle
import re
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final

from supervision._thespian import ActorAddress, sb, tcp
from supervision.address import Address
from supervision.errors import TransportRefused
from supervision.frames import MAX_FRAME_BYTES, FrameCodec, FrameRefused

LOOPBACK: Final = "127.0.0.1"


class LoopbackAddress(tcp.TCPv4ActorAddress):  # type: ignore[misc]
    """Binds to loopback only; Thespian's own binds to every interface."""

    def __init__(self, host: str | None = None, port: int = 0, external: object = False) -> None:
        super().__init__(host or LOOPBACK, port, external)

    @property
    def bindArgs(self) -> tuple[tuple[str, int]]:  # noqa: N802
        return ((LOOPBACK, self.sockname[1]),)

    def __getstate__(self) -> tuple[str, int]:
        return (self.sockname[0], self.sockname[1])

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.af, self.socktype = socket.AF_INET, socket.SOCK_STREAM
        self.proto = socket.IPPROTO_TCP
        self.sockname, self.bindname = state, ("", state[1])


class CappedBuffer(sb.ReceiveBuffer):  # type: ignore[misc]
    """A frame has a short decimal length within the cap; anything else closes the socket."""

    _header = re.compile(rb"[0-9]{1,10}>")

    def addMore(self, buf: bytes) -> None:  # noqa: N802
        if not buf:  # upstream hands over "" where nothing followed a frame
            return
        if self._size is None:
            head = (self._buf + buf)[:11]
            complete = self._header.match(head)
            if not complete and (len(head) > 10 or not head.isdigit()):
                raise FrameRefused("no frame length")
        super().addMore(buf)
        if self._size is not None and not 0 < self._size <= MAX_FRAME_BYTES:
            raise FrameRefused(f"frame of {self._size} bytes")


class Serializer:
    """Stands where Thespian expects ``pickle``.

    Every buffer gets the codec of the transport that is at work on this thread, so that one host
    can hold several nodes.
    """

    at_work = threading.local()

    @property
    def loads(self) -> Callable[[bytes], Any]:
        codec: FrameCodec | None = getattr(self.at_work, "codec", None)
        return _no_codec if codec is None else codec.open


def _no_codec(_payload: bytes) -> Any:
    raise FrameRefused("no node's cookie is in use here")


def make_codec(cookie: bytes, packages: tuple[str, ...]) -> FrameCodec:
    """The codec of a node, which knows Thespian's two acknowledgements."""
    codec = FrameCodec(cookie, packages)
    for word in (sb.ackPacket, sb.ackDataErrPacket):
        codec.accept_constant(pickle.dumps(word), word)
    return codec


class NodeTransport(tcp.TCPTransport):  # type: ignore[misc]
    """Thespian's TCP transport, with the node's codec and a ``close`` that closes."""

    node_codec: FrameCodec | None = None
    """The codec of this process's node; inherited by fork. Host contexts carry their own."""

    def __init__(self, how: object, *args: object, codec: FrameCodec | None = None) -> None:
        self.codec = codec or self.node_codec
        super().__init__(how, *args)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        before = getattr(Serializer.at_work, "codec", None)
        Serializer.at_work.codec = self.codec
        try:
            yield
        finally:
            Serializer.at_work.codec = before

    def serializer(self, intent: Any) -> bytes:
        if self.codec is None:
            raise TransportRefused("this transport has no cookie")
        sealed: bytes = sb.toSendBuffer((self.myAddress, intent.message), self.codec.seal)
        if len(sealed) > MAX_FRAME_BYTES:
            raise TransportRefused(
                f"a {type(intent.message).__name__} of {len(sealed)} bytes is too large for a "
                "message; hand over a key or a path instead"
            )
        return sealed

    def _runWithExpiry(self, handler: object) -> Any:  # noqa: N802
        with self._at_work():
            return super()._runWithExpiry(handler)

    def _scheduleTransmitActual(self, intent: Any, **kwargs: Any) -> Any:  # noqa: N802
        with self._at_work():
            return super()._scheduleTransmitActual(intent, **kwargs)

    def external_transport_clone(self) -> NodeTransport:
        return NodeTransport(
            tcp.ExternalTransportCopy(), self._adminAddr, False, False, codec=self.codec
        )

    def close(self) -> None:
        if not hasattr(self, "_transmitIntents"):
            return
        users = [*self._incomingSockets.values(), *getattr(self, "_openSockets", {}).values(),
                 *self._transmitIntents.values(), *self._waitingTransmits]  # fmt: skip
        sockets = [self.socket, *(getattr(one, "socket", None) for one in users)]
        self._openSockets: dict[Any, Any] = {}
        self._incomingSockets: dict[int, Any] = {}
        super().close()
        for one in sockets:
            if one is not None:
                one.close()


class PollOnce:
    """Stands where Thespian makes an epoll set for every turn of its loop.

    It fills and throws away the set each time, which ``poll`` does with one system call instead
    of a dozen. And where the same descriptor comes twice, this merges; upstream dies of it.
    """

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        if fd < 0:
            raise ValueError(f"invalid file descriptor {fd}")
        self._wanted[fd] = self._wanted.get(fd, 0) | events

    def select(self, timeout_s: float | None) -> list[tuple[SimpleNamespace, int]]:
        poll = select.poll()
        for fd, events in self._wanted.items():
            read = select.POLLIN if events & selectors.EVENT_READ else 0
            poll.register(fd, read | (select.POLLOUT if events & selectors.EVENT_WRITE else 0))
        timeout_ms = None if timeout_s is None else math.ceil(timeout_s * 1000)
        found = []
        for fd, got in poll.poll(timeout_ms):
            ready = 0
            if got & ~select.POLLIN:
                ready |= selectors.EVENT_WRITE
            if got & ~select.POLLOUT:
                ready |= selectors.EVENT_READ
            found.append((SimpleNamespace(fd=fd), ready & self._wanted[fd]))
        return found

    def close(self) -> None:
        self._wanted.clear()


@contextlib.contextmanager
def exclusive_processing(transport: Any) -> Iterator[None]:
    """Thespian's own leaves the flag set when the section raises, and the process then spins."""
    while not transport._exclusively_processing():
        time.sleep(0.000001)  # noqa: TID251 - as upstream: microseconds
    try:
        yield
    finally:
        transport._not_processing()


def to_thespian(address: Address) -> Any:
    """Thespian's form of an address."""
    return ActorAddress(_details(address))


@functools.lru_cache(maxsize=1024)
def _details(address: Address) -> LoopbackAddress:
    return LoopbackAddress(address.host, address.port, external=True)


def from_thespian(address: Any) -> Address:
    """Our form of an address."""
    host, port = address.addressDetails.sockname[:2]
    return Address(host, port)
