"""Where a process of the node, or a host of it, receives messages: one port, one inbox, one thread.

An endpoint listens on loopback, sends messages to other endpoints in order, and collects what comes
in ``inbox``. Connections stay open and carry messages both ways. Until the other side has proved
that it has the cookie, a connection is *unauthenticated*: it gets little memory, a few seconds, and
one of a bounded number of places; what it does costs a counter and a line in the log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Container, Iterable
from typing import Final

from supervision.address import Address
from supervision.codec import FrameRefused, ValueCodec
from supervision.errors import TransportRefused
from supervision.link import READ_BYTES, Done, Link, Outcome, Outgoing
from supervision.session import (
    MAX_FRAME_BYTES,
    Acked,
    Arrived,
    Event,
    Left,
    Proved,
    Secret,
    Session,
)
from supervision.unauthenticated import Unauthenticated, log_dropped, silence_of

LOOPBACK: Final = "127.0.0.1"
MAX_WAITING: Final = 10_000
"""More unaccepted messages than this for one target: it is stuck; new ones are refused."""
MAX_WAITING_BYTES: Final = 64 << 20
_ACK_DELAY_S: Final = 0.05
_BACKLOG: Final = 1024
_ACCEPTS_PER_TURN: Final = 64
_TRIES: Final = 3
_LEAVE_S: Final = 0.1
_MAX_WAIT_S: Final = 86_400.0
"""epoll counts milliseconds in 32 bits; a wait that ends early is allowed."""


class Endpoint:
    """One process's or one host thread's place in a node. For one thread; ``wake`` for any."""

    def __init__(
        self,
        secret: Secret,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        codec: ValueCodec | None = None,
    ) -> None:
        """Listen. ``codec``: one that this thread has already, for the same packages."""
        self.codec = codec or ValueCodec(secret.packages)
        self.inbox: deque[tuple[Address, object]] = deque()
        """Messages that have come, with their senders."""
        self._secret = secret
        self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        self._socket.setblocking(False)
        self.address = Address(host, self._socket.getsockname()[1])
        self._epoll = select.epoll(sizehint=16)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._links: dict[int, Link] = {}
        self._peers: dict[Address, Link] = {}
        self._unauthenticated = Unauthenticated()
        self._owing: dict[int, Link] = {}
        self._ack_at = 0.0
        self._finished: deque[tuple[Done, Outcome]] = deque()
        self._watched: set[int] = set()
        self.ended: deque[int] = deque()
        """Processes of ``watch_process`` that have ended, by pid."""
        self._pidfds: dict[int, int] = {}
        """Which process each descriptor is for."""
        self._resume_at: float | None = None
        self._epoll.register(self._socket.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)

    # ── messages out ─────────────────────────────────────────────────────────

    def send(
        self, target: Address, message: object, done: Done | None = None, *, prompt: bool = False
    ) -> Outgoing:
        """Send; ``done`` is called with the outcome, from a later ``poll``.

        ``prompt``: the sender waits for that, so the other side acknowledges at once. Raises
        TransportRefused where the message cannot travel at all.
        """
        payload = self.codec.pack(message)
        if len(payload) > MAX_FRAME_BYTES - 64:
            raise TransportRefused(
                f"a {type(message).__name__} of {len(payload)} bytes is too large for a "
                "message; hand over a key or a path instead"
            )
        outgoing = Outgoing(payload, done, prompt)
        if target == self.address:
            self.inbox.append((target, self.codec.unpack(payload)))
            self._finish(outgoing, Outcome.ARRIVED)
            return outgoing
        link = self._peers.get(target)
        if link is None:
            link = self._connect(target)
        if link is None or _is_stuck(link):
            if link is not None:
                log_dropped(target)
            self._finish(outgoing, Outcome.REFUSED)
            return outgoing
        link.put(outgoing)
        self._flush(link)
        return outgoing

    def cancel(self, target: Address, outgoing: Outgoing) -> bool:
        """Take back a message that has not left. False: it has, or it is over."""
        link = self._peers.get(target)
        return link is not None and link.cancel(outgoing)

    @property
    def refused(self) -> int:
        """Connections closed because of what came on them, or did not come, since the start."""
        return self._unauthenticated.refused

    def is_connected(self, target: Address) -> bool:
        """Whether a connection to this address stands, or is being made."""
        return target in self._peers

    def backlog(self, target: Address) -> int:
        """Messages for this target that it has not acknowledged."""
        link = self._peers.get(target)
        return 0 if link is None else link.unaccepted

    def unwritten(self) -> int:
        """Messages that have not left this process."""
        return sum(link.unwritten for link in self._peers.values())

    def _finish(self, outgoing: Outgoing, outcome: Outcome) -> None:
        if outgoing.done is not None:
            self._finished.append((outgoing.done, outcome))

    # ── connections ──────────────────────────────────────────────────────────

    def _connect(self, target: Address, tries: int = 1) -> Link | None:
        """A connection that is being made to ``target``; None: no process listens there."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        _no_delay(sock)
        code = sock.connect_ex((target.host, target.port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            return None
        session = Session(self._secret, self.address.port, target.port)
        link = Link(sock, session, target, time.monotonic())
        link.connected = code == 0
        link.tries = tries
        self._peers[target] = link
        self._add(link)
        return link

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause_accepting(error)
                return
            sock.setblocking(False)
            _no_delay(sock)
            while (surplus := self._unauthenticated.surplus()) is not None:
                self._refuse(surplus, "too many at once")
            session = Session(self._secret, self.address.port, None)
            self._add(Link(sock, session, None, time.monotonic()))

    def _pause_accepting(self, error: OSError) -> None:
        oldest = self._unauthenticated.oldest()
        if oldest is not None:
            self._refuse(oldest, str(error))
            return
        self._epoll.unregister(self._socket.fileno())
        self._resume_at = time.monotonic() + 0.1

    def _add(self, link: Link) -> None:
        self._links[link.fd] = link
        self._unauthenticated.add(link)
        link.events = link.wanted_events
        self._epoll.register(link.fd, link.events)

    def _drop(self, link: Link) -> None:
        """The connection is gone: forget it, and report the outcome of its messages."""
        if self._links.pop(link.fd, None) is None:
            return
        with contextlib.suppress(OSError):
            self._epoll.unregister(link.fd)
        self._unauthenticated.remove(link)
        self._owing.pop(link.fd, None)
        if link.peer is not None and self._peers.get(link.peer) is link:
            del self._peers[link.peer]
            if not link.session.is_open and link.waiting and link.tries < _TRIES:
                # It was refused before it could authenticate: the other side is crowded.
                again = self._connect(link.peer, link.tries + 1)
                if again is not None:
                    again.waiting.extend(link.waiting)
                    link.waiting.clear()
            else:
                self._use_another(link.peer)
        for outgoing, outcome in link.close():
            self._finish(outgoing, outcome)

    def _use_another(self, peer: Address) -> None:
        """Of two connections to the same endpoint the other one may still stand."""
        for link in self._links.values():
            if link.peer == peer and link.session.is_open:
                self._peers[peer] = link
                return

    def _refuse(self, link: Link, why: str) -> None:
        self._unauthenticated.log_refusal(why)
        if not link.session.is_open:
            link.tries = _TRIES  # what it did was wrong: no second try
        self._drop(link)

    # ── the loop ─────────────────────────────────────────────────────────────

    def poll(self, timeout_s: float | None) -> list[int]:
        """Wait for events and handle them; the watched descriptors that are ready.

        Returns after ``timeout_s`` at the latest, and may return earlier without an event.
        """
        if self._finished or self.inbox or self.ended:
            timeout_s = 0.0
        ready: list[int] = []
        for fd, events in self._epoll.poll(self._until(timeout_s)):
            link = self._links.get(fd)
            if link is not None:
                self._serve(link, events)
            elif fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
            elif fd in self._watched:
                ready.append(fd)
            elif fd in self._pidfds:
                self.ended.append(self._pidfds[fd])
                self._close_pidfd(fd)
            elif fd == self._socket.fileno():
                self._accept()
        self._tidy()
        if self._finished:
            self._report()
        return ready

    def fileno(self) -> int:
        """For an event loop: readable when ``poll(0)`` has something to do."""
        return self._epoll.fileno()

    def due_s(self) -> float | None:
        """For an event loop: seconds until ``poll(0)`` is due though nothing is readable.

        None: until then there is nothing to wait for.
        """
        return 0.0 if self._finished or self.inbox else self._until(None)

    def _until(self, timeout_s: float | None) -> float | None:
        """How long to wait, given what is due here."""
        if timeout_s == 0.0:
            return 0.0
        now = time.monotonic()
        times = [] if timeout_s is None else [now + min(timeout_s, _MAX_WAIT_S)]
        if self._owing:
            times.append(self._ack_at)
        if (due := self._unauthenticated.due_at()) is not None:
            times.append(due)
        if self._resume_at is not None:
            times.append(self._resume_at)
        # epoll counts milliseconds and rounds up; never early, at most one late.
        return max(0.0, min(times) - now) if times else None

    def _serve(self, link: Link, events: int) -> None:
        try:
            if events & select.EPOLLOUT and not link.connected:
                self._connected(link)
            if events & ~select.EPOLLOUT:
                self._read(link)
            if self._has(link):
                self._flush(link)
        except FrameRefused as refusal:
            self._refuse(link, str(refusal))
        except OSError:
            self._drop(link)

    def _connected(self, link: Link) -> None:
        code = link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            link.tries = _TRIES
            raise OSError(code, "not connected")
        link.connected = True

    def _read(self, link: Link) -> None:
        try:
            data = link.socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            if not link.connected:
                link.tries = _TRIES  # refused: no process listens there
            raise
        if not data:
            if not link.session.is_open and link.peer is None:
                self._refuse(link, "closed before it authenticated")
            else:
                self._drop(link)
            return
        self._receive(link, data)
        if not self._has(link):
            return
        if link.owes_ack and link.fd not in self._owing:
            if not self._owing:
                self._ack_at = time.monotonic() + _ACK_DELAY_S
            self._owing[link.fd] = link

    def _receive(self, link: Link, data: bytes) -> None:
        for event in link.session.receive(data):
            self._take(link, event)

    def _has(self, link: Link) -> bool:
        return self._links.get(link.fd) is link

    def _take(self, link: Link, event: Event) -> None:
        match event:
            case Arrived(payload, wants_ack):
                if link.peer is not None:  # always: the session received an identity first
                    self.inbox.append((link.peer, self.codec.unpack(payload)))
                    link.note_arrived(wants_ack=wants_ack)
            case Acked(count):
                for outgoing in link.note_acked(count):
                    self._finish(outgoing, Outcome.ARRIVED)
            case Left(count):
                for outgoing in link.note_acked(count):
                    self._finish(outgoing, Outcome.ARRIVED)
                for outgoing in link.note_left():
                    self._finish(outgoing, Outcome.REFUSED)
                self._drop(link)
            case Proved(port):
                self._proved(link, Address(self.address.host, port))

    def _proved(self, link: Link, peer: Address) -> None:
        self._unauthenticated.remove(link)
        link.peer = peer
        link.opened()
        known = self._peers.get(peer)
        # Of two connections the newer one certainly works, but messages that are on
        # their way on the older one must not be overtaken.
        if known is None or (known is not link and not known.unaccepted):
            self._peers[peer] = link

    def _flush(self, link: Link) -> None:
        try:
            link.flush()
        except OSError:
            self._read_last(link)
            self._drop(link)
            return
        if not link.owes_ack:
            self._owing.pop(link.fd, None)
        wanted = link.wanted_events
        if wanted != link.events:
            link.events = wanted
            self._epoll.modify(link.fd, wanted)

    def _read_last(self, link: Link) -> None:
        """Writing failed: the kernel may still hold what the other side sent before it ended."""
        with contextlib.suppress(OSError, FrameRefused):
            while self._has(link) and (data := link.socket.recv(READ_BYTES)):
                self._receive(link, data)

    def _tidy(self) -> None:
        """What is due by time."""
        now = time.monotonic()
        if not self._unauthenticated.is_idle:
            for link in self._unauthenticated.overdue(now):
                if link.peer is None:
                    self._refuse(link, silence_of(link))
                else:
                    link.tries = _TRIES
                    self._drop(link)
            self._unauthenticated.log(now)
        if self._owing and now >= self._ack_at:
            for link in list(self._owing.values()):
                link.put_ack()
                self._flush(link)
            self._owing.clear()
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            self._epoll.register(self._socket.fileno(), select.EPOLLIN)

    def _report(self) -> None:
        for _ in range(len(self._finished)):
            done, outcome = self._finished.popleft()
            done(outcome)

    # ── more to wait for ─────────────────────────────────────────────────────

    def watch(self, fds: Iterable[int]) -> None:
        """From now on ``poll`` returns exactly these descriptors when they are readable."""
        wanted = set(fds)
        if wanted == self._watched:
            return
        for fd in self._watched - wanted:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
        for fd in wanted - self._watched:
            self._epoll.register(fd, select.EPOLLIN)
        self._watched = wanted

    def watch_process(self, pid: int) -> None:
        """Put ``pid`` into ``ended`` once this process has ended, from a later ``poll``.

        The process must be a child of this one that has not been waited for, so that its pid cannot
        belong to another process yet. Raises OSError where no descriptor is to be had.
        """
        fd = os.pidfd_open(pid)
        self._pidfds[fd] = pid
        self._epoll.register(fd, select.EPOLLIN)

    def _close_pidfd(self, fd: int) -> None:
        del self._pidfds[fd]
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        os.close(fd)

    def wake(self) -> None:
        """Make ``poll`` return; from a signal handler or another thread."""
        os.eventfd_write(self._wake_fd, 1)

    def filenos(self) -> list[int]:
        """Every descriptor of this endpoint: a process forked from this one must close them."""
        own = [self._socket.fileno(), self._epoll.fileno(), self._wake_fd]
        return [*own, *self._links, *self._pidfds]

    def announce_end(self) -> None:
        """Send every peer the count of its messages that were read; no later one will be.

        For a process that has refused what it had read and not handled. Each peer then reports its
        later messages as undelivered. Returns when all has left, within ``_LEAVE_S``.
        """
        for link in list(self._links.values()):
            if link.session.is_open:
                link.put_bye()
                self._flush(link)
        deadline = time.monotonic() + _LEAVE_S
        while any(one.has_unsent_bytes for one in self._links.values()):
            if time.monotonic() > deadline:
                return
            select.select((), (), (), 0.001)  # there is no event for when the other side takes more

    def acknowledge(self, *, except_to: Container[Address] = ()) -> None:
        """Acknowledge at once what has arrived; not to these senders."""
        for link in list(self._owing.values()):
            if link.peer not in except_to:
                link.put_ack()
                self._flush(link)

    def close(self) -> None:
        """Acknowledge what has arrived, and close everything; no ``done`` is called any more."""
        self.acknowledge()
        self._close_all()

    def abandon(self) -> None:
        """In a process forked from the owner: close its copies, and change nothing for the owner.

        Nothing is written, and the epoll set, which is shared, keeps its entries.
        """
        self._close_all()

    def _close_all(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._peers.clear()
        self._owing.clear()
        self._finished.clear()
        for fd in self._pidfds:
            os.close(fd)
        self._pidfds.clear()
        if not self._epoll.closed:
            self._epoll.close()
            self._socket.close()
            os.close(self._wake_fd)


def _is_stuck(link: Link) -> bool:
    """Whether more waits for the other side than one that works ever lets accumulate."""
    return link.unaccepted >= MAX_WAITING or link.unwritten_bytes >= MAX_WAITING_BYTES


def _no_delay(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
