"""Thespian's ``ActorSystem`` for host code: ask, tell and listen on a running node.

The class is Thespian's own; what it calls its system base is carried out by a Connection. So the
methods have Thespian's names, signatures and results, with three differences: every thread has an
inbox of its own, an ``ask`` whose message has a ``ref`` returns the answer with that ``ref``, and
what a supervised node does not do raises NotOffered. Nothing is pickled or unpickled.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Self

from supervision._plain_actor import EXIT_REQUEST, refuse
from supervision._thespian import (
    ActorExitRequest,
    ActorSystem,
    ActorSystemFailure,
    ActorSystemMessage,
    InvalidActorAddress,
)
from supervision._wire import register_types, target_of, to_thespian
from supervision.address import Address
from supervision.codec import ValueCodec
from supervision.connection import Connection
from supervision.errors import NodeNotRunning, NoReply
from supervision.messages import WrongIncarnation
from supervision.routing import LOOK_S, SEND_S

Timeout = float | timedelta | None
"""Seconds; None waits without end."""


def _codec(packages: tuple[str, ...]) -> ValueCodec:
    codec = ValueCodec(packages)
    register_types(codec)
    return codec


class NodeActorSystem(ActorSystem):  # type: ignore[misc]
    """A node as Thespian's ActorSystem. Close it, or use it in a ``with``.

    Inherited: ``ask(address, message, timeout=None)`` returns the answer, or None if none came in
    time or the actor has ended; ``tell(address, message)`` raises ActorSystemFailure if no process
    takes the message; ``listen(timeout=None)`` returns the next message for this thread, or None;
    ``private()`` is a context with an inbox of its own; ``createActor(None, globalName=name)``
    is ``find(name)``.
    """

    def __init__(self, runtime_dir: Path) -> None:
        """Raises NodeNotRunning if no node runs in this folder."""
        super().__init__(systemBase=_NodeBase(Path(runtime_dir)), transientUnique=True)

    def find(self, child_id: str) -> Any:
        """The ActorAddress of a child by its id; it stays right when the child restarts.

        Raises InvalidActorAddress if the tree has no such child.
        """
        return self._systemBase.find(child_id)

    def close(self) -> None:
        """Close this host's connections; the node keeps running."""
        self._systemBase.exit_context()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _NodeBase:
    """What Thespian calls a system base, on a Connection."""

    def __init__(self, runtime_dir: Path) -> None:
        self._connection = Connection.attach(runtime_dir, codec=_codec)
        self._router = self._connection._router
        self._here = threading.local()

    @property
    def _unread(self) -> deque[object]:
        """Messages that came for this thread while it waited for an answer with a ``ref``."""
        found: deque[object] | None = getattr(self._here, "unread", None)
        if found is None:
            found = self._here.unread = deque()
        return found

    # ── addresses ────────────────────────────────────────────────────────────

    def find(self, child_id: str) -> Any:
        if self._connection.where(child_id) is None:
            raise InvalidActorAddress(child_id, "not the id of a child in this node's tree")
        return to_thespian(child_id)

    def newPrimaryActor(  # noqa: N802
        self, actor_class: object, requirements: object, global_name: str | None, *_: object
    ) -> Any:
        del actor_class, requirements
        if global_name is None:
            raise refuse("createActor")
        return self.find(global_name)

    # ── messages ─────────────────────────────────────────────────────────────

    def tell(self, address: Any, message: object) -> None:
        target, sent = self._outgoing(address, message)
        try:
            self._connection.tell(target, sent, timeout_s=SEND_S)
        except (NoReply, NodeNotRunning) as error:
            raise ActorSystemFailure(f"Error sending to {address}: {error}") from error

    def ask(self, address: Any, message: object, timeout: Timeout) -> object | None:
        target, sent = self._outgoing(address, message)
        ref = getattr(message, "ref", None)
        try:
            return self._ask(target, sent, ref, _deadline(timeout))
        except (NoReply, NodeNotRunning):
            return None

    def _ask(
        self, target: Address | str, message: object, ref: object, deadline: float
    ) -> object | None:
        while True:
            send_by = min(deadline, time.monotonic() + SEND_S)
            sent = self._router.send(target, message, send_by, SEND_S, wait=True)
            while True:
                answer = self._router.answer(sent, target, None, deadline)
                if isinstance(answer, WrongIncarnation):
                    self._router.refused(sent.endpoint, answer)
                    break
                if answer is None or ref is None or getattr(answer, "ref", None) == ref:
                    return answer
                self._unread.append(answer)

    def listen(self, timeout: Timeout) -> object | None:
        deadline = _deadline(timeout)
        if self._unread:
            return self._unread.popleft()
        while True:
            look_at = min(deadline, time.monotonic() + LOOK_S)
            message = self._router.endpoint().next(None, look_at)
            if message is not None and not isinstance(message, WrongIncarnation):
                return message
            if time.monotonic() >= deadline:
                return None
            try:
                self._router.reread()
            except NodeNotRunning:
                return None

    def _outgoing(self, address: Any, message: object) -> tuple[Address | str, object]:
        """Where a message goes, and what travels for it."""
        target = target_of(address)
        if isinstance(message, ActorExitRequest):
            return target, EXIT_REQUEST
        if isinstance(message, ActorSystemMessage) and isinstance(target, str):
            # Thespian's own reads no envelope for one incarnation.
            entry = self._connection.where(target)
            return (entry.address if entry and entry.address else target), message
        return target, message

    # ── life ─────────────────────────────────────────────────────────────────

    def external_clone(self) -> _NodeBase:
        return _NodeBase(self._router.folder.path)

    def exit_context(self) -> None:
        self._connection.close()

    def shutdown(self) -> NoReturn:
        raise refuse("actorSystemShutdown")

    def updateCapability(self, *_: object) -> NoReturn:  # noqa: N802
        raise refuse("updateCapability")

    def loadActorSource(self, *_: object) -> NoReturn:  # noqa: N802
        raise refuse("loadActorSource")

    def unloadActorSource(self, *_: object) -> NoReturn:  # noqa: N802
        raise refuse("unloadActorSource")

    def _handleDeadLetters(self, *_: object) -> NoReturn:  # noqa: N802
        raise refuse("handleDeadLetters")


def _deadline(timeout: Timeout) -> float:
    if timeout is None:
        return math.inf
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    return time.monotonic() + seconds
