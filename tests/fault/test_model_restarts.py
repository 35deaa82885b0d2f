"""Models that crash: they come back, the poisonous request does not, and no other request fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors import messages as m
from native.stub import FATAL
from runtime import Completion, Node, TokenEvent, errors
from supervision.messages import new_ref
from tests.support.nodes import ROOT
from tests.support.runtime_nodes import (
    Streaming,
    entry_of,
    inflight_status,
    kill,
    pid_of,
    status_of,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

POISON = "Tell me " + FATAL.decode("ascii") + " a story."


def stop_process(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@dataclass
class Neighbour:
    """Asks another model all the while; whatever it got is kept."""

    node: Node
    model: str
    answers: list[str] = field(default_factory=list)
    trouble: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.answers.append(self.node.complete(self.model, "ping", max_tokens=4).text)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.trouble.append(error)


@contextlib.contextmanager
def neighbour_answers(node: Node) -> Iterator[Neighbour]:
    """A second model that answers while the block runs, without an error and without a restart."""
    node.load("neighbour", "neighbour", backend="stub")
    before = pid_of(node, "model:neighbour")
    neighbour = Neighbour(node, "neighbour")
    thread = threading.Thread(target=neighbour.run)
    thread.start()
    try:
        yield neighbour
        seen = len(neighbour.answers)
        eventually(lambda: len(neighbour.answers) > seen, what="the neighbour still answers")
    finally:
        neighbour.stop.set()
        thread.join(30)
    assert not neighbour.trouble
    assert len(set(neighbour.answers)) == 1
    assert pid_of(node, "model:neighbour") == before


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(12) as running:
        yield running


@pytest.fixture
def narrow(node: Node) -> Node:
    """A model that runs one request at a time: others wait in its queue, with nothing delivered."""
    node.load("narrow", "narrow", backend="stub", n_seq_max=1)
    return node


def submit(
    pool: ThreadPoolExecutor, node: Node, prompt: str, n_tokens: int = 8
) -> Future[Completion]:
    return pool.submit(node.complete, "narrow", prompt, max_tokens=n_tokens)


def test_a_model_that_never_was_ready_is_not_restarted(node: Node, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model at all" * 10)
    with pytest.raises(errors.ModelLoadFailed) as caught:
        node.load("bad", bad)
    assert caught.value.kind == "NotAGguf"
    eventually(lambda: node.connection.where("model:bad") is None, what="it is forgotten")
    with pytest.raises(errors.ModelUnknown):
        node.complete("bad", "x")


def test_a_poisonous_request_fails_alone_and_is_refused_from_then_on(narrow: Node) -> None:
    with neighbour_answers(narrow):
        with pytest.raises(errors.RequestPoisoned, match="died 2 times") as caught:
            narrow.complete("narrow", POISON, max_tokens=4)
        assert caught.value.model == "narrow"
        eventually(lambda: entry_of(narrow, "narrow").is_up, what="the model is back")
        restarts = entry_of(narrow, "narrow").restarts
        assert restarts == 2
        assert narrow.complete("narrow", "a good prompt", max_tokens=4).tokens
        for _ in range(3):
            with pytest.raises(errors.RequestPoisoned):
                narrow.complete("narrow", POISON, max_tokens=99)
        assert narrow.complete("narrow", "a good prompt", max_tokens=4).tokens
        assert entry_of(narrow, "narrow").restarts == restarts
        assert inflight_status(narrow)["poisonous_digests"] == 1
        eventually(lambda: inflight_status(narrow)["suspects"] == 0, what="no suspect is left")


def test_requests_beside_a_poisonous_one_complete(narrow: Node, pool: ThreadPoolExecutor) -> None:
    prompts = [f"bystander number {n}" for n in range(6)]
    expected = [narrow.complete("narrow", prompt, max_tokens=8).text for prompt in prompts]
    with neighbour_answers(narrow):
        busy = narrow.stream("narrow", "busy", max_tokens=3900)
        next(event for event in busy if isinstance(event, TokenEvent))
        # What comes now waits in the model's queue.
        poison = submit(pool, narrow, POISON)
        running = [submit(pool, narrow, prompt) for prompt in prompts]
        in_flight = len(prompts) + 2

        def all_sent() -> bool:
            return int(str(inflight_status(narrow)["in_flight"])) >= in_flight

        eventually(all_sent, what="all wait together", every_s=0.001)
        busy.close()
        assert isinstance(poison.exception(30), errors.RequestPoisoned)
        assert [one.result(30).text for one in running] == expected
        assert entry_of(narrow, "narrow").restarts == 2
        eventually(lambda: inflight_status(narrow)["suspects"] == 0, what="no suspect is left")


CALLER = """
import os, signal, sys
from runtime import CompletionEvent, Node, TokenEvent
with Node.attach(int(sys.argv[1]), runtime_dir=sys.argv[2]) as node:
    stream = node.stream("narrow", "a slow caller", max_tokens=3000)
    next(event for event in stream if isinstance(event, TokenEvent))
    os.kill(os.getpid(), signal.SIGSTOP)
    print(next(e for e in stream if isinstance(e, CompletionEvent)).completion.text)
"""


@contextlib.contextmanager
def stopped_caller(node: Node, runtime_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that begins to read a reply and stops; it continues at the end of the block."""
    command = [sys.executable, "-c", CALLER, str(node.port), str(runtime_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as caller:
        try:
            eventually(
                lambda: os.waitpid(caller.pid, os.WUNTRACED | os.WNOHANG)[0] == caller.pid,
                within_s=60,
                what="the caller has stopped",
            )
            yield caller
        finally:
            caller.send_signal(signal.SIGCONT)
            caller.communicate(timeout=60)


def test_a_request_stays_in_flight_until_its_caller_has_the_end(
    narrow: Node, tmp_path: Path
) -> None:
    """A model that dies right after its last token must not take the end of the reply along."""
    expected = narrow.complete("narrow", "a slow caller", max_tokens=3000).text
    for n_done in range(2, 7):  # on a busy machine a caller may read all of it before it stops
        with stopped_caller(narrow, tmp_path / "run") as caller:
            eventually(
                lambda: status_of(narrow, "model:narrow")["requests_done"] == n_done,  # noqa: B023
                within_s=60,
                what="the model has finished",
            )
            if inflight_status(narrow)["in_flight"] == 1:
                kill(pid_of(narrow, "model:narrow"))
                eventually(
                    lambda: entry_of(narrow, "narrow").restarts == 1, within_s=60, what="a restart"
                )
                caller.send_signal(signal.SIGCONT)
                assert caller.communicate(timeout=60)[0] == expected + "\n"
                break
    else:
        pytest.fail("inflight had forgotten the request each time before its caller had the end")
    eventually(lambda: inflight_status(narrow)["in_flight"] == 0, what="nothing is in flight")


def test_one_crash_from_outside_makes_no_request_poisonous(
    narrow: Node, pool: ThreadPoolExecutor
) -> None:
    expected = narrow.complete("narrow", "innocent", max_tokens=8).text
    busy = Streaming(narrow, "narrow", 3900)
    waiting = submit(pool, narrow, "innocent")
    eventually(lambda: inflight_status(narrow)["in_flight"] == 2, what="both are there")
    kill(pid_of(narrow, "model:narrow"))
    assert busy.whole().tokens
    assert waiting.result(30).text == expected
    assert inflight_status(narrow)["poisonous_digests"] == 0
    eventually(lambda: inflight_status(narrow)["suspects"] == 0, what="no suspect is left")


def test_a_crash_of_the_models_supervisor_makes_no_request_a_suspect(
    narrow: Node, pool: ThreadPoolExecutor
) -> None:
    busy = Streaming(narrow, "narrow", 3900)
    waiting = submit(pool, narrow, "innocent")
    eventually(lambda: inflight_status(narrow)["in_flight"] == 2, what="both are there")
    inflight = pid_of(narrow, "inflight")
    kill(pid_of(narrow, "models"))
    assert busy.whole().tokens
    assert waiting.result(30).tokens
    status = inflight_status(narrow)
    assert (status["suspects"], status["poisonous_digests"]) == (0, 0)
    assert pid_of(narrow, "inflight") == inflight  # by its record, not by chance


def test_a_completion_whose_model_is_killed_in_the_middle_is_run_again(
    narrow: Node, pool: ThreadPoolExecutor
) -> None:
    expected = narrow.complete("narrow", "long", max_tokens=1500).text

    def generated() -> int:
        return int(status_of(narrow, "model:narrow")["tokens_generated"])

    before = generated()
    running = submit(pool, narrow, "long", 1500)
    eventually(lambda: generated() > before, what="tokens come")
    kill(pid_of(narrow, "model:narrow"))
    assert not running.done()
    assert running.result(30).text == expected


def test_a_request_that_inflight_did_not_take_before_it_was_killed_is_sent_again(
    narrow: Node, pool: ThreadPoolExecutor
) -> None:
    stopped = pid_of(narrow, "inflight")
    stop_process(stopped)
    lost = submit(pool, narrow, "lost and found")
    eventually(lambda: narrow.status()["actors"]["inflight"] is None, what="inflight is deaf")
    kill(stopped)
    assert lost.result(30).tokens


def test_a_model_that_crashes_too_often_is_stopped_and_reports_it(narrow: Node) -> None:
    with neighbour_answers(narrow):
        seen: set[type[BaseException]] = set()
        for n in range(4):  # each of them costs the model two crashes
            with pytest.raises((errors.RequestPoisoned, errors.ModelStopped)) as caught:
                narrow.complete("narrow", f"{n} {POISON}", max_tokens=4)
            seen.add(caught.type)
        assert seen == {errors.RequestPoisoned, errors.ModelStopped}
        with pytest.raises(errors.ModelStopped, match="load it again"):
            narrow.complete("narrow", "a good prompt", max_tokens=4)
        eventually(
            lambda: "narrow" not in status_of(narrow, "registry")["wanted_models"],
            what="it is not wanted any more",
        )
        narrow.load("narrow", "narrow", backend="stub", n_seq_max=1)
        assert narrow.complete("narrow", "a good prompt", max_tokens=4).tokens


def test_a_request_that_waits_for_its_model_can_be_cancelled_and_has_its_deadline(
    narrow: Node,
) -> None:
    victims: set[int] = set()
    for _ in range(4):  # each time its supervisor waits longer
        eventually(lambda: pid_of(narrow, "model:narrow") not in victims, what="it is back")
        victim = pid_of(narrow, "model:narrow")
        victims.add(victim)
        kill(victim)
    eventually(lambda: not entry_of(narrow, "narrow").is_up, what="it is down", every_s=0.001)
    waiting = m.Complete(new_ref(), "narrow", m.TextPrompt("waiting"), max_tokens=4)
    replies = narrow.connection.stream("inflight", waiting, idle_timeout_s=30)
    accepted = next(replies)
    assert isinstance(accepted, m.Accepted)
    with pytest.raises(errors.DeadlineExceeded, match="started again"):
        narrow.complete("narrow", "held", max_tokens=4, timeout_s=0.05)
    assert not entry_of(narrow, "narrow").is_up
    narrow.connection.tell("inflight", m.Cancel(accepted.request_id))
    ended = next(replies)
    assert isinstance(ended, m.Completed)
    assert ended.finish_reason is m.FinishReason.CANCELLED
    assert narrow.complete("narrow", "one that waits to its end", max_tokens=4).tokens


def test_a_load_is_answered_although_the_models_supervisor_is_killed_meanwhile(
    node: Node, pool: ThreadPoolExecutor
) -> None:
    models = pid_of(node, "models")
    stop_process(models)
    loading = pool.submit(node.load, "late", "late", backend="stub")
    eventually(
        lambda: "late" in status_of(node, "registry")["wanted_models"],
        what="the registry has passed it on",
    )
    kill(models)
    assert loading.result(20).state == "up"
    assert node.complete("late", "x", max_tokens=2).tokens


def test_a_request_of_an_inflight_that_was_killed_can_still_be_cancelled(narrow: Node) -> None:
    generated = status_of(narrow, "model:narrow")["tokens_generated"]
    stream = narrow.stream("narrow", "to be left", max_tokens=3900)
    next(event for event in stream if isinstance(event, TokenEvent))
    before = pid_of(narrow, "inflight")
    kill(before)
    eventually(lambda: pid_of(narrow, "inflight") != before, what="another inflight")
    stream.close()
    eventually(
        lambda: status_of(narrow, "model:narrow")["running"] == 0,
        what="the model works for nobody",
    )
    assert status_of(narrow, "model:narrow")["tokens_generated"] < generated + 3900
