"""Each monitor and each waiting ask is notified of an end: once, soon, and with its reason."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from supervision.connection import Connection
from supervision.errors import NoReply, TargetDown, UnknownMonitor
from supervision.exits import ExitKind
from supervision.host_context import HostContext
from supervision.kill_watch import PERHAPS
from supervision.messages import (
    ChildStarted,
    ChildTerminated,
    Down,
    ReportStatus,
    StartChild,
    StatusReported,
    TerminateChild,
    new_ref,
)
from supervision.monitors import NOPROC
from supervision.spec import Backoff, ChildKind, ChildSpec, Restart, Strategy, SupervisorSpec
from supervision.supervisor import ACTOR as SUPERVISOR
from tests.support.children import Do, Echo, Echoed, Fail, ReportSeen, Seen, TellOther, Watch
from tests.support.nodes import RunningNode, running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

WATCHING = "tests.support.children.WatchingChild"
PROMPTLY_S = 10.0
"""Far from it on a quiet machine, and far below the time that is waited otherwise."""
TIMEOUT_S = 60.0


def child(child_id: str, **changes: object) -> ChildSpec:
    return ChildSpec(child_id, WATCHING, **changes)  # type: ignore[arg-type]


def below(child_id: str, spec: SupervisorSpec) -> ChildSpec:
    return ChildSpec(child_id, SUPERVISOR, args=spec, kind=ChildKind.SUPERVISOR)


def one_for_one(*children: ChildSpec, intensity: int = 10) -> SupervisorSpec:
    return SupervisorSpec(Strategy.ONE_FOR_ONE, children, intensity=intensity)


TREE = one_for_one(child("w"), below("sub", one_for_one(child("x"))))


def seen(node: RunningNode, child_id: str) -> tuple[object, ...]:
    answer = node.connect().ask(child_id, ReportSeen(new_ref()), timeout_s=30)
    assert isinstance(answer, Seen)
    return answer.values


def downs(node: RunningNode, child_id: str) -> list[tuple[object, ...]]:
    return [one for one in seen(node, child_id) if isinstance(one, tuple) and one[0] == "down"]


def watch(node: RunningNode, child_id: str, other: str, **options: bool) -> str:
    answer = node.connect().ask(child_id, Watch(new_ref(), other, **options), timeout_s=30)
    assert isinstance(answer, Seen)
    return str(answer.values[0])


def pid_of(node: RunningNode, who: str) -> int:
    if who in ("root", "admin"):
        return node.record.root_pid if who == "root" else node.record.admin_pid
    return node.entry(who).pid or 0


def status_of(node: RunningNode, child_id: str) -> dict[str, object]:
    answer = node.connect().ask(child_id, ReportStatus(new_ref()), timeout_s=30)
    assert isinstance(answer, StatusReported)
    return answer.status


class Asking(threading.Thread):
    """An ask on a thread of its own, which ends with an answer or an error."""

    def __init__(self, node: RunningNode, target: str, message: object) -> None:
        super().__init__()
        self.connection, self.target, self.message = node.connect(), target, message
        self.error: BaseException | None = None
        self.answer: object = None
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.connection.ask(self.target, self.message, timeout_s=TIMEOUT_S)
        except NoReply as error:
            self.error = error
        self.ended_at = time.monotonic()


def in_flight(node: RunningNode, target: str) -> Asking:
    """An ask that its target has handled and never answers."""
    before = status_of(node, target)["handled"]
    asking = Asking(node, target, Fail(new_ref(), raises=False))
    eventually(lambda: status_of(node, target)["handled"] != before, what="the ask at its target")
    return asking


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("x", ("SIGKILL",)),
        ("sub", ("sub died",)),
        ("root", ("root supervisor died", "node restarted")),
        ("admin", ("root supervisor died", "node restarted")),
    ],
)
def test_an_ask_in_flight_fails_at_once_with_the_reason(tmp_path, victim, words):
    with running_node(TREE, tmp_path) as node:
        asking = in_flight(node, "x")
        began = time.monotonic()
        os.kill(pid_of(node, victim), signal.SIGKILL)
        asking.join(TIMEOUT_S + 5)
        assert isinstance(asking.error, TargetDown)
        assert asking.ended_at - began < PROMPTLY_S
        assert (asking.error.target, asking.error.incarnation) == ("x", 1)
        assert asking.error.reason.kind is ExitKind.KILLED
        assert any(word in asking.error.reason.text for word in words)
        answer = node.connect().ask("x", Echo(new_ref()), timeout_s=30)
        assert isinstance(answer, Echoed)
        node.note_group()


def test_the_caller_of_a_handler_that_raises_gets_the_last_line_of_the_exception(tmp_path):
    with running_node(TREE, tmp_path) as node:
        began = time.monotonic()
        with pytest.raises(TargetDown, match="no such thing") as caught:
            node.connect().ask("x", Fail(new_ref()), timeout_s=TIMEOUT_S)
        assert time.monotonic() - began < PROMPTLY_S
        assert caught.value.reason.kind is ExitKind.ABNORMAL
        assert "first line" not in caught.value.reason.text


def test_an_ask_that_may_have_been_handled_is_not_sent_again(tmp_path):
    with running_node(TREE, tmp_path) as node:
        for number in range(3):
            with pytest.raises(TargetDown):
                node.connect().ask("x", Fail(new_ref()), timeout_s=TIMEOUT_S)
            assert node.up("x", after_incarnation=number + 1).restarts == number + 1
        assert status_of(node, "x")["handled"] == 0


@pytest.mark.parametrize("how", ["stop", "raise", "stop slowly"])
def test_what_waits_behind_the_last_message_of_a_process_is_sent_to_the_next_one(tmp_path, how):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        connection.tell("x", Do(f"busy then {how}", 0.5))  # and meanwhile the next one arrives
        answer = connection.ask("x", Echo(new_ref(), "late"), timeout_s=TIMEOUT_S)
        assert isinstance(answer, Echoed)
        assert (answer.incarnation, answer.payload) == (2, "late")


def test_a_message_for_another_incarnation_is_refused_and_the_ask_finds_the_right_one(tmp_path):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        connection.ask("x", Echo(new_ref()), timeout_s=30)
        entries = connection._router._entries
        entries["x"] = dataclasses.replace(entries["x"], incarnation=7)
        began = time.monotonic()
        answer = connection.ask("x", Echo(new_ref()), timeout_s=TIMEOUT_S)
        assert isinstance(answer, Echoed)
        assert answer.incarnation == 1
        entries["x"] = dataclasses.replace(entries["x"], incarnation=7)
        stream = connection.stream("x", Echo(new_ref()), idle_timeout_s=TIMEOUT_S)
        assert next(stream).incarnation == 1  # type: ignore[attr-defined]
        assert time.monotonic() - began < PROMPTLY_S
        eventually(lambda: "refused a Echo for x, incarnation 7" in node.log, what="a line")


def test_a_stream_ends_with_its_target_if_so_set_and_continues_otherwise(tmp_path):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        patient = connection.stream("x", Fail(new_ref(), raises=False), idle_timeout_s=1.5)
        ending = connection.stream(
            "x", Echo(new_ref(), 1), idle_timeout_s=TIMEOUT_S, until_down=True
        )
        assert next(ending).payload == 1  # type: ignore[attr-defined]
        os.kill(pid_of(node, "x"), signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(TargetDown, match="SIGKILL"):
            next(ending)
        assert time.monotonic() - began < PROMPTLY_S
        with pytest.raises(NoReply, match="quiet"):
            next(patient)


def test_one_monitor_serves_every_ask_of_a_thread_and_none_is_renewed(tmp_path, monkeypatch):
    sent: Counter[str] = Counter()
    send, post = HostContext.send, HostContext.post

    def counting(self: HostContext, target: object, message: object, timeout_s: float) -> bool:
        sent[type(message).__name__] += 1
        return send(self, target, message, timeout_s)  # type: ignore[arg-type]

    def counting_post(self: HostContext, target: object, message: object, *done: object) -> None:
        sent[type(message).__name__] += 1
        post(self, target, message, *done)  # type: ignore[arg-type]

    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        monkeypatch.setattr(HostContext, "send", counting)
        monkeypatch.setattr(HostContext, "post", counting_post)
        for _ in range(20):
            connection.ask("x", Echo(new_ref()), timeout_s=30)
        assert sent == {"WhereIs": 1, "Monitor": 1, "Addressed": 20}


# ── monitors of hosts ────────────────────────────────────────────────────────


@contextmanager
def promptly() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PROMPTLY_S


def test_a_host_is_notified_of_an_end_once_and_with_its_reason(tmp_path):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        ref, other = connection.monitor("x"), connection.monitor("x")
        assert connection.wait_down(ref, 0.05) is None
        os.kill(pid_of(node, "x"), signal.SIGKILL)
        with promptly():
            down = connection.wait_down(ref, TIMEOUT_S)
        assert down is not None
        assert (down.ref, down.id, down.incarnation) == (ref, "x", 1)
        assert down.reason.text == PERHAPS
        with pytest.raises(UnknownMonitor):
            connection.wait_down(ref, 0.05)
        connection.demonitor(other)
        with pytest.raises(UnknownMonitor):
            connection.wait_down(other, 0.05)


def test_a_host_that_was_busy_elsewhere_is_notified_of_the_end_it_monitors_and_not_a_later_one(
    tmp_path,
):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        ref = connection.monitor("x")
        connection.tell("x", Do("raise"))
        node.up("x", after_incarnation=1)
        connection.tell("x", Do("kill"))
        node.up("x", after_incarnation=2)
        heard: list[Down | None] = []
        waiter = threading.Thread(target=lambda: heard.append(connection.wait_down(ref, TIMEOUT_S)))
        with promptly():
            waiter.start()
            waiter.join()
        assert heard[0] is not None
        assert heard[0].incarnation == 1
        assert heard[0].reason.text == "RuntimeError: raised by the test"


def test_ended_and_unknown_targets_are_down_at_once(tmp_path):
    tree = one_for_one(child("w"), child("x", restart=Restart.TEMPORARY))
    with running_node(tree, tmp_path) as node:
        connection = node.connect()
        connection.tell("x", Do("raise"))
        eventually(lambda: node.connect().where("x") is None, what="x out of the tree")
        with promptly():
            down = connection.wait_down(connection.monitor("x"), TIMEOUT_S)
            nobody = connection.wait_down(connection.monitor("nobody"), TIMEOUT_S)
        assert down is not None
        assert (down.incarnation, down.reason.text) == (1, "RuntimeError: raised by the test")
        assert nobody is not None
        assert (nobody.incarnation, nobody.reason) == (0, NOPROC)
        for other, expected in (("x", down.reason), ("nobody", NOPROC)):
            ref = watch(node, "w", other)
            eventually(lambda: ref in [one[4] for one in downs(node, "w")], what="the Down")  # noqa: B023
            (heard,) = [one for one in downs(node, "w") if one[4] == ref]
            assert heard[3] == expected


@pytest.mark.parametrize("victim", ["root", "admin"])
def test_the_end_of_the_node_is_a_down_too(tmp_path, victim):
    with running_node(TREE, tmp_path) as node:
        connection = node.connect()
        ref, later = connection.monitor("x"), connection.monitor("x")
        assert connection.wait_down(ref, 0.01) is None
        os.kill(pid_of(node, victim), signal.SIGKILL)
        with promptly():
            down = connection.wait_down(ref, TIMEOUT_S)
        assert down is not None
        assert down.reason.kind is ExitKind.KILLED
        node.up("x")
        heard = connection.wait_down(later, TIMEOUT_S)
        assert heard is not None
        assert heard.reason.text == "the node restarted"
        node.note_group()


def test_the_root_drops_the_monitors_of_hosts_that_are_gone(tmp_path):
    with running_node(TREE, tmp_path) as node:
        for polite in (True, False):
            other = Connection.attach(node.config.runtime_dir)
            for target in ("w", "x"):
                other.ask(target, Echo(new_ref()), timeout_s=30)
            before = status_of(node, "root")["monitors"]
            assert before == 2 if polite else 2 <= before <= 3  # type: ignore[operator]
            if polite:
                other.close()
                eventually(lambda: status_of(node, "root")["monitors"] == 0, what="no monitors")
            else:
                for endpoint in other._router._endpoints:
                    endpoint.context.close()
                entry = node.up("x")
                os.kill(entry.pid or 0, signal.SIGKILL)
                node.up("x", after_incarnation=entry.incarnation)
                eventually(lambda: status_of(node, "root")["monitors"] == 0, what="no monitors")


# ── monitors of workers ──────────────────────────────────────────────────────


def test_a_worker_that_monitors_again_is_notified_of_each_of_five_kills_once(tmp_path):
    with running_node(TREE, tmp_path) as node:
        watch(node, "w", "x", again=True)
        for number in range(1, 6):
            entry = node.up("x", after_incarnation=number - 1)
            # The directory of w may be a moment behind that of the root.
            eventually(lambda: status_of(node, "w")["watched"] == {"x": number}, what="a monitor")  # noqa: B023
            os.kill(entry.pid or 0, signal.SIGKILL)
            eventually(lambda: len(downs(node, "w")) >= number, what="a Down")  # noqa: B023
            node.up("x", after_incarnation=number)
        heard = downs(node, "w")
        assert [one[2] for one in heard] == [1, 2, 3, 4, 5]
        assert {one[3].text for one in heard} == {PERHAPS}  # type: ignore[attr-defined]
        assert len({one[4] for one in heard}) == 5


def test_a_worker_is_notified_of_a_lost_supervisor_and_of_a_child_that_leaves(tmp_path):
    dynamic = SupervisorSpec(Strategy.SIMPLE_ONE_FOR_ONE, template=child("template"))
    tree = one_for_one(child("w"), below("sub", one_for_one(child("x"))), below("dyn", dynamic))
    with running_node(tree, tmp_path) as node:
        started = node.connect().ask("dyn", StartChild(new_ref(), "m"), timeout_s=30)
        assert isinstance(started, ChildStarted)
        of_x, silent = watch(node, "w", "x"), watch(node, "w", "x", stop=True)
        os.kill(pid_of(node, "sub"), signal.SIGKILL)
        eventually(lambda: downs(node, "w"), what="the Down of x")
        node.up("x", after_incarnation=1)
        eventually(lambda: node.entry("m").is_up, what="m")
        of_m = watch(node, "w", "m")
        gone = node.connect().ask("dyn", TerminateChild(new_ref(), "m"), timeout_s=30)
        assert isinstance(gone, ChildTerminated)
        eventually(lambda: len(downs(node, "w")) >= 2, what="the Down of m")
        heard = {one[4]: one for one in downs(node, "w")}
        assert set(heard) == {of_x, of_m}
        assert silent not in heard
        assert "sub died" in heard[of_x][3].text  # type: ignore[attr-defined]
        assert heard[of_m][3].kind is ExitKind.SHUTDOWN  # type: ignore[attr-defined]


def test_a_worker_is_notified_of_its_undelivered_messages(tmp_path):
    with running_node(TREE, tmp_path) as node:
        supervisor, victim = pid_of(node, "sub"), pid_of(node, "x")
        os.kill(
            supervisor, signal.SIGSTOP
        )  # w is not notified that x died: its directory still has it
        try:
            os.kill(victim, signal.SIGKILL)
            told = node.connect().ask("w", TellOther(new_ref(), "x"), timeout_s=30)
            # Sent, or refused at once where the transport has already noticed the end.
            was_sent = told == Seen(told.ref, (True,))  # type: ignore[attr-defined]
            assert was_sent or told == Seen(told.ref, (False,))  # type: ignore[attr-defined]
            if was_sent:
                eventually(
                    lambda: ("undelivered", "x", "Echo") in seen(node, "w"), what="the dead letter"
                )
        finally:
            os.kill(supervisor, signal.SIGCONT)
        assert node.log.count("not known to have arrived: a Echo for x") == was_sent
        node.up("x", after_incarnation=1)


def test_a_target_that_waits_to_restart_is_down_once_and_for_all(tmp_path):
    slow = Backoff(first_s=0.3, max_s=0.3)
    with running_node(one_for_one(child("w"), child("x", backoff=slow)), tmp_path) as node:
        watch(node, "w", "x")
        os.kill(pid_of(node, "x"), signal.SIGKILL)
        eventually(lambda: downs(node, "w"), what="the Down")
        node.up("x", after_incarnation=1)
        assert len(downs(node, "w")) == 1
