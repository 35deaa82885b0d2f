"""The actor that hosts a Worker, and the mailbox it is offered."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Final, NoReturn

from supervision import logs
from supervision._plain_actor import worker_class
from supervision._processes import NodeManager
from supervision._thespian import (
    Actor,
    ActorExitRequest,
    ActorSystemMessage,
    ThespianWatch,
    WakeupMessage,
    WatchMessage,
    tr,
)
from supervision._wire import ChildEnded, from_thespian
from supervision.address import Address
from supervision.dead_letters import DeadLetterLog, refusal_of
from supervision.endpoint import Endpoint
from supervision.errors import TransportRefused
from supervision.link import Outcome
from supervision.messages import Addressed, DirectoryChanged, Exiting, Init, InitFailed, Shutdown
from supervision.pulse import Page
from supervision.worker import Worker, shutdown_reason

_DRAIN_S: Final = 0.1
_DRAIN_PARENT_S: Final = 1.0
_WAITED_FOR: Final = (DirectoryChanged, Exiting, InitFailed)
"""Messages whose sender does nothing more for the target until it has them."""

_BEAT: Final = object()
_MAX_TIMER_S: Final = 1e9
"""More seconds fit no ``timedelta``."""
"""Timer: show that this process lives, however idle it is."""

_Done = Callable[[bool], None] | None


class Shell(Actor):  # type: ignore[misc]
    """The Thespian actor that hosts one Worker, and the Mailbox it is offered.

    A process runs a subclass that is named after its worker's class (``shell_class``), so that
    Thespian's own status, logs and process names show what it is.

    ``receiveMessage`` is the outermost frame: it never raises, because Thespian would run the
    handler a second time, and it always returns the watch, because Thespian forgets it otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pulse = Page.inherit()
        self._worker: Worker | None = None
        self._watched: list[int] = []
        self._children: dict[int, Address] = {}
        """Where child processes listen, by pid."""
        self._unconnected: dict[int, list[tuple[object, _Done]]] = {}
        """What waits for a child process that has not connected yet."""
        self._thread = threading.get_ident()
        self._dead_letter_log = DeadLetterLog()

    @property
    def address(self) -> Address:
        return self._endpoint.address

    @property
    def _endpoint(self) -> Endpoint:
        endpoint: Endpoint = self._myRef.transport.endpoint
        return endpoint

    def receiveMessage(self, message: object, sender: Any) -> Any:
        try:
            self._dispatch(message, sender)
            if self._worker is not None:
                self._worker._end_if_asked()
            self.pulse.end(self._waiting())
        except BaseException:  # noqa: BLE001 - nothing may escape to Thespian
            self._crash(traceback.format_exc())
        return ThespianWatch(list(self._watched)) if self._watched else None

    def _begin(self, name: str) -> None:
        self.pulse.begin(name, self._waiting())

    def _waiting(self) -> int:
        """Messages that this process has received and not handled."""
        ref = self._myRef
        received = getattr(ref.transport, "_incomingEnvelopes", ())
        return len(received) + len(getattr(ref, "_receiveQueue", ()))

    def _dispatch(self, message: object, sender: Any) -> None:
        worker = self._worker
        if worker is None:
            if isinstance(message, Init):
                self._begin("Init")
                self._host(message, from_thespian(sender))
            elif isinstance(message, ActorExitRequest | Shutdown):
                self.exit(0)
            elif isinstance(message, Addressed):  # for a process that had this port before
                self._refuse_message(message, from_thespian(sender))
        elif not isinstance(message, ActorSystemMessage):
            inner = message.message if isinstance(message, Addressed) else message
            self._begin(type(inner).__name__)
            worker._receive(message, from_thespian(sender))
        elif isinstance(message, WatchMessage):
            self._begin("(engine events)")
            worker._readable(message.ready)
        elif isinstance(message, WakeupMessage):
            self._fire(worker, message.payload)
        elif isinstance(message, ChildEnded):
            self._begin("(child ended)")
            child = self._myRef.reap(message.pid)
            self._children.pop(message.pid, None)
            self._unconnected.pop(message.pid, None)
            worker._child_exited(message.pid, child.childProc.exitcode)
        elif isinstance(message, ActorExitRequest):
            self._begin("ActorExitRequest")
            worker._shutdown(shutdown_reason("SIGTERM, or the end of the system"))

    def _host(self, init: Init, parent: Address) -> None:
        failure = None
        try:
            self._worker = worker_class(init.actor)()
        except Exception:  # noqa: BLE001 - whatever a module raises, the supervisor must get it
            failure = traceback.format_exc()
            self._worker = Worker()
        self._show_life()
        self._worker._begin(self, init, parent, failure)

    def _show_life(self) -> None:
        if self.pulse.beat_s:
            self.after(self.pulse.beat_s, _BEAT)

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
        *,
        prompt: bool = False,
    ) -> None:
        if threading.get_ident() != self._thread:
            raise TransportRefused("only the mailbox thread may send; post() to it instead")
        if isinstance(target, Address):
            prompt = prompt or isinstance(message, _WAITED_FOR)
            self._endpoint.send(target, message, self._reporter(done), prompt=prompt)
        elif isinstance(target, int):
            self._send_to_child(target, message, done)
        else:
            raise TransportRefused(f"{target!r} is no address")

    def _send_to_child(self, pid: int, message: object, done: _Done) -> None:
        held = self._unconnected.get(pid)
        address = self._children.get(pid)
        if held is not None:
            held.append((message, done))
        elif address is not None:
            self.send(address, message, done)
        elif done is not None:
            done(False)

    def child_connected(self, pid: int, address: Address) -> None:
        """A process that this one forked has connected, and listens at this address."""
        self._children[pid] = address
        for message, done in self._unconnected.pop(pid, ()):
            self.send(address, message, done)

    def _reporter(self, done: _Done) -> Callable[[Outcome], None] | None:
        """``done`` for the endpoint, whose outcomes are finer; an error in it is a crash."""
        if done is None:
            return None

        def report(outcome: Outcome) -> None:
            try:
                done(outcome is Outcome.ARRIVED)
            except BaseException:  # noqa: BLE001 - as in receiveMessage
                self._crash(traceback.format_exc())

        return report

    def backlog(self, target: Address | int) -> int:
        if isinstance(target, Address):
            return self._endpoint.backlog(target)
        address = self._children.get(target)
        return len(self._unconnected.get(target, ())) if address is None else self.backlog(address)

    def after(self, seconds: float, payload: object) -> None:
        self._myRef.transport.addWakeup(timedelta(seconds=min(seconds, _MAX_TIMER_S)), payload)

    def _fire(self, worker: Worker, payload: object) -> None:
        if payload is _BEAT:
            self._show_life()
        else:
            self._begin(f"(timer) {type(payload).__name__}")
            worker._timer(payload)

    def watch(self, fds: Iterable[int]) -> None:
        self._watched = list(fds)

    def fork_child(self, page: Page, actor: str) -> int:
        ref = self._myRef
        Page.to_inherit = page
        NodeManager.next_class = shell = shell_class(actor)
        address = ref._addrManager.createLocalAddress()
        try:
            ref._startChildActor(address, shell, None, ref.myAddress, notifyAddr=ref.myAddress)
        finally:
            Page.to_inherit = NodeManager.next_class = None
        pid: int = ref._child_procs[-1].childProc.pid
        self._unconnected[pid] = []
        return pid

    def exit(self, code: int) -> NoReturn:
        with contextlib.suppress(Exception):
            self._drain()
            self._endpoint.announce_end()
        logging.shutdown()
        os._exit(code)

    def _drain(self) -> None:
        """Deliver the reason to the supervisor; wait for others only for a moment."""
        self._endpoint.acknowledge(except_to=self._senders_of_unhandled())
        # The launcher reads what the root sent when the root is gone: it need not acknowledge it.
        has_parent = self._worker is not None and self._worker.parent_id
        parent = self._worker._parent if self._worker is not None and has_parent else None
        now = time.monotonic()
        soft, hard = now + _DRAIN_S, now + _DRAIN_PARENT_S
        self._endpoint.poll(0.0)  # what the kernel holds has arrived too
        self._refuse_unhandled()
        while True:
            waits_for_parent = parent is not None and self._endpoint.backlog(parent) > 0
            if now >= (hard if waits_for_parent else soft):
                return
            if not waits_for_parent and not self._endpoint.unwritten():
                return
            self._endpoint.poll(0.01)
            self._refuse_unhandled()
            now = time.monotonic()

    def _senders_of_unhandled(self) -> set[Address]:
        """The senders of what this process has received and will not handle."""
        ref = self._myRef
        waiting = (*ref.transport._incomingEnvelopes, *ref._receiveQueue)
        found = {sender for sender, _ in self._endpoint.inbox}
        for one in waiting:
            with contextlib.suppress(Exception):  # some envelopes of Thespian's have no such sender
                found.add(from_thespian(one.sender))
        return found

    def _refuse_unhandled(self) -> None:
        """Refuse what has arrived and will not be handled, so that its senders are notified."""
        for envelope in self._received():
            if isinstance(envelope.message, Addressed):
                self._refuse_message(envelope.message, from_thespian(envelope.sender))
        inbox = self._endpoint.inbox
        while inbox:
            sender, message = inbox.popleft()
            if isinstance(message, Addressed):
                self._refuse_message(message, sender)

    def _received(self) -> Iterator[tr.ReceiveEnvelope]:
        """Take what Thespian holds for this process and has not handed over."""
        for queue in (self._myRef.transport._incomingEnvelopes, self._myRef._receiveQueue):
            envelopes = [one for one in queue if isinstance(one, tr.ReceiveEnvelope)]
            queue.clear()
            yield from envelopes

    def _refuse_message(self, message: Addressed, sender: Address) -> None:
        refusal = refusal_of(message, None)
        if refusal is not None:
            self.send(sender, refusal)
        self._dead_letter_log.write(logging.getLogger(logs.LOGGER), message.id, message.message)


@functools.cache
def shell_class(actor: str) -> type[Shell]:
    """The Thespian actor class for a worker, by the worker's ``package.module.ClassName``.

    It has the name of the worker's class, which is not imported for this.
    """
    name = actor.rpartition(".")[2]
    return type(name, (Shell,), {"__module__": __name__, "__doc__": f"Hosts a {actor}."})


Supervisor: Final = shell_class("supervision.supervisor.Supervisor")
"""The root's, which the Admin imports by its name."""
