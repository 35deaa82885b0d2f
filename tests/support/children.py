"""Misbehaving children for tests of supervision, and one well-behaved one."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from dataclasses import dataclass

from supervision.address import Address
from supervision.engine import EngineWorker
from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
from supervision.messages import Down, Entry
from supervision.worker import Worker


@dataclass(frozen=True, slots=True)
class Echo:
    """Answered by Echoed, with the id of the actor that answers."""

    ref: str
    payload: object = None


@dataclass(frozen=True, slots=True)
class Echoed:
    ref: str
    id: str
    pid: int
    incarnation: int
    payload: object = None


@dataclass(frozen=True, slots=True)
class Do:
    """Misbehave, or stop; ``GoodChild.do`` lists the actions."""

    what: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ReportSeen:
    ref: str


@dataclass(frozen=True, slots=True)
class Seen:
    ref: str
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class TellOther:
    """Send Echo to a named sibling; the answer goes into what ReportSeen shows."""

    ref: str
    other: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a child behaves; ``journal`` is a file that gets a line per event."""

    journal: str = ""
    init: str = ""
    init_s: float = 0.0
    fail_once_file: str = ""
    terminate_s: float = 0.0
    error: object = None


@dataclass(frozen=True, slots=True)
class LoadError:
    """A small frozen value for fail()."""

    code: int
    text: str


class SlowToClose(logging.NullHandler):
    """Stretches the time between the last message that a process reads and its end."""

    def close(self) -> None:
        super().close()
        time.sleep(0.3)  # noqa: TID251 - misbehaves on purpose


class GoodChild(Worker):
    """Answers Echo, carries out ``Do``, records its callbacks in a journal."""

    plan: Plan

    def init(self, args: object) -> None:
        self.plan = args if isinstance(args, Plan) else Plan()
        self.seen: list[object] = []
        self.handled = 0
        self.write("init")
        self.begin()
        self.write("ready")

    def begin(self) -> None:
        how = self.plan.init
        if how == "fail_once" and not os.path.exists(self.plan.fail_once_file):
            with open(self.plan.fail_once_file, "w", encoding="ascii"):
                pass
            raise RuntimeError("failed once")
        if how == "raise":
            raise ValueError("no luck")
        if how == "exit":
            os._exit(7)
        if how == "segv":
            ctypes.string_at(1)
        if how == "hang":
            time.sleep(60)  # noqa: TID251 - misbehaves on purpose
        if how == "fail":
            self.fail("cannot load", self.plan.error)
        if how == "defer":
            self.defer_ready()
            self.after(self.plan.init_s, "ready")
        if how == "defer until":
            self.defer_ready()
            self.after(0.0, "look")
        if how == "defer_fail":
            self.defer_ready()
            self.progress("half way")
            self.after(self.plan.init_s, "fail")

    def write(self, what: str) -> None:
        if self.plan.journal:
            fd = os.open(self.plan.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(fd, f"{self.id} {self.incarnation} {what}\n".encode())
            os.close(fd)

    def handle(self, message: object, sender: Address) -> None:
        self.handled += 1
        match message:
            case Echo(ref, payload):
                echoed = Echoed(ref, self.id, os.getpid(), self.incarnation, payload)
                self.tell(sender, echoed)
            case Echoed():
                self.seen.append(message.id)
            case ReportSeen(ref):
                self.tell(sender, Seen(ref, tuple(self.seen)))
            case TellOther(ref, other):
                self.tell(sender, Seen(ref, (self.tell(other, Echo(ref)),)))
            case Do(what, seconds):
                self.write(f"do {what} {self.handled}")
                self.do(what, seconds)

    def do(self, what: str, seconds: float) -> None:  # noqa: C901, PLR0912 - a list of actions
        if what == "raise":
            raise RuntimeError("raised by the test")
        if what == "exit":
            os._exit(3)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "segv":
            ctypes.string_at(1)
        if what == "abort":
            os.abort()
        if what == "stop":
            self.stop(NORMAL)
        if what == "shutdown":
            self.stop(SHUTDOWN)
        if what == "stop slowly":
            logging.getLogger().addHandler(SlowToClose())
            self.stop(NORMAL)
        if what == "abnormal":
            self.stop(ExitReason(ExitKind.ABNORMAL, "failed by the test"))
        if what == "busy":
            time.sleep(seconds)  # noqa: TID251 - misbehaves on purpose
        if what == "spin":
            while True:
                pass
        if what.startswith("busy then "):
            time.sleep(seconds)  # noqa: TID251 - misbehaves on purpose
            self.do(what.removeprefix("busy then "), 0.0)
        if what == "timers":
            for number in range(3):
                self.after(0.01, number)

    def handle_timer(self, payload: object) -> None:
        if payload == "ready" or (payload == "look" and os.path.exists(self.plan.fail_once_file)):
            self.ready()
        elif payload == "look":
            self.after(0.02, "look")
        elif payload == "fail":
            self.fail("loading was abandoned", self.plan.error)
        else:
            self.seen.append(payload)

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        self.seen.extend((entry.id, entry.state, entry.incarnation) for entry in changed)

    def terminate(self, reason: ExitReason) -> None:
        self.write(f"terminate {reason.kind.value}")
        if self.plan.terminate_s:
            time.sleep(self.plan.terminate_s)  # noqa: TID251 - misbehaves on purpose

    def status(self) -> dict[str, object]:
        return {"handled": self.handled}


@dataclass(frozen=True, slots=True)
class Watch:
    """Monitor a child of the tree; with ``again``, also each later incarnation."""

    ref: str
    other: str
    again: bool = False
    stop: bool = False
    """Take the monitor back at once."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise while handling this; without ``raises``, just never answer."""

    ref: str
    raises: bool = True


class WatchingChild(GoodChild):
    """Answers Watch with the ref of its monitor; shows Downs and dead letters in ReportSeen."""

    def begin(self) -> None:
        super().begin()
        self.again: set[str] = set()
        self.watched: set[str] = set()

    def handle(self, message: object, sender: Address) -> None:
        if isinstance(message, Fail) and message.raises:
            raise LookupError("first line\nno such thing")
        if not isinstance(message, Watch):
            super().handle(message, sender)
            return
        if message.again:
            self.again.add(message.other)
        ref = self.monitor(message.other)
        self.watched.add(message.other)
        if message.stop:
            self.demonitor(ref)
        self.tell(sender, Seen(message.ref, (ref, tuple(self.seen))))

    def handle_down(self, down: Down) -> None:
        self.seen.append(("down", down.id, down.incarnation, down.reason, down.ref))
        self.watched.discard(down.id)
        entry = self.directory.get(down.id)
        if down.id in self.again and entry is not None and entry.is_up:
            self.watch_again(down.id)

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        for entry in changed:
            if entry.is_up and entry.id in self.again and entry.id not in self.watched:
                self.watch_again(entry.id)

    def status(self) -> dict[str, object]:
        found = ((one, self.directory.get(one)) for one in self.watched)
        present = {one: entry.incarnation for one, entry in found if entry}
        return super().status() | {"watched": present}

    def watch_again(self, child_id: str) -> None:
        self.watched.add(child_id)
        self.monitor(child_id)

    def undelivered(self, target: Address | str, message: object) -> None:
        super().undelivered(target, message)
        self.seen.append(("undelivered", target, type(message).__name__))


class Unimportable:
    """Not a Worker."""


@dataclass(frozen=True, slots=True)
class Work:
    """Work for the engine: ``sleep | step | beats | post | raise | return``."""

    ref: str
    what: str
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class Worked:
    ref: str
    values: tuple[object, ...]


class EngineChild(EngineWorker):
    """Runs Work on its thread and answers Echo meanwhile."""

    def init(self, args: object) -> None:
        self.posted: list[object] = []
        self.batches = 0
        self.waiting: tuple[str, Address, int] | None = None
        self.start_engine(self.run)

    def run(self) -> None:
        while True:
            work = self.commands.get()
            if not isinstance(work, Work) or work.what == "return":
                return
            if work.what == "raise":
                raise RuntimeError("engine broke")
            if work.what == "sleep":
                time.sleep(work.amount)  # noqa: TID251 - stands for a long decode
                self.post("slept")
            if work.what == "step":
                with self.engine_step():
                    time.sleep(work.amount)  # noqa: TID251 - a step that takes too long
                self.post("stepped")
            if work.what == "beats":
                with self.engine_step():
                    for _ in range(int(work.amount / 0.05)):
                        time.sleep(0.05)  # noqa: TID251 - stands for one batch of a long step
                        self.beat()
                self.post("stepped")
            if work.what == "post":
                for number in range(int(work.amount)):
                    self.post(number)

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case Echo(ref, payload):
                echoed = Echoed(ref, self.id, os.getpid(), self.incarnation, payload)
                self.tell(sender, echoed)
            case Work(ref, what, amount):
                self.posted.clear()
                expected = int(amount) if what == "post" else 1
                self.waiting = (ref, sender, expected)
                self.commands.put(message)
            case ReportSeen(ref):
                self.tell(sender, Seen(ref, (tuple(self.posted), self.batches)))

    def handle_events(self, events: list[object]) -> None:
        self.batches += 1
        self.posted.extend(events)
        if self.waiting and len(self.posted) >= self.waiting[2]:
            ref, sender, _ = self.waiting
            self.waiting = None
            self.tell(sender, Worked(ref, tuple(self.posted)))

    def engine_ended(self) -> None:
        self.stop()
