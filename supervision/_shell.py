"""The actor that hosts a Worker, and the mailbox it is offered."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, NoReturn

from supervision import logs
from supervision._processes import ChildGone
from supervision._thespian import (
    Actor,
    ActorExitRequest,
    ActorSystemMessage,
    CannotPickleAddress,
    ThespianWatch,
    WakeupMessage,
    WatchMessage,
    tr,
)
from supervision._wire import from_thespian, to_thespian
from supervision.address import Address
from supervision.errors import TransportRefused
from supervision.messages import Init, Shutdown
from supervision.worker import Worker, load_actor, shutdown_reason

_DRAIN_S: Final = 0.1
_DRAIN_PARENT_S: Final = 1.0
_OUTBOX_MESSAGES: Final = 10_000
"""More than this for one target that takes none: it is stuck, and new messages are dropped."""

_Done = Callable[[bool], None] | None


class Shell(Actor):  # type: ignore[misc]
    """The Thespian actor that hosts one Worker, and the Mailbox it is offered.

    ``receiveMessage`` is the outermost frame: it never raises, because Thespian would run the
    handler a second time, and it always returns the watch, because Thespian forgets it otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self._worker: Worker | None = None
        self._watched: list[int] = []
        self._timers: list[tuple[float, int, object]] = []
        self._timer_numbers = itertools.count()
        self._armed = float("inf")
        self._children: dict[int, Any] = {}
        self._outboxes: dict[
            Address | int, deque[tuple[object, Callable[[bool], None] | None]]
        ] = {}
        self._thread = threading.get_ident()

    @property
    def address(self) -> Address:
        return from_thespian(self.myAddress)

    def receiveMessage(self, message: object, sender: Any) -> Any:
        try:
            self._dispatch(message, sender)
            if self._worker is not None:
                self._worker._end_if_asked()
        except BaseException:  # noqa: BLE001 - nothing may escape to Thespian
            self._crash(traceback.format_exc())
        return ThespianWatch(list(self._watched)) if self._watched else None

    def _dispatch(self, message: object, sender: Any) -> None:
        worker = self._worker
        if worker is None:
            if isinstance(message, Init):
                self._host(message, from_thespian(sender))
            elif isinstance(message, ActorExitRequest | Shutdown):
                self.exit(0)
        elif not isinstance(message, ActorSystemMessage):
            worker._receive(message, from_thespian(sender))
        elif isinstance(message, WatchMessage):
            worker._readable()
        elif isinstance(message, WakeupMessage):
            self._fire_timers(worker)
        elif isinstance(message, ChildGone):
            self._children.pop(message.pid, None)
            self._outboxes.pop(message.pid, None)
            worker._child_exited(message.pid, message.code)
        elif isinstance(message, ActorExitRequest):
            worker._shutdown(shutdown_reason("SIGTERM, or the end of the system"))

    def _host(self, init: Init, parent: Address) -> None:
        failure = None
        try:
            self._worker = load_actor(init.actor)()
        except Exception:  # noqa: BLE001 - whatever a module raises, the supervisor must hear it
            failure = traceback.format_exc()
            self._worker = Worker()
        self._worker._begin(self, init, parent, failure)

    def _crash(self, text: str) -> NoReturn:
        try:
            if self._worker is not None:
                self._worker._crash(text)
        finally:
            os._exit(1)

    # ── mailbox ──────────────────────────────────────────────────────────────

    def send(
        self,
        target: Address | int,
        message: object,
        done: Callable[[bool], None] | None = None,
    ) -> None:
        if not isinstance(target, Address | int):
            raise TransportRefused(f"{target!r} is no address")
        if threading.get_ident() != self._thread:
            raise TransportRefused("only the mailbox thread may send; post() to it instead")
        outbox = self._outboxes.get(target)
        if outbox is None:
            self._outboxes[target] = deque()
            self._transmit(target, message, done)
        elif len(outbox) < _OUTBOX_MESSAGES:
            outbox.append((message, done))
        else:
            logging.getLogger(logs.LOGGER).warning("%s takes no messages; dropped one", target)
            if done is not None:
                done(False)

    def backlog(self, target: Address | int) -> int:
        outbox = self._outboxes.get(target)
        return 0 if outbox is None else 1 + len(outbox)

    def _transmit(
        self, target: Address | int, message: object, done: Callable[[bool], None] | None
    ) -> None:
        """Hand one message to Thespian.

        One per target is there at a time; the rest wait here, where a target that does not answer
        holds up nobody else and where waiting costs nothing.
        """
        address = self._children.get(target) if isinstance(target, int) else to_thespian(target)
        if address is None:
            self._outboxes.pop(target, None)
            if done is not None:
                done(False)
            return

        def finished(arrived: bool) -> None:
            outbox = self._outboxes.get(target)
            if arrived and outbox:
                self._transmit(target, *outbox.popleft())
            else:
                self._outboxes.pop(target, None)
            if done is not None:
                done(arrived)
            if not arrived:  # nobody listens there, and a gap in the order would be worse
                for _, also in outbox or ():
                    if also is not None:
                        also(False)

        intent = tr.TransmitIntent(
            address, message,
            onSuccess=lambda *_: finished(True), onError=lambda *_: finished(False),
        )  # fmt: skip
        try:
            self._myRef.transport.scheduleTransmit(self._myRef._addrManager, intent)
        except CannotPickleAddress as error:  # a child that has not connected yet
            self._myRef._awaitingAddressUpdate.add(error.address, intent)

    def after(self, seconds: float, payload: object) -> None:
        due = time.monotonic() + max(seconds, 0.0)
        heapq.heappush(self._timers, (due, next(self._timer_numbers), payload))
        self._arm()

    def _arm(self) -> None:
        if self._timers and self._timers[0][0] < self._armed:
            self._armed = self._timers[0][0]
            # Thespian's loop never reads the mailbox again while a wakeup of 0 s is due.
            wait_s = max(self._armed - time.monotonic(), 0.001)
            self.wakeupAfter(timedelta(seconds=wait_s))

    def _fire_timers(self, worker: Worker) -> None:
        now = time.monotonic()
        due: list[object] = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        self._armed = float("inf")
        self._arm()
        for payload in due:
            worker._timer(payload)

    def watch(self, fd: int) -> None:
        self._watched.append(fd)

    def fork_child(self) -> int:
        ref = self._myRef
        address = ref._addrManager.createLocalAddress()
        ref._startChildActor(address, Shell, None, ref.myAddress, notifyAddr=ref.myAddress)
        pid: int = ref._child_procs[-1].childProc.pid
        self._children[pid] = address
        return pid

    def check_children(self) -> None:
        self._myRef.childDied()

    def exit(self, code: int) -> NoReturn:
        with contextlib.suppress(Exception):
            self._drain()
        logging.shutdown()
        os._exit(code)

    def _drain(self) -> None:
        """Let the supervisor hear the reason; wait for others only as long as nobody notices."""
        transport = self._myRef.transport
        transport._pendingWakeups.clear()  # run() would wait for the first of them
        parent = self._worker._parent if self._worker is not None else None
        now = time.monotonic()
        soft, hard = now + _DRAIN_S, now + _DRAIN_PARENT_S
        while self._outboxes and now < (hard if parent in self._outboxes else soft):
            transport.run(tr.TransmitOnly, timedelta(seconds=0.01))
            now = time.monotonic()
