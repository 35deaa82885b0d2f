"""The actors of examples 13 and 14: plain Thespian actors, as they are, in a supervision tree."""

from dataclasses import dataclass
from datetime import timedelta

from thespian.actors import Actor, ActorAddress, WakeupMessage

from supervision import ChildSpec, Strategy, SupervisorSpec


@dataclass(frozen=True, slots=True)
class Add:
    """Anyone → counter: count this too. Answered by Sum. Anything but a number breaks it."""

    ref: str
    amount: object


@dataclass(frozen=True, slots=True)
class Sum:
    """Counter → sender of Add: the sum so far."""

    ref: str
    total: int


class Counter(Actor):
    """Adds up. Its first message is the ``args`` of its ChildSpec: where it starts."""

    def receiveMessage(self, msg: object, sender: ActorAddress) -> None:
        match msg:
            case int():
                self.total = msg
            case Add(ref, amount):
                self.total += amount  # raises for a text: the next incarnation starts clean
                self.send(sender, Sum(ref, self.total))


class Clock(Actor):
    """Adds 1 to a counter, found by its name, every 50 ms."""

    def receiveMessage(self, msg: object, sender: ActorAddress) -> None:  # noqa: ARG002 - unused
        if isinstance(msg, str):
            self.counter = self.createActor(Counter, globalName=msg)
        elif isinstance(msg, WakeupMessage):
            self.send(self.counter, Add("", 1))
        else:
            return
        self.wakeupAfter(timedelta(seconds=0.05))


TREE = SupervisorSpec(
    Strategy.ONE_FOR_ONE,
    (
        ChildSpec("apples", "plain_actors.Counter", args=0),
        ChildSpec("seconds", "plain_actors.Counter", args=100),
        ChildSpec("clock", "plain_actors.Clock", args="seconds"),
    ),
)
