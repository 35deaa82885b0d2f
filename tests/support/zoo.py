"""Children that fail in every way in which a process can fail."""

from __future__ import annotations

import errno
import os
import resource
import time
from dataclasses import dataclass

from supervision.address import Address
from supervision.effects import Child
from supervision.exits import NORMAL, ExitReason
from supervision.supervisor import Supervisor
from supervision.worker import Worker
from tests.support.children import Echo, Echoed


@dataclass(frozen=True, slots=True)
class Break:
    """Do it, in one of the ways below."""

    how: str
    grandchild_file: str = ""


class ZooChild(Worker):
    """Answers Echo until it receives Break."""

    def init(self, args: object) -> None:
        """``args`` may name a file: if it exists, it is removed, and this raises."""
        self.breaks = ""
        self.seen = 0
        if args is not None and os.path.exists(str(args)):
            os.unlink(str(args))
            raise RuntimeError("failed by the test, in init")

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case Echo(ref):
                self.tell(sender, Echoed(ref, self.id, os.getpid(), self.incarnation))
            case Break(how, grandchild_file):
                self.breaks = how
                self.seen += 1
                getattr(self, how)(grandchild_file)

    def raises_in_a_handler(self, _: str) -> None:
        raise RuntimeError("failed by the test")

    def raises_on_the_third_message(self, _: str) -> None:
        if self.seen == 3:
            raise RuntimeError("this is the third")

    def raises_while_stopping(self, _: str) -> None:
        self.stop(NORMAL)

    def ignores_shutdown(self, _: str) -> None:
        """Stopped because its sibling fails: see ``terminate``."""

    def forks_and_is_killed(self, grandchild_file: str) -> None:
        pid = os.fork()
        if pid == 0:
            while True:
                time.sleep(1)  # noqa: TID251 - an orphan that would never end
        with open(f"{grandchild_file}.{self.id}", "w", encoding="ascii") as file:
            file.write(str(pid))
        os.kill(os.getpid(), 9)

    def exits_0_silently(self, _: str) -> None:
        os._exit(0)

    def spins(self, _: str) -> None:
        while True:
            pass

    def sleeps(self, _: str) -> None:
        time.sleep(600)  # noqa: TID251 - misbehaves on purpose

    def grows_memory(self, _: str) -> None:
        with open("/proc/self/statm", encoding="ascii") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))

    def closes_its_sockets(self, _: str) -> None:
        os.closerange(3, 256)

    def terminate(self, reason: ExitReason) -> None:
        if self.breaks == "raises_while_stopping":
            raise RuntimeError("failed by the test, while stopping")
        if self.breaks == "ignores_shutdown":
            time.sleep(600)  # noqa: TID251 - misbehaves on purpose


class StarvedSupervisor(Supervisor):
    """The kernel refuses it two processes after the first one."""

    def _spawn(self, child: Child, incarnation: int) -> None:
        if incarnation in (2, 3):
            self._mailbox.fork_child, fork = _refuse, self._mailbox.fork_child
            try:
                super()._spawn(child, incarnation)
            finally:
                self._mailbox.fork_child = fork
        else:
            super()._spawn(child, incarnation)


def _refuse(*_: object) -> int:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
