"""Who crashes a model: suspects run alone, the guilty one is found, the others come through."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.requests.crash_attribution import (
    ALONE_S,
    DRAIN_S,
    KILLED_WEIGHT,
    POISON_CRASHES,
    POISONOUS_FOR_S,
    SUSPECT_FOR_S,
    ChargeSheet,
    Lane,
    Verdict,
)
from actors.requests.failures import poisonous
from tests.support.examples import examples

pytestmark = pytest.mark.pure

A, B, C, D = (bytes([n]) * 32 for n in range(4))


def crash_with(lane: Lane, *digests: bytes, now: float = 0.0) -> Verdict:
    """Let requests in together and crash."""
    ids = {f"{n}{digest[:1].hex()}": digest for n, digest in enumerate(digests)}
    for one in ids:
        lane.arrive(one, None, now)
    return lane.crashed(ids, now)


def test_without_suspects_every_request_is_admitted_at_once() -> None:
    lane = Lane()
    assert [lane.arrive(str(n), None, 0.0) for n in range(3)] == [("0",), ("1",), ("2",)]
    assert lane.due() is None


def test_a_suspect_runs_alone_and_is_exonerated_when_it_ends() -> None:
    lane = Lane()
    assert crash_with(lane, A, B) == Verdict((), ("000", "101"), ())
    assert lane.arrive("a", A, 1.0) == ("a",)
    assert lane.arrive("b", B, 1.0) == ()
    assert lane.arrive("c", C, 1.0) == ()
    assert lane.ended("a", 2.0) == ("b",)
    assert lane.ended("b", 3.0) == ("c",)
    assert len(lane.sheet) == 0


def test_the_second_crash_makes_its_request_poisonous_and_no_other() -> None:
    lane = Lane()
    crash_with(lane, A, B)
    lane.arrive("a", A, 1.0)
    lane.arrive("b", B, 1.0)
    lane.arrive("c", C, 1.0)
    assert lane.crashed({"a": A}, 2.0) == Verdict(("a",), (), ("b", "c"))
    assert lane.sheet.is_poisonous(A, 2.0)
    assert lane.sheet.crashes(B, 2.0) == 1
    assert lane.sheet.crashes(C, 2.0) == 0


def test_identical_requests_at_one_crash_are_charged_once() -> None:
    lane = Lane()
    assert crash_with(lane, A, A).poisonous == ()
    assert lane.sheet.crashes(A, 0.0) == 1


def test_a_suspect_that_is_cancelled_stays_a_suspect() -> None:
    lane = Lane()
    crash_with(lane, A)
    lane.arrive("a", A, 1.0)
    lane.interrupted("a")
    lane.ended("a", 2.0)
    assert lane.sheet.crashes(A, 2.0) == 1


def test_a_suspect_waits_for_running_requests_but_not_without_limit() -> None:
    lane = Lane()
    crash_with(lane, A)
    assert lane.arrive("long", B, 1.0) == ("long",)
    assert lane.arrive("a", A, 1.0) == ()
    assert lane.arrive("c", C, 1.0) == ()
    assert lane.due() == 1.0 + DRAIN_S
    assert lane.tick(1.0 + DRAIN_S - 0.1) == ()
    assert lane.tick(1.0 + DRAIN_S) == ("a",)


def test_no_request_waits_longer_than_the_limit_for_a_suspect() -> None:
    lane = Lane()
    crash_with(lane, A)
    lane.arrive("a", A, 1.0)
    assert lane.arrive("c", C, 2.0) == ()
    assert lane.due() == 1.0 + ALONE_S
    assert lane.tick(1.0 + ALONE_S) == ("c",)
    assert lane.sheet.crashes(A, 1.0 + ALONE_S) == 0


def test_a_request_that_leaves_while_held_makes_room_for_the_next() -> None:
    lane = Lane()
    crash_with(lane, A)
    lane.arrive("long", B, 1.0)
    lane.arrive("a", A, 1.0)
    lane.arrive("c", C, 1.0)
    assert lane.ended("a", 1.5) == ("c",)


def test_charges_and_verdicts_expire() -> None:
    sheet = ChargeSheet()
    sheet.charge(A, 0.0)
    assert sheet.crashes(A, SUSPECT_FOR_S - 1) == 1
    assert sheet.crashes(A, SUSPECT_FOR_S) == 0
    for _ in range(POISON_CRASHES):
        sheet.charge(B, 0.0)
    assert sheet.is_poisonous(B, POISONOUS_FOR_S - 1)
    sheet.clear(B)
    assert sheet.is_poisonous(B, POISONOUS_FOR_S - 1)
    assert not sheet.is_poisonous(B, POISONOUS_FOR_S)


@given(st.lists(st.sampled_from([bytes([n]) for n in range(12)]), max_size=60))
def test_the_record_is_bounded_and_drops_suspects_before_verdicts(charged: list[bytes]) -> None:
    sheet = ChargeSheet(limit=4)
    for digest in charged:
        before = sheet.counts()[1]
        sheet.charge(digest, 0.0)
        assert len(sheet) <= 4
        assert sheet.counts()[1] >= min(before, 4)


def test_after_one_sigkill_all_resume_together_and_after_the_second_alone() -> None:
    lane = Lane()
    for one in "ab":
        lane.arrive(one, None, 0.0)
    digests = {"a": A, "b": B}
    assert lane.crashed(digests, 0.0, KILLED_WEIGHT).suspects == ("a", "b")
    assert lane.arrive("a", A, 1.0) == ("a",)
    assert lane.arrive("b", B, 1.0) == ("b",)
    assert lane.crashed(digests, 2.0, KILLED_WEIGHT).poisonous == ()
    assert lane.arrive("a", A, 3.0) == ("a",)
    assert lane.alone == "a"
    assert lane.arrive("b", B, 3.0) == ()


def test_a_request_that_got_beyond_the_crash_is_cleared_and_no_longer_alone() -> None:
    lane = Lane()
    crash_with(lane, A, B)
    assert lane.arrive("a", A, 1.0) == ("a",)
    assert lane.arrive("b", B, 1.0) == ()
    assert lane.proved("a", 1.1) == ("b",)
    assert lane.alone == "b"
    assert lane.sheet.crashes(A, 1.1) == 0
    assert lane.running == ("a", "b")
    assert lane.crashed({"a": A, "b": B}, 1.2).poisonous == ("b",)


def test_a_request_proved_after_an_interruption_stays_a_suspect() -> None:
    lane = Lane()
    crash_with(lane, A)
    lane.arrive("a", A, 1.0)
    lane.interrupted("a")
    lane.proved("a", 1.1)
    assert lane.sheet.crashes(A, 1.1) == 1


def test_a_request_that_has_run_for_long_is_no_suspect_of_earlier_crashes() -> None:
    lane = Lane()
    now = 0.0
    for _ in range(6):
        lane.arrive("a", A, now)
        now += ALONE_S
        assert lane.crashed({"a": A}, now, 1.0).poisonous == ()
        assert lane.sheet.crashes(A, now) == 1.0


@dataclass
class World:
    """Callers that repeat, and a model that dies while it runs something poisonous."""

    poisons: frozenset[bytes]
    lane: Lane = field(default_factory=Lane)
    now: float = 0.0
    wanted: dict[str, bytes] = field(default_factory=dict)
    """Requests without an end yet, by id."""
    completed: list[bytes] = field(default_factory=list)
    convicted: list[bytes] = field(default_factory=list)
    crashes: int = 0
    running: set[str] = field(default_factory=set)
    serial: int = 0

    def send(self, digest: bytes) -> None:
        if self.lane.sheet.is_poisonous(digest, self.now):
            self.convicted.append(digest)
            return
        self.serial += 1
        one = f"r{self.serial}"
        self.wanted[one] = digest
        self.start(self.lane.arrive(one, digest, self.now))

    def start(self, let_in: tuple[str, ...]) -> None:
        for one in let_in:
            assert one not in self.running
            self.running.add(one)
        suspects = [r for r in self.running if self.lane.sheet.crashes(self.wanted[r], self.now)]
        assert len(suspects) <= 1
        assert set(self.lane.running) == self.running
        assert self.lane.n_held == len(self.wanted) - len(self.running)
        if self.lane.n_held:
            assert self.running, "somebody waits for nobody"
            assert self.lane.due() is not None

    def finish(self, one: str) -> None:
        self.running.discard(one)
        self.completed.append(self.wanted.pop(one))
        self.start(self.lane.ended(one, self.now))

    def crash(self) -> None:
        self.crashes += 1
        ran = {one: self.wanted[one] for one in self.running}
        verdict = self.lane.crashed(ran, self.now)
        again = [self.wanted.pop(one) for one in (*verdict.suspects, *verdict.held)]
        self.convicted += [self.wanted.pop(one) for one in verdict.poisonous]
        assert not self.wanted
        self.running.clear()
        for digest in again:
            self.send(digest)

    @property
    def guilty(self) -> list[str]:
        return sorted(one for one in self.running if self.wanted[one] in self.poisons)


DIGESTS = [A, B, C, D, b"e" * 32, b"f" * 32]


@examples(300)
@given(st.data(), st.frozensets(st.sampled_from(DIGESTS), max_size=3))
def test_poisonous_requests_are_found_and_the_others_complete(
    data: st.DataObject, poisons: frozenset[bytes]
) -> None:
    """Whatever arrives, ends and crashes in whatever order, within the bounds of time."""
    world = World(poisons)
    sent = data.draw(st.lists(st.sampled_from(DIGESTS), max_size=12))
    for digest in sent:
        world.send(digest)
        world.now += 1e-3
        innocent = sorted(one for one in world.running if world.wanted[one] not in poisons)
        if innocent and data.draw(st.booleans()):
            world.finish(data.draw(st.sampled_from(innocent)))
        if world.guilty and data.draw(st.booleans()):
            world.crash()
    for _ in range(100):
        if not world.wanted:
            break
        world.now += 1e-3
        if world.guilty:
            world.crash()
        else:
            world.finish(sorted(world.running)[0])
    assert not world.wanted, "a request has no end"
    assert sorted(world.convicted) == sorted(d for d in sent if d in poisons)
    assert sorted(world.completed) == sorted(d for d in sent if d not in poisons)
    assert world.crashes <= POISON_CRASHES * len(poisons)


@examples(200)
@given(st.lists(st.tuples(st.sampled_from(DIGESTS), st.floats(0.0, 20.0)), max_size=12))
def test_no_request_waits_without_limit_even_if_nothing_ends(
    arrivals: list[tuple[bytes, float]],
) -> None:
    lane = Lane()
    crash_with(lane, A, B)
    now, let_in = 1.0, 0
    for n, (digest, pause) in enumerate(arrivals):
        let_in += len(lane.arrive(f"x{n}", digest, now))
        now += pause
        let_in += len(lane.tick(now))
    while (due := lane.due()) is not None:
        now = max(now, due)
        let_in += len(lane.tick(now))
    assert let_in == len(arrivals)
    assert now <= 1.0 + sum(pause for _, pause in arrivals) + 2 * (DRAIN_S + ALONE_S) * len(
        arrivals
    )


def test_a_sigkill_counts_half_as_much_as_a_crash() -> None:
    sheet = ChargeSheet()
    assert not sheet.charge(A, 0.0, KILLED_WEIGHT)
    assert not sheet.charge(A, 1.0)
    assert sheet.charge(A, 2.0, KILLED_WEIGHT)
    assert [sheet.charge(B, float(n), KILLED_WEIGHT) for n in range(4)] == [False] * 3 + [True]


def test_a_verdict_names_how_the_process_ended() -> None:
    """A kill for lack of memory is not blamed on llama.cpp or the model file."""
    lane = Lane()
    killed = "killed by the kernel for lack of memory (limit 700 MiB of control group /x)"
    for _ in range(4):
        assert not lane.sheet.is_poisonous(A, 0.0)
        lane.arrive("a", A, 0.0)
        verdict = lane.crashed({"a": A}, 0.0, KILLED_WEIGHT, killed)
    assert verdict.poisonous == ("a",)
    assert lane.sheet.why(A) == killed
    assert lane.sheet.why(B) == ""
    words = poisonous("m", lane.sheet.why(A)).detail
    assert "limit 700 MiB" in words
    assert "llama.cpp" not in words
    assert "llama.cpp" in poisonous("m", "").detail
