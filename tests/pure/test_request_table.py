"""What becomes of a request: the whole table of states and events, and laws for any life.

``World`` plays the actor: it carries out effects, holds the clock and fires the timers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from actors.messages.actor_ids import model_actor_id
from actors.requests import effects as fx
from actors.requests.request_table import (
    HEAL_TIMEOUT_S,
    HELD_LIMIT,
    PING_EVERY_S,
    RUNS_LIMIT,
    Request,
    RequestTable,
)
from supervision import Address, ChildKind, Entry, ExitKind
from supervision.exits import ExitReason
from tests.support.examples import examples

pytestmark = pytest.mark.pure

Drawn = TypeVar("Drawn")
MODEL: Final = "m"
ID: Final = model_actor_id(MODEL)
CALLER, OTHER = Address("127.0.0.1", 1), Address("127.0.0.1", 2)
MODEL_AT: Final = Address("127.0.0.1", 3)
TIMEOUT_S: Final = 5.0
CRASH: Final = ExitReason(ExitKind.ABNORMAL, "it crashed")
SIGKILL: Final = ExitReason(ExitKind.KILLED, "killed by SIGKILL", 9)
UNLOAD: Final = ExitReason(ExitKind.SHUTDOWN, "unloaded")


def entry(child: str, incarnation: int, state: str, last_exit: ExitReason | None = None) -> Entry:
    address = MODEL_AT if state == "up" else None
    kind = ChildKind.SUPERVISOR if child == "models" else ChildKind.WORKER
    return Entry(
        child, kind, "models", "x.Y", address, 1, incarnation, state, 0, 0.0, last_exit
    )  # fmt: skip


def completion(ref: str, text: str = "", timeout_s: float | None = TIMEOUT_S) -> m.Complete:
    return m.Complete(ref, MODEL, m.TextPrompt((text or ref).encode()), timeout_s=timeout_s)


def question(ref: str, text: str = "") -> m.Ask:
    return m.Ask(MODEL, m.Tokenize(ref, text or ref))


def digest(request: Request) -> bytes:
    """Two requests are the same if their texts are."""
    if isinstance(request, m.Complete):
        assert isinstance(request.prompt, m.TextPrompt)
        assert isinstance(request.prompt.text, bytes)
        return request.prompt.text
    assert isinstance(request.question, m.Tokenize)
    assert isinstance(request.question.text, str)
    return request.question.text.encode()


@dataclass
class World:
    """A table, a model with its supervisor, and a clock; what happened, in words."""

    now: float = 100.0
    directory: dict[str, Entry] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    """In the model's process: request id → incarnation."""
    trace: list[str] = field(default_factory=list)
    timers: list[tuple[float, int, fx.Timer]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._order = count()
        self._ids = count()
        self.refs: dict[str, str] = {}
        self.forgotten: list[str] = []
        self.answered: list[str] = []
        self.pings: list[Address] = []
        self.retry_after_s: float | None = None
        """As the last refusal has it."""
        self.table = RequestTable(
            self.directory,
            accepted=lambda one: self.accepted.get(one, 0),
            digest=digest,
            part_digests=lambda _: (),
        )
        self.directory["models"] = entry("models", 1, "up")
        self.change("up")

    # ── what the actor does ─────────────────────────────────────────────────────────────────────

    def obey(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.Start(request_id, model):
                    self._started(request_id, model)
                case fx.Stop(request_id):
                    self.trace.append(f"stop {self.refs.get(request_id, request_id)}")
                case fx.Reply(_, m.Accepted()):
                    pass
                case fx.Reply(_, m.CompletionFailed() | m.TextRefused() as failed):
                    ref, reason, facts = failed.ref, failed.reason, failed.facts
                    self.answered.append(ref)
                    self.retry_after_s = None if facts is None else facts.retry_after_s
                    self.trace.append(f"{reason.value} {ref}")
                case fx.ReplyCancelled(_, _, ref):
                    self.answered.append(ref)
                    self.trace.append(f"cancelled {ref}")
                case fx.Forget(request_id):
                    self.forgotten.append(request_id)
                    self.running.pop(request_id, None)
                case fx.After(seconds, timer):
                    assert seconds >= 0
                    heapq.heappush(self.timers, (self.now + seconds, next(self._order), timer))
                case fx.Ping(to):
                    self.pings.append(to)
                case fx.Log():
                    pass
                case _:
                    raise AssertionError(effect)

    def _started(self, request_id: str, model: str) -> None:
        found = self.directory[model_actor_id(model)]
        assert found.is_up
        assert request_id not in self.running, "it was started twice"
        self.running[request_id] = found.incarnation
        self.trace.append(f"starts {self.refs[request_id]}")

    # ── what happens ────────────────────────────────────────────────────────────────────────────

    def arrive(self, request: Request, reply_to: Address = CALLER) -> str:
        request_id = f"id{next(self._ids)}"
        self.refs[request_id] = request.ref
        self.obey(self.table.arrived(self.now, request_id, request, reply_to))
        return request_id

    def end(self, request_id: str) -> None:
        self.obey(self.table.ended(self.now, request_id))

    def cancel(self, request_id: str) -> None:
        self.obey(self.table.cancelled(self.now, request_id))

    def caller_ends(self, caller: Address = CALLER) -> None:
        self.obey(self.table.caller_gone(self.now, caller))

    def change(self, state: str | None, why: ExitReason | None = None) -> None:
        """The model's entry is another one; ``None``: it is gone. "up" is a new process."""
        old = self.directory.get(ID)
        incarnation = 0 if old is None else old.incarnation
        if state is None:
            changed = self.directory.pop(ID, None) or entry(ID, incarnation, "down")
        else:
            new = incarnation + (state == "up")
            last = why or (None if old is None else old.last_exit)
            changed = self.directory[ID] = entry(ID, new, state, last)
        if state != "stopping":  # the process has ended
            self.running.clear()
        self.obey(self.table.directory_changed(self.now, (changed,)))

    def crash(self, why: ExitReason = CRASH) -> None:
        self.change("restarting", why)

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers and self.timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self.timers)
            self.obey(self.table.timer(self.now, timer))
        self.now = until

    def take_trace(self) -> list[str]:
        trace, self.trace = self.trace, []
        return trace


# ── the truth table ─────────────────────────────────────────────────────────────────────────────

# One request "r" in a state; then one thing happens, and two seconds pass. What becomes of r:
# "runs", "waits" and "is_held" are states in which it stays; "starts": it is sent to the model;
# "stop": the model is asked to end it. Ends: a word in capitals is the failure that its caller
# gets, "cancelled" is an answer too, "dropped" is an end for which inflight sends none.
TRUTH = """
event             completion_runs  completion_held  completion_waits  question_runs   question_held   question_waits
it ends           dropped          -                -                 dropped         -               -
cancel            runs,stop        cancelled        cancelled         runs            dropped         dropped
caller ends       runs,stop        cancelled        cancelled         runs            dropped         dropped
crash             waits            waits            waits             INTERRUPTED     waits           waits
SIGKILL           waits            waits            waits             INTERRUPTED     waits           waits
supervisor dies   waits            waits            waits             INTERRUPTED     waits           waits
up again          starts           starts           starts            INTERRUPTED     starts          starts
given up          MODEL_STOPPED    MODEL_STOPPED    MODEL_STOPPED     MODEL_STOPPED   MODEL_STOPPED   MODEL_STOPPED
unloaded          MODEL_UNLOADED   MODEL_UNLOADED   MODEL_UNLOADED    INTERRUPTED     MODEL_UNLOADED  MODEL_UNLOADED
stops for long    MODEL_UNLOADED   MODEL_UNLOADED   MODEL_UNLOADED    MODEL_UNLOADED  MODEL_UNLOADED  MODEL_UNLOADED
suspect ends      runs             starts           waits             runs            starts          waits
suspect proves    runs             starts           waits             runs            starts          waits
time limit        runs             DEADLINE         DEADLINE          runs            is_held         waits
nothing           runs             is_held          waits             runs            is_held         waits
"""  # noqa: E501 - a table
_, *STATES = TRUTH.strip().splitlines()[0].split()
ROWS = [line.split("  ", 1) for line in TRUTH.strip().splitlines()[1:]]


def _gone_and_back(world: World) -> None:
    world.crash()
    world.change("up")


def _supervisor_dies(world: World) -> None:
    """All models go with it; the next one comes up without them."""
    incarnation = world.directory["models"].incarnation
    world.directory["models"] = entry("models", incarnation, "restarting")
    world.change(None)
    world.directory["models"] = entry("models", incarnation + 1, "up")


def _unloaded(world: World) -> None:
    world.change("stopping", UNLOAD)
    world.change(None)


def _suspect(world: World) -> str:
    return next((one for one, ref in world.refs.items() if ref == "suspect"), "no such request")


def _proves(world: World) -> None:
    world.accepted[_suspect(world)] = 100


EVENTS: Final[dict[str, Callable[[World, str], object]]] = {
    "it ends": lambda world, r: world.end(r) if r in world.running else None,
    "cancel": lambda world, r: world.cancel(r),
    "caller ends": lambda world, _: world.caller_ends(),
    "crash": lambda world, _: world.crash(),
    "SIGKILL": lambda world, _: world.crash(SIGKILL),
    "supervisor dies": lambda world, _: _supervisor_dies(world),
    "up again": lambda world, _: _gone_and_back(world),
    "given up": lambda world, _: world.change("down", CRASH),
    "unloaded": lambda world, _: _unloaded(world),
    "stops for long": lambda world, _: world.change("stopping", UNLOAD),
    "suspect ends": lambda world, _: world.end(_suspect(world)),
    "suspect proves": lambda world, _: _proves(world),
    "time limit": lambda world, _: world.wait(TIMEOUT_S),
    "nothing": lambda _world, _: None,
}
PASSES_S: Final = {"stops for long": 6.5}


def in_state(state: str, *, timeout_s: float | None) -> tuple[World, str]:
    """A world with one request "r" in this state."""
    world = World()
    kind, _, how = state.partition("_")
    request = completion("r", timeout_s=timeout_s) if kind == "completion" else question("r")
    if how == "held":  # behind one that ran at a crash, and now runs alone
        world.arrive(completion("suspect", timeout_s=None), OTHER)
        world.crash()
        world.change("up")
    r = world.arrive(request)
    if how == "waits":
        world.directory[ID] = replace(world.directory[ID], state="restarting", address=None)
        world.cancel(r)
        world = World()
        world.crash()
        r = world.arrive(request)
    assert becomes(world, r) in (["starts"], ["is_held"], ["waits"])
    world.take_trace()
    return world, r


def becomes(world: World, r: str) -> list[str]:
    """What has become of r, in the words of the table."""
    told = [one.rsplit(" ", 1) for one in world.take_trace()]
    mine = [what if what in WORDS else what.upper() for what, ref in told if ref == "r"]
    one = world.table.requests.get(r)
    if one is None:
        return [what for what in mine if what != "starts"] or ["dropped"]
    if "starts" in mine:
        return ["starts"]
    now = "waits" if one.is_waiting else "runs" if one.is_running else "is_held"
    return [now, *mine]


WORDS = ("starts", "stop", "cancelled")
CASES = [
    pytest.param(event, state, cell.split(","), id=f"{event}-{state}")
    for event, cells in ROWS
    for state, cell in zip(STATES, cells.split(), strict=True)
    if cell != "-"
]


def test_the_truth_table_is_whole() -> None:
    assert [event for event, _ in ROWS] == list(EVENTS)
    assert len(CASES) == len(EVENTS) * len(STATES) - 4  # what no model has cannot end there


@pytest.mark.parametrize(("event", "state", "expected"), CASES)
def test_what_becomes_of_a_request(event: str, state: str, expected: list[str]) -> None:
    world, r = in_state(state, timeout_s=TIMEOUT_S if event == "time limit" else None)
    EVENTS[event](world, r)
    world.wait(PASSES_S.get(event, 2.0))
    assert becomes(world, r) == expected


# ── arrivals ────────────────────────────────────────────────────────────────────────────────────

# What an arriving request comes to, by what its model is.
ARRIVALS = """
model        completion       question
up           starts           starts
starting     waits            waits
restarting   waits            waits
stopping     MODEL_UNLOADED   MODEL_UNLOADED
down         MODEL_STOPPED    MODEL_STOPPED
unknown      MODEL_UNKNOWN    MODEL_UNKNOWN
"""


@pytest.mark.parametrize("row", ARRIVALS.strip().splitlines()[1:], ids=lambda row: row.split()[0])
def test_what_an_arriving_request_comes_to(row: str) -> None:
    state, *expected = row.split()
    for make, word in zip((completion, question), expected, strict=True):
        world = World()
        if state == "unknown":
            del world.directory[ID]
        else:
            world.directory[ID] = entry(ID, 1, state, CRASH)
            if state == "up":
                world.directory[ID] = entry(ID, 1, "up")
        r = world.arrive(make("r"))
        assert becomes(world, r) == [word]


def test_a_model_that_takes_no_more_has_them_refused() -> None:
    world = World()
    world.crash()
    for n in range(HELD_LIMIT):
        world.arrive(completion(f"n{n}"))
    assert not world.take_trace()
    world.arrive(completion("r"))
    assert world.take_trace() == ["overloaded r"]
    assert world.retry_after_s == 1.0  # nothing has ended yet


def test_a_refusal_for_lack_of_room_has_the_pace_at_which_requests_end() -> None:
    world = World()
    for n in range(4):
        world.arrive(completion(f"n{n}"))
    for request_id in list(world.running):
        world.now += 7.0
        world.obey(world.table.ended(world.now, request_id))
    world.crash()
    for n in range(HELD_LIMIT + 1):
        world.arrive(completion(f"more{n}"))
    assert world.retry_after_s == pytest.approx(7.0)


# ── crashes ─────────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_crashes_its_model_alone_is_poisonous_and_so_is_an_identical_one() -> None:
    world = World()
    world.arrive(completion("bad", "text"))
    world.arrive(completion("good"))
    world.crash()
    world.change("up")
    assert world.take_trace() == ["starts bad", "starts good", "starts bad"]
    world.crash()
    assert world.take_trace() == ["poisonous bad"]
    world.change("up")
    assert world.take_trace() == ["starts good"]
    world.arrive(completion("again", "text"))
    assert world.take_trace() == ["poisonous again"]


def test_a_request_is_not_sent_for_ever_to_a_model_that_ends_without_a_fault() -> None:
    world = World()
    r = world.arrive(completion("r"))
    for _ in range(RUNS_LIMIT):
        world.crash(UNLOAD)
        world.change("up")
    assert world.take_trace() == ["starts r"] * RUNS_LIMIT + ["model_down r"]
    assert world.forgotten == [r]


def test_a_model_that_does_not_come_back_fails_what_waits_for_it() -> None:
    world = World()
    world.arrive(completion("r", timeout_s=None))
    world.crash()
    world.wait(HEAL_TIMEOUT_S - 1)
    assert world.take_trace() == ["starts r"]
    world.wait(2)
    assert world.take_trace() == ["model_down r"]


def test_what_is_left_of_a_time_limit_goes_to_the_next_incarnation() -> None:
    world = World()
    sent: list[float | None] = []
    carry_out = world.obey

    def obey(effects: list[fx.Effect]) -> None:
        requests = [one.request for one in effects if isinstance(one, fx.Start)]
        sent.extend(one.timeout_s for one in requests if isinstance(one, m.Complete))
        carry_out(effects)

    world.obey = obey  # type: ignore[method-assign]
    world.arrive(completion("r", timeout_s=10))
    world.wait(3)
    world.crash()
    world.wait(2)
    world.change("up")
    assert sent == [10, pytest.approx(5)]


# ── callers ─────────────────────────────────────────────────────────────────────────────────────


def test_callers_are_pinged_while_there_are_requests_and_once_each() -> None:
    world = World()
    first = world.arrive(completion("a", timeout_s=None))
    world.arrive(completion("b", timeout_s=None))
    world.arrive(completion("c", timeout_s=None), OTHER)
    world.wait(PING_EVERY_S)
    assert world.pings == [CALLER, OTHER]
    for one in list(world.running):
        world.end(one)
    world.wait(3 * PING_EVERY_S)
    assert world.pings == [CALLER, OTHER]
    assert not world.timers
    assert first in world.forgotten


def test_a_question_is_pinged_only_while_no_model_answers_it() -> None:
    """What its caller gets in between would stand among the pages of the answer."""
    world = World()
    world.arrive(question("q"))
    world.wait(PING_EVERY_S)
    assert not world.pings
    world = World()
    world.crash()
    world.arrive(question("q"))
    world.wait(PING_EVERY_S)
    assert world.pings == [CALLER]


def test_a_cancel_of_an_unknown_request_goes_to_every_model() -> None:
    world = World()
    assert world.table.cancelled(world.now, "of another table") == [
        fx.Stop("of another table", None, awaits_end=True)
    ]


def test_a_cancelled_request_is_not_run_again_when_its_model_dies() -> None:
    world = World()
    r = world.arrive(completion("r"))
    world.cancel(r)
    world.crash()
    assert becomes(world, r)[-1] == "cancelled"
    world.change("up")
    assert not world.running
    assert not world.table.requests


def test_only_a_caller_that_cancels_and_reads_on_awaits_the_end() -> None:
    world = World()
    for awaits_end in (True, False):
        r = world.arrive(completion("r"))
        stop = fx.Stop(r, MODEL, awaits_end)
        assert world.table.cancelled(world.now, r, awaits_end=awaits_end) == [stop]
    r = world.arrive(completion("r"))
    assert fx.Stop(r, MODEL, awaits_end=False) in world.table.caller_gone(world.now, CALLER)


# ── any life ────────────────────────────────────────────────────────────────────────────────────


class Life:
    """Plays a table through random events."""

    EVENTS: Final[dict[str, Callable[[World], object]]] = {
        "crash": World.crash,
        "kill": lambda world: world.crash(SIGKILL),
        "up": lambda world: world.change("up"),
        "gone": lambda world: world.change(None),
        "supervisor": _supervisor_dies,
        "down": lambda world: world.change("down", CRASH),
        "stopping": lambda world: world.change("stopping", UNLOAD),
    }
    STEPS: Final = ("arrive", "arrive", "end", "cancel", "caller", "wait", "prove", *EVENTS)

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.world = World()

    def draw(self, values: Sequence[Drawn]) -> Drawn:
        return self.data.draw(st.sampled_from(values))

    def step(self) -> None:
        world, what = self.world, self.draw(self.STEPS)
        known = sorted(world.table.requests)
        if what in self.EVENTS:
            self.EVENTS[what](world)
        elif what == "arrive":
            make = self.draw((completion, question))
            text = self.draw(("", "one", "two"))
            world.arrive(make(f"r{len(world.refs)}", text), self.draw((CALLER, OTHER)))
        elif what == "caller":
            world.caller_ends(self.draw((CALLER, OTHER)))
        elif what == "wait":
            world.wait(self.draw((0.0, 0.3, 2.0, 11.0)))
        elif what == "end" and world.running:
            world.end(self.draw(sorted(world.running)))
        elif what == "cancel" and known:
            world.cancel(self.draw(known))
        elif what == "prove" and known:
            world.accepted[self.draw(known)] = 100

    def check(self) -> None:
        world, requests = self.world, self.world.table.requests
        assert {one for one, r in requests.items() if r.is_running} == set(world.running)
        assert not any(r.is_running and r.is_waiting for r in requests.values())
        assert len(set(world.forgotten)) == len(world.forgotten)
        assert len(set(world.answered)) == len(world.answered)
        assert not set(world.forgotten) & set(requests)
        assert world.table.status()["in_flight"] == len(requests)

    def finish(self) -> None:
        """The model is unloaded: nothing may be left."""
        self.world.change("stopping", UNLOAD)
        self.world.change(None)
        self.world.wait(60)
        self.check()
        assert not self.world.table.requests
        assert not self.world.timers
        ended = {self.world.refs[one] for one in self.world.forgotten}
        assert ended | set(self.world.answered) == set(self.world.refs.values())


@examples(200)
@given(st.data())
def test_whatever_happens_every_request_ends_once(data: st.DataObject) -> None:
    life = Life(data)
    for _ in range(data.draw(st.integers(0, 25))):
        life.step()
        life.check()
    life.finish()
