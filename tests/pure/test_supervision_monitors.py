"""Monitors: one Down per monitor, exactly when its incarnation has ended or was not there."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.address import Address
from supervision.dead_letters import DeadLetterLog, refusal_of
from supervision.exits import ExitKind, ExitReason
from supervision.host_session import ThreadEndpoint
from supervision.link import Outcome
from supervision.messages import (
    Addressed,
    ChildStarted,
    Demonitor,
    DirectoryChanged,
    Down,
    Entry,
    Init,
    Monitor,
    WrongIncarnation,
)
from supervision.monitors import NOPROC, UNSEEN, Monitors, has_process, merge_directory
from supervision.spec import ChildKind
from supervision.worker import Worker
from tests.support.examples import examples

pytestmark = pytest.mark.pure

HOST = Address("127.0.0.1", 7)
OTHER = Address("127.0.0.1", 8)


def killed(number: int) -> ExitReason:
    return ExitReason(ExitKind.KILLED, f"end of {number}")


def entry(
    incarnation: int, state: str = "up", last_exit: ExitReason | None = None, child_id: str = "a"
) -> Entry:
    address = Address("127.0.0.1", 1000 + incarnation) if state == "up" else None
    return Entry(
        child_id, ChildKind.WORKER, "root", "x.Y", address, 1, incarnation, state, 0, 0.0, last_exit
    )


def taken(monitors: Monitors) -> list[Down]:
    due = [monitors.take(ref) for ref in monitors.due_refs()]
    return [one.down for one in due if one is not None]


def test_the_end_of_an_incarnation_is_reported_once_and_with_its_reason():
    monitors = Monitors()
    monitors.add("r", "a", entry(1))
    monitors.observe((entry(1),), ())
    assert taken(monitors) == []
    monitors.observe((entry(1, "restarting", killed(1)),), ())
    monitors.observe((entry(2, "starting", killed(1)),), ())
    monitors.observe((entry(2, "up", killed(1)),), ())
    assert taken(monitors) == [Down("r", "a", 1, killed(1))]
    monitors.observe((entry(3, "up", killed(2)),), ())
    assert taken(monitors) == []
    assert len(monitors) == 0


def test_a_restart_between_two_looks_means_that_the_old_incarnation_is_down():
    monitors = Monitors()
    monitors.add("r", "a", entry(1))
    monitors.observe((entry(2, "up", killed(1)),), ())
    assert taken(monitors) == [Down("r", "a", 1, killed(1))]


def test_a_child_that_is_starting_or_stopping_is_still_there():
    for state in ("starting", "stopping"):
        monitors = Monitors()
        monitors.add("r", "a", entry(1, state))
        assert taken(monitors) == []


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, Down("r", "a", 0, NOPROC)),
        (entry(0, "down"), Down("r", "a", 0, NOPROC)),
        (entry(3, "down", killed(3)), Down("r", "a", 3, killed(3))),
        (entry(3, "restarting", killed(3)), Down("r", "a", 3, killed(3))),
    ],
)
def test_a_target_that_ended_or_is_unknown_is_down_at_once(known, expected):
    monitors = Monitors()
    monitors.add("r", "a", known)
    assert taken(monitors) == [expected]
    assert taken(monitors) == []


def test_the_reason_of_a_child_that_has_left_the_tree_is_kept():
    monitors = Monitors()
    monitors.observe((), (entry(2, "down", killed(2)),))
    monitors.add("r", "a", None)
    assert taken(monitors) == [Down("r", "a", 2, killed(2))]


def test_the_reason_of_an_earlier_incarnation_is_its_own_and_not_that_of_the_last():
    monitors = Monitors()
    monitors.observe((entry(2, "up", killed(1)),), ())
    monitors.observe((entry(3, "up", killed(2)),), ())
    monitors.add("r", "a", entry(3, "up", killed(2)), incarnation=1)
    assert taken(monitors) == [Down("r", "a", 1, killed(1))]


def test_an_incarnation_that_is_not_known_yet_is_waited_for():
    monitors = Monitors()
    monitors.add("r", "a", None, incarnation=3, latest=2)
    monitors.add("s", "a", entry(2), incarnation=3, latest=2)
    monitors.observe((entry(3, "up", killed(2)),), ())
    assert taken(monitors) == []
    monitors.observe((), (entry(3, "down", killed(3)),))
    assert taken(monitors) == [Down("r", "a", 3, killed(3)), Down("s", "a", 3, killed(3))]


def test_an_incarnation_that_was_known_and_is_gone_is_down_at_once():
    monitors = Monitors()
    monitors.add("r", "a", None, incarnation=2, latest=2)
    assert taken(monitors) == [Down("r", "a", 2, NOPROC)]


def test_a_new_supervisor_without_a_reason_gives_the_reason_unseen():
    monitors = Monitors()
    monitors.add("r", "a", entry(1))
    monitors.observe((entry(2, "up", None),), ())
    assert taken(monitors) == [Down("r", "a", 1, UNSEEN)]


def test_removing_a_monitor_silences_it_also_when_its_down_waits():
    monitors = Monitors()
    monitors.add("r", "a", entry(1))
    monitors.add("s", "a", entry(1))
    monitors.remove("r")
    monitors.observe((entry(1, "down", killed(1)),), ())
    monitors.remove("s")
    monitors.remove("never set")
    assert taken(monitors) == []
    assert len(monitors) == 0


def test_setting_a_ref_again_renews_it_and_gives_it_to_its_last_owner():
    monitors = Monitors()
    for owner in (HOST, OTHER):
        monitors.add("r", "a", entry(1), owner=owner)
    monitors.observe((entry(1, "down", killed(1)),), ())
    due = monitors.take("r")
    assert due is not None
    assert due.owner == OTHER
    assert monitors.take("r") is None


def test_a_down_that_was_lost_comes_again_when_its_ref_is_set_again():
    monitors = Monitors()
    monitors.add("r", "a", entry(1), owner=HOST)
    monitors.observe((entry(2, "up", killed(1)),), ())
    assert taken(monitors) == [Down("r", "a", 1, killed(1))]
    monitors.observe((entry(3, "up", killed(2)),), ())
    monitors.add("r", "a", entry(3, "up", killed(2)), incarnation=1, owner=HOST)
    assert taken(monitors) == [Down("r", "a", 1, killed(1))]


def test_all_monitors_of_an_owner_go_with_it_and_no_others():
    monitors = Monitors()
    monitors.add("r", "a", entry(1), owner=HOST)
    monitors.add("s", "a", entry(1), owner=OTHER)
    monitors.add("t", "a", entry(1))
    monitors.add("u", "nobody", None, owner=HOST)
    monitors.remove_owner(HOST)
    monitors.observe((entry(1, "down", killed(1)),), ())
    assert [one.ref for one in taken(monitors)] == ["s", "t"]


def test_monitors_of_others_are_bounded_and_ones_own_are_not():
    monitors = Monitors(limit=2)
    for ref in ("mine", "mine too", "mine also"):
        monitors.add(ref, "a", entry(1))
    for ref in ("1", "2"):
        monitors.add(ref, "a", entry(1), owner=HOST)
    monitors.add("1", "a", entry(1), owner=HOST)  # renewed: now 2 is the one to go
    monitors.add("3", "a", entry(1), owner=HOST)
    monitors.observe((entry(1, "down", killed(1)),), ())
    assert sorted(one.ref for one in taken(monitors)) == ["1", "3", "mine", "mine also", "mine too"]


def test_the_number_of_kept_reasons_is_bounded():
    monitors = Monitors(memory=3)
    for number in range(1, 100):
        monitors.observe((), (entry(number, "down", killed(number)),))
    assert monitors.has_ended(entry(99))
    assert not monitors.has_ended(entry(96))


# ── any order of changes ─────────────────────────────────────────────────────

IDS = ("a", "b")


@dataclass
class World:
    """What really happens, step by step, and the entries of a directory for it."""

    now: dict[str, Entry] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)
    ends: dict[tuple[str, int], ExitReason] = field(default_factory=dict)

    def step(self, child_id: str, what: str) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        old = self.now.get(child_id)
        last = self.incarnations.get(child_id, 0)
        if what == "start" and (old is None or not has_process(old)):
            self.incarnations[child_id] = last + 1
            last_exit = old.last_exit if old is not None else None
            new = entry(last + 1, "starting", last_exit, child_id)
        elif what == "ready" and old is not None and old.state == "starting":
            new = entry(last, "up", old.last_exit, child_id)
        elif what in ("crash", "remove") and old is not None:
            if has_process(old):
                self.ends[child_id, last] = killed(last)
            reason = self.ends.get((child_id, last))
            new = entry(last, "down", reason, child_id)
            if what == "remove":
                del self.now[child_id]
                return (), (new,)
        else:
            return (), ()
        self.now[child_id] = new
        return (new,), ()

    def is_over(self, child_id: str, incarnation: int) -> bool:
        return incarnation == 0 or (child_id, incarnation) in self.ends


happenings = st.lists(
    st.tuples(
        st.sampled_from(IDS),
        st.sampled_from(("start", "ready", "crash", "remove", "monitor", "push", "demonitor")),
    ),
    max_size=60,
)


def collapsed(
    news: list[tuple[tuple[Entry, ...], tuple[Entry, ...]]],
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Only the last entry of each id, as a push has it."""
    changed: dict[str, Entry] = {}
    removed: dict[str, Entry] = {}
    for came, went in news:
        for one in came:
            changed[one.id] = one
            removed.pop(one.id, None)
        for one in went:
            removed[one.id] = one
            changed.pop(one.id, None)
    return tuple(changed.values()), tuple(removed.values())


@given(happenings)
@examples(400)
def test_each_monitor_gets_exactly_one_down_iff_its_incarnation_ended_or_was_not_there(steps):
    world, monitors = World(), Monitors()
    directory: dict[str, Entry] = {}
    unheard: list[tuple[tuple[Entry, ...], tuple[Entry, ...]]] = []
    watched: dict[str, tuple[str, int]] = {}
    removed: set[str] = set()
    downs: list[Down] = []
    for number, (child_id, what) in enumerate([*steps, ("a", "push")]):
        if what == "monitor":
            ref = str(number)
            known = directory.get(child_id)
            watched[ref] = (child_id, known.incarnation if known else 0)
            monitors.add(ref, child_id, known)
        elif what == "demonitor" and watched:
            ref = next(iter(watched))
            if ref not in {one.ref for one in downs}:
                removed.add(ref)
            monitors.remove(ref)
        elif what == "push":
            news = collapsed(unheard)
            unheard.clear()
            merge_directory(directory, *news)
            monitors.observe(*news)
            monitors.observe(*news)  # heard twice, for instance from a sibling's answer too
            downs += taken(monitors)
        else:
            unheard.append(world.step(child_id, what))
    refs = [one.ref for one in downs]
    assert len(refs) == len(set(refs))
    for ref, (child_id, incarnation) in watched.items():
        mine = [one for one in downs if one.ref == ref]
        assert bool(mine) == (ref not in removed and world.is_over(child_id, incarnation))
        for down in mine:
            assert down.id == child_id
            if incarnation:
                assert down.incarnation == incarnation
                assert isinstance(down.reason, ExitReason)
    waiting = {ref for ref in watched if ref not in removed} - set(refs)
    assert len(monitors) == len(waiting)


@given(happenings)
def test_the_reason_is_that_of_its_own_end_when_nothing_happened_between_two_looks(steps):
    world, monitors = World(), Monitors()
    for number, (child_id, what) in enumerate(steps):
        if what == "monitor" and child_id in world.now:
            monitors.add(str(number), child_id, world.now[child_id])
        else:
            monitors.observe(*world.step(child_id, what))
        for down in taken(monitors):
            assert down.reason == world.ends.get((down.id, down.incarnation), NOPROC)


# ── the standing monitors of a host's thread ─────────────────────────────────


class FakeContext:
    """Takes everything, and receives what the test put there."""

    is_own = True

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.inbox: deque[object] = deque()
        self.outcome = Outcome.ARRIVED

    def send(self, target: Address, message: object, timeout_s: float) -> bool:
        self.sent.append(message)
        return True

    def post(
        self, target: Address, message: object, done: Callable[[Outcome], None] | None = None
    ) -> None:
        self.sent.append(message)
        if done is not None:
            done(self.outcome)

    def receive(self, timeout_s: float) -> object | None:
        return self.inbox.popleft() if self.inbox else None

    def close(self) -> None:
        self.sent.append("closed")


def new_endpoint() -> tuple[ThreadEndpoint, FakeContext]:
    context = FakeContext()
    endpoint = ThreadEndpoint(context, (1, 1), threading.current_thread(), lambda _: None)  # type: ignore[arg-type]
    return endpoint, context


def soon() -> float:
    return time.monotonic() + 10


def test_a_thread_sets_one_monitor_per_name_and_another_for_the_next_incarnation():
    endpoint, context = new_endpoint()
    first = endpoint.watch(HOST, "a", 1)
    assert endpoint.watch(HOST, "a", 1) == first
    second = endpoint.watch(HOST, "a", 2)
    endpoint.watch(HOST, "b", 1)
    assert context.sent[:2] == [Monitor(first, "a", 1), Monitor(second, "a", 2)]
    assert len(context.sent) == 3


def test_a_thread_that_has_not_read_for_long_renews_each_of_its_monitors_before_it_relies_on_it():
    endpoint, context = new_endpoint()
    refs = {one: endpoint.watch(HOST, one, 1) for one in ("a", "b")}
    context.sent.clear()
    for one in endpoint.standing.values():
        one.renewed_at -= 60  # type: ignore[operator]
    endpoint.read_at -= 60
    assert endpoint.watch(HOST, "a", 1) == refs["a"]
    endpoint.next("", soon())
    assert endpoint.watch(HOST, "b", 1) == refs["b"]
    endpoint.watch(HOST, "a", 1)
    assert context.sent == [Monitor(refs["a"], "a", 1), Monitor(refs["b"], "b", 1)]


def test_a_long_wait_renews_its_monitor_now_and_then():
    endpoint, context = new_endpoint()
    ref = endpoint.watch(HOST, "a", 1)
    endpoint.renew(HOST, "a", ref)
    endpoint.renew(HOST, "a", "of another")
    assert len(context.sent) == 1
    endpoint.standing["a"].renewed_at -= 60  # type: ignore[operator]
    endpoint.renew(HOST, "a", ref)
    assert context.sent == [Monitor(ref, "a", 1)] * 2


def test_a_down_that_was_read_during_another_ask_is_found_by_its_waiter():
    endpoint, context = new_endpoint()
    ref = endpoint.watch(HOST, "a", 1)
    endpoint.streams["s"] = deque()
    down, piece, answer = Down(ref, "a", 1, NOPROC), Monitor("s", "x"), Monitor("r", "y")
    context.inbox.extend((down, piece, Monitor("nobody's", "z"), answer))
    assert endpoint.next("r", soon()) == answer
    assert list(endpoint.streams["s"]) == [piece]
    assert endpoint.next("s", soon(), ref) == down
    assert endpoint.watch(HOST, "a", 1) != ref


def test_a_thread_with_monitors_at_the_root_removes_them_when_it_ends():
    endpoint, context = new_endpoint()
    endpoint.close(HOST)
    assert context.sent == ["closed"]
    endpoint, context = new_endpoint()
    endpoint.watch(HOST, "a", 1)
    endpoint.close(HOST)
    assert context.sent[1:] == [Demonitor(""), "closed"]


# ── a worker's hooks ─────────────────────────────────────────────────────────


class FakeMailbox:
    """Keeps what is sent and what is due later, until the test decides the outcome."""

    address = Address("127.0.0.1", 9)

    def __init__(self) -> None:
        self.sent: list[tuple[object, object]] = []
        self.done: list[Callable[[bool], None]] = []
        self.later: list[object] = []

    def send(
        self,
        target: object,
        message: object,
        done: Callable[[bool], None] | None = None,
        *,
        prompt: bool = False,
    ) -> None:
        self.sent.append((target, message))
        if done is not None:
            self.done.append(done)

    def after(self, seconds: float, payload: object) -> None:
        self.later.append(payload)


class Recorder(Worker):
    """Writes its hooks down; ``reaction`` runs inside of handle_down."""

    def init(self, args: object) -> None:
        self.heard: list[object] = []
        self.reaction: Callable[[], object] = lambda: None

    def handle_down(self, down: Down) -> None:
        self.heard.append(down)
        self.reaction()

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        self.heard.append(changed)

    def undelivered(self, target: Address | str, message: object) -> None:
        self.heard.append((target, message))


def new_worker(*entries: Entry) -> tuple[Recorder, FakeMailbox]:
    worker, mailbox = Recorder(), FakeMailbox()
    init = Init("w", 2, "x.Y", ChildKind.WORKER, None, "root", entries, ())
    worker._begin(mailbox, init, HOST, None)  # type: ignore[arg-type]
    mailbox.sent.clear()
    return worker, mailbox


def next_turn(worker: Worker, mailbox: FakeMailbox) -> None:
    due, mailbox.later = mailbox.later, []
    for payload in due:
        worker._timer(payload)


def test_monitoring_an_ended_process_calls_the_hook_in_a_later_turn_and_once():
    worker, mailbox = new_worker(entry(1, "down", killed(1)))
    ref = worker.monitor("a")
    assert worker.heard == []
    next_turn(worker, mailbox)
    next_turn(worker, mailbox)
    assert worker.heard == [Down(ref, "a", 1, killed(1))]


def test_a_down_comes_before_the_news_and_sees_the_new_directory():
    worker, _ = new_worker(entry(1))
    ref = worker.monitor("a")
    seen: list[int] = []
    worker.reaction = lambda: seen.append(worker.directory["a"].incarnation)
    anew = entry(2, "up", killed(1))
    worker._receive(DirectoryChanged((anew,)), HOST)
    assert worker.heard == [Down(ref, "a", 1, killed(1)), (anew,)]
    assert seen == [2]


def test_a_hook_that_watches_a_dead_target_again_does_not_starve_the_worker():
    worker, mailbox = new_worker(entry(1, "down", killed(1)))
    worker.reaction = lambda: worker.monitor("a")
    worker.monitor("a")
    for turn in range(1, 4):
        next_turn(worker, mailbox)
        assert len(worker.heard) == turn


def test_a_hook_can_take_back_a_monitor_whose_down_would_be_next():
    worker, _ = new_worker(entry(1))
    first, second = worker.monitor("a"), worker.monitor("a")
    worker.reaction = lambda: worker.demonitor(second)
    worker._receive(DirectoryChanged((entry(1, "down", killed(1)),)), HOST)
    assert worker.heard[0] == Down(first, "a", 1, killed(1))
    assert len(worker.heard) == 2  # and the news


def test_late_news_that_a_child_has_started_does_not_raise_the_dead():
    worker, _ = new_worker()
    worker._receive(DirectoryChanged((), (entry(3, "down", killed(3)),)), HOST)
    worker._receive(ChildStarted("r", entry(3)), HOST)
    assert "a" not in worker.directory
    worker._receive(ChildStarted("r", entry(4)), HOST)
    assert worker.directory["a"].incarnation == 4


def test_undelivered_messages_reach_the_hook_in_a_later_turn():
    worker, mailbox = new_worker(entry(1))
    assert worker.tell("a", Demonitor("by name"))
    assert worker.tell(OTHER, Demonitor("by address"))
    assert not worker.tell("nobody", Demonitor("r"))
    for done, arrived in zip(mailbox.done, (False, True), strict=True):
        done(arrived)
    assert worker.heard == []
    next_turn(worker, mailbox)
    assert worker.heard == [("a", Demonitor("by name"))]


@pytest.mark.parametrize(
    ("wanted_id", "wanted", "actual"), [("w", 1, 2), ("w", 3, 2), ("somebody else", 2, None)]
)
def test_a_message_for_another_process_is_refused_to_its_sender(wanted_id, wanted, actual):
    worker, mailbox = new_worker()
    worker._receive(Addressed(wanted_id, wanted, Monitor("r", "a")), OTHER)
    worker._receive(Addressed(wanted_id, wanted, Demonitor("")), OTHER)
    assert mailbox.sent == [(OTHER, WrongIncarnation("r", wanted_id, wanted, actual))]


def test_a_refusal_is_an_undelivered_message():
    worker, _ = new_worker()
    refusal = WrongIncarnation("r", "a", 1, 2)
    worker._receive(refusal, OTHER)
    assert worker.heard == [("a", refusal)]


# ── undeliverable messages ───────────────────────────────────────────────────


def test_a_refusal_carries_the_ref_of_what_was_refused():
    message = Addressed("a", 3, Monitor("r", "b"))
    assert refusal_of(message, 4) == WrongIncarnation("r", "a", 3, 4)
    assert refusal_of(Addressed("a", 3, "no ref"), 4) is None
    assert refusal_of(Addressed("a", 3, Demonitor("")), 4) is None


def test_a_flood_of_dead_letters_is_one_line_per_target_and_type_without_content(caplog):
    log, letters = logging.getLogger("test"), DeadLetterLog()
    with caplog.at_level(logging.WARNING, logger="test"):
        for number in range(50):
            letters.write(log, "a", Monitor("r", f"secret {number}"))
        letters.write(log, "a", Demonitor("r"))
        letters.write(log, "b", Demonitor("r"))
    assert [one.getMessage() for one in caplog.records] == [
        "not known to have arrived: a Monitor for a",
        "not known to have arrived: a Demonitor for a",
        "not known to have arrived: a Demonitor for b",
    ]


def test_a_standing_monitor_that_did_not_arrive_is_set_again():
    endpoint, context = new_endpoint()
    context.outcome = Outcome.REFUSED
    ref = endpoint.watch(HOST, "a", 1)
    context.outcome = Outcome.ARRIVED
    assert endpoint.watch(HOST, "a", 1) == ref
    assert endpoint.watch(HOST, "a", 1) == ref
    assert context.sent == [Monitor(ref, "a", 1)] * 2


def test_an_actor_that_hides_what_belongs_to_its_base_is_refused_when_it_is_defined():
    with pytest.raises(TypeError, match=r"_leave.*another name"):

        class _Hides(Worker):
            def _leave(self) -> None: ...

    class _Fine(Worker):
        _mine = 1

        def __repr__(self) -> str:
            return ""
