"""Plain Thespian actors, and the messages that they take."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from datetime import timedelta

from thespian.actors import (
    Actor,
    ActorExitRequest,
    ActorTypeDispatcher,
    ThespianWatch,
    WakeupMessage,
    WatchMessage,
)


@dataclass(frozen=True, slots=True)
class Ask:
    """Answered by Answer. ``what`` is what to do."""

    ref: str
    what: str
    value: object = None


@dataclass(frozen=True, slots=True)
class Answer:
    ref: str
    values: tuple[object, ...]


class PlainActor(Actor):
    """Keeps what it received; does what Ask asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []
        self.reader = -1
        self.asker: object = None

    def receiveMessage(self, msg: object, sender: object) -> object:
        if isinstance(msg, Ask):
            return self.do(msg, sender)
        if isinstance(msg, ActorExitRequest):
            if isinstance(self.seen[0], str) and self.seen[0].startswith("/"):
                with open(self.seen[0], "a", encoding="utf-8") as journal:
                    journal.write("exit request\n")
            return None
        if isinstance(msg, WakeupMessage):
            msg = ("wakeup", msg.payload, msg.delayPeriod.total_seconds())
        if isinstance(msg, WatchMessage):
            msg = ("watch", len(msg.ready), os.read(self.reader, 99))
        if isinstance(msg, Answer):
            msg = ("answer", *msg.values)
        if msg == "echo":
            self.send(sender, "echoed")
        self.seen.append(msg)
        return None

    def do(self, ask: Ask, sender: object) -> object:
        def answer(*values: object) -> None:
            self.send(sender, Answer(ask.ref, values))

        match ask.what:
            case "who":
                answer(os.getpid(), self.globalName, str(self.myAddress), type(self).__name__)
            case "seen":
                answer(*self.seen)
            case "raise":
                self.seen.append("raised")
                raise LookupError("told to raise")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                self.send(self.myAddress, ActorExitRequest())
            case "wake":
                self.wakeupAfter(timedelta(seconds=0.01), ask.value)
                answer()
            case "watch":
                self.reader, writer = os.pipe()
                os.write(writer, b"ready")
                answer()
                return ThespianWatch([self.reader])
            case "other":  # by its name
                other = self.createActor(PlainActor, globalName=str(ask.value))
                self.send(other, Ask(ask.ref, "who"))
                answer()
            case "address":
                answer(self.myAddress)
            case "object":
                self.send(sender, object())
            case _:
                getattr(self, ask.what)(*ask.value)  # type: ignore[misc]
        return None


@dataclass(frozen=True, slots=True)
class Greeting:
    ref: str


class Dispatching(ActorTypeDispatcher):
    """Thespian's own subclass of Actor."""

    def receiveMsg_Greeting(self, msg: Greeting, sender: object) -> None:  # noqa: N802
        self.send(sender, Answer(msg.ref, ("hello",)))


class NeverReady(PlainActor):
    """Raises at its first message."""

    def receiveMessage(self, msg: object, sender: object) -> object:
        raise ValueError(f"no use for {msg!r}")
