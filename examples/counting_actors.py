"""The actors of example 06: a shelf that keeps numbers, counters that lose theirs when they die."""

from dataclasses import dataclass

from supervision import Address, ChildKind, ChildSpec, Strategy, SupervisorSpec, Worker


@dataclass(frozen=True, slots=True)
class Add:
    """Anyone → counter: count this too. Answered by Sum. Anything but a number breaks it."""

    ref: str
    amount: object


@dataclass(frozen=True, slots=True)
class Sum:
    """Counter → asker: the sum so far, and which incarnation has counted it."""

    ref: str
    total: int
    incarnation: int


class CounterActor(Worker):
    """Owns: a sum. Answers: ``Add``."""

    def init(self, args: object) -> None:  # noqa: ARG002 - this actor needs none
        self.total = 0

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case Add(ref, amount):
                self.total += amount  # let it crash: the next incarnation starts clean
                self.tell(sender, Sum(ref, self.total, self.incarnation))

    def status(self) -> dict[str, object]:
        return {"total": self.total}


def _counter(name: str) -> ChildSpec:
    return ChildSpec(name, "counting_actors.CounterActor")


TREE = SupervisorSpec(
    Strategy.ONE_FOR_ONE,
    (
        _counter("apples"),
        ChildSpec(
            "basket",
            "supervision.supervisor.Supervisor",
            # Pears and plums are counted together: when one count is lost, so is the other.
            SupervisorSpec(Strategy.ONE_FOR_ALL, (_counter("pears"), _counter("plums"))),
            kind=ChildKind.SUPERVISOR,
        ),
    ),
)
