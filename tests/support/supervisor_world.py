"""A supervisor's core in a world without processes: a test decides what each child does next."""

from __future__ import annotations

from supervision import effects as fx
from supervision.core import SupervisorCore
from supervision.exits import SHUTDOWN, ExitKind, ExitReason
from supervision.spec import ChildSpec

KILLED = ExitReason(ExitKind.KILLED, "killed by SIGKILL")
CRASHED = ExitReason(ExitKind.ABNORMAL, "raised")


def spec(child_id, **changes):
    return ChildSpec(child_id, "tests.support.children.GoodChild", **changes)


class World:
    """A supervisor of imaginary children: carries out its core's effects and keeps a trace."""

    def __init__(self, spec_of_supervisor, known=None):
        self.core = SupervisorCore(spec_of_supervisor, known)
        self.live = {}  # id -> incarnation
        self.asked = set()
        self.killed = set()
        self.timers = []
        self.trace = []
        self.all_ready = 0
        self.finished = []
        self.answers = []
        self.removed = []
        self.reported = []
        self.now = 0.0
        self.do(self.core.start())

    def do(self, effects):
        for effect in effects:
            match effect:
                case fx.Spawn(i, n):
                    assert i not in self.live, f"{i} has two processes"
                    self.live[i] = n
                    self.trace.append(("start", i))
                case fx.AskToStop(i, n):
                    assert self.live.get(i) == n
                    self.asked.add(i)
                    self.trace.append(("stop", i))
                case fx.Kill(i, n, _):
                    assert self.live.get(i) == n
                    self.killed.add(i)
                    self.trace.append(("kill", i))
                case fx.Arm(timer, i, n, seconds, spread_s):
                    self.timers.append((timer, i, n, seconds, spread_s))
                case fx.AllReady():
                    self.all_ready += 1
                case fx.Finished(reason):
                    assert not self.live, "finished with live children"
                    self.finished.append(reason)
                case fx.Removed(child):
                    self.removed.append(child.id)
                case fx.Crashed(child, n, reason):
                    self.reported.append((child.id, n, reason))
                case fx.Happened():
                    pass
                case _:
                    self.answers.append(effect)

    def ready(self, i):
        self.do(self.core.child_ready(i, self.live[i]))

    def exit(self, i, reason=KILLED):
        """The process of this child ends."""
        n = self.live.pop(i)
        self.asked.discard(i)
        self.killed.discard(i)
        self.do(self.core.child_exited(i, n, reason, self.now))

    def ready_all(self):
        while starting := [i for i in self.live if self.state(i) is fx.State.STARTING]:
            self.ready(starting[0])

    def obey(self):
        """Every child that was asked or killed ends; every new one gets ready."""
        while True:
            if ending := sorted(self.asked | self.killed):
                self.exit(ending[0], SHUTDOWN if ending[0] in self.asked else KILLED)
            elif starting := [i for i in self.live if self.state(i) is fx.State.STARTING]:
                self.ready(starting[0])
            else:
                return

    def state(self, i):
        return self.core.children[i].state

    def fire(self, timer, i):
        found = [t for t in self.timers if t[:2] == (timer, i)][-1]
        self.do(self.core.timer_fired(found[0], found[1], found[2]))

    def take_trace(self):
        trace, self.trace = self.trace, []
        return trace
