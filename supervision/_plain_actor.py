"""A plain Thespian actor as a child in the tree: the Worker that hosts an instance of one.

The actor's own methods (``send``, ``wakeupAfter``, ``myAddress``, …) call what Thespian calls the
actor's reference; here that is ``_Reference``, which carries them out with the services of the
worker. What a supervised node does not do raises NotOffered. An exception in ``receiveMessage`` is
a crash: the handler is not run a second time, and the sender gets no PoisonMessage.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final

from supervision._thespian import (
    Actor,
    ActorExitRequest,
    ThespianWatch,
    WakeupMessage,
    WatchMessage,
    utilis,
)
from supervision._wire import target_of, to_thespian
from supervision.address import Address
from supervision.errors import NotOffered
from supervision.exits import ExitKind, ExitReason
from supervision.messages import Shutdown
from supervision.worker import Worker

EXIT_REQUEST: Final = Shutdown(ExitReason(ExitKind.NORMAL, "ActorExitRequest"))
"""What travels for an ActorExitRequest."""

_SUPERVISOR: Final = "a supervisor starts its children: give it a ChildSpec, or send it StartChild"
_NO_CODE: Final = "no code travels in messages; actors are imported where they run"
_INSTEAD: Final = {
    "createActor": f"{_SUPERVISOR}; with globalName it finds a child by its id",
    "handleDeadLetters": "a message that does not arrive is written into its sender's log",
    "notifyOnSystemRegistrationChanges": "a node has no convention of systems",
    "preRegisterRemoteSystem": "a node has no convention",
    "deRegisterRemoteSystem": "a node has no convention",
    "updateCapability": "a child's supervisor is its spec's place in the tree",
    "registerSourceAuthority": _NO_CODE,
    "notifyOnSourceAvailability": _NO_CODE,
    "loadActorSource": _NO_CODE,
    "unloadActorSource": _NO_CODE,
    "actorSystemShutdown": "the launcher stops the node: send it SIGTERM, or call Node.stop",
}
"""Methods of Thespian's Actor and ActorSystem that a node does not offer, and what does it."""


def refuse(what: str) -> NotOffered:
    """The error of a method that is not offered."""
    return NotOffered(what, _INSTEAD[what])


@dataclass(frozen=True, slots=True)
class _Wakeup:
    """Timer: what the actor gave to ``wakeupAfter``."""

    period: timedelta
    payload: object


class _Reference:
    """What the methods of Thespian's Actor call, as ``_myRef``."""

    def __init__(self, worker: PlainActor) -> None:
        self._worker = worker

    @property
    def address(self) -> Any:
        return to_thespian(self._worker.address)

    @property
    def globalName(self) -> str:  # noqa: N802
        return self._worker.id

    def actor_send(self, target: Any, message: object) -> None:
        if isinstance(message, ActorExitRequest):
            message = EXIT_REQUEST
        where = target_of(target)
        if not self._worker.tell(where, message):
            self._worker.undelivered(where, message)

    def wakeupAfter(self, period: timedelta | float, payload: object = None) -> None:  # noqa: N802
        exactly = period if isinstance(period, timedelta) else timedelta(seconds=period)
        self._worker.after(exactly.total_seconds(), _Wakeup(exactly, payload))

    def createActor(  # noqa: N802
        self, actor_class: object, requirements: object, global_name: str | None, *_: object
    ) -> Any:
        del actor_class, requirements
        if global_name is None or global_name not in self._worker.directory:
            raise refuse("createActor")
        return to_thespian(global_name)

    def __getattr__(self, name: str) -> Any:
        if name in _INSTEAD:
            raise refuse(name)
        raise AttributeError(name)


class PlainActor(Worker):
    """Hosts a plain Thespian actor. Subclasses name its class."""

    actor_class: ClassVar[type]
    actor: Any

    def init(self, args: object) -> None:
        how = utilis.withPossibleInitArgs(capabilities={}, requirements=None)
        self.actor = how.create(self.actor_class)
        self.actor._myRef = _Reference(self)
        if args is not None:
            self._hand_over(args, self._parent)

    def handle(self, message: object, sender: Address) -> None:
        self._hand_over(message, sender)

    def handle_timer(self, payload: object) -> None:
        if isinstance(payload, _Wakeup):
            self._hand_over(WakeupMessage(payload.period, payload.payload), self.address)

    def stop_asked(self, reason: ExitReason) -> None:
        self._hand_over(ActorExitRequest(), self._parent)
        self.stop(reason)

    def _readable(self, ready: Sequence[int] = ()) -> None:
        self._hand_over(WatchMessage(list(ready)), self.address)

    def _hand_over(self, message: object, sender: Address) -> None:
        """Call ``receiveMessage``; the watch that it returns holds until the next message."""
        watch = self.actor.receiveMessage(message, to_thespian(sender))
        self._mailbox.watch(watch.filenos if isinstance(watch, ThespianWatch) else ())


def worker_class(path: str) -> type[Worker]:
    """The class behind ``package.module.ClassName``, in the form of a Worker.

    Raises ImportError, AttributeError or TypeError where there is none.
    """
    module, _, name = path.rpartition(".")
    found: object = getattr(importlib.import_module(module), name)
    if isinstance(found, type) and issubclass(found, Worker):
        return found
    if isinstance(found, type) and issubclass(found, Actor):
        members = {"__module__": __name__, "__doc__": f"Hosts a {path}.", "actor_class": found}
        return type(found.__name__, (PlainActor,), members)
    raise TypeError(f"{path} is neither a Worker nor a thespian.actors.Actor")
