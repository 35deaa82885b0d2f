"""kill -9 in the middle of replies: each resumes at its next token, and its text is the same."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from cache import tokens as token_bytes
from runtime import (
    Completion,
    CompletionEvent,
    Node,
    PrefillEvent,
    ResumedEvent,
    TokenEvent,
    errors,
)
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from supervision.messages import new_ref
from supervision.node_file import RuntimeDir
from tests.support.nodes import ROOT
from tests.support.runtime_nodes import Streaming, kill, one_thread, pid_of, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

SEEDED = {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.2}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {**SEEDED, "seed": 1},
    {"stop": ("never\x00there",)},
    {**SEEDED, "seed": 2},
)
N_TOKENS = 1500


@pytest.fixture
def node4(node: Node) -> Node:
    """A stub model for four requests at once."""
    node.load("stub", "stub", backend="stub", n_seq_max=4, n_ctx=16_384)
    return node


def inflight(node: Node) -> dict[str, Any]:
    status = status_of(node, "inflight")
    assert isinstance(status, dict)
    return status


UNDISTURBED: list[Completion] = []


def alone(node: Node) -> list[Completion]:
    """What undisturbed requests generate: the same on every node, so the first one is asked."""
    if not UNDISTURBED:
        UNDISTURBED.extend(
            node.complete("stub", f"Tale {n}", max_tokens=N_TOKENS, **way)
            for n, way in enumerate(WAYS)
        )
    return UNDISTURBED


def streams(node: Node) -> list[Streaming]:
    """The same requests, all of which have begun."""
    return [Streaming(node, "stub", N_TOKENS, f"Tale {n}", **way) for n, way in enumerate(WAYS)]


def assert_same(running: list[Streaming], expected: list[Completion]) -> None:
    whole = [one.whole() for one in running]
    assert [one.tokens for one in whole] == [one.tokens for one in expected]
    assert [one.text for one in whole] == [one.text for one in expected]
    for one, other in zip(whole, expected, strict=True):
        assert one.finish_reason == other.finish_reason
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.usage.completion_tokens == other.usage.completion_tokens


def test_four_streams_resume_when_their_model_is_killed(node4: Node) -> None:
    expected, victim = alone(node4), pid_of(node4, "model:stub")
    running = streams(node4)
    kill(victim)
    assert_same(running, expected)
    resumed = [event for one in running for event in one.resumed]
    assert len(resumed) >= 3  # the first one may have ended before
    for event in resumed:
        assert 0 < event.n_tokens < N_TOKENS
        assert event.pause_ms > 0
    eventually(lambda: inflight(node4)["in_flight"] == 0, what="no request is left")
    status = inflight(node4)
    assert status["resumed"] >= 3
    assert status["held"] == status["waiting_for_model"] == 0
    assert status["suspects"] == 0


def test_a_model_that_is_killed_twice_resumes_twice(node4: Node) -> None:
    expected = alone(node4)
    running = streams(node4)
    first = pid_of(node4, "model:stub")
    kill(first)
    eventually(lambda: all(one.resumed for one in running), what="all go on")
    kill(pid_of(node4, "model:stub"))
    assert_same(running, expected)
    assert max(len(one.resumed) for one in running) == 2


def test_four_suspects_of_a_crash_resume_one_after_another_within_seconds(node4: Node) -> None:
    """Any of them may have caused a fault inside, so each runs alone until it is beyond it."""
    expected = alone(node4)
    running = streams(node4)
    os.kill(pid_of(node4, "model:stub"), signal.SIGABRT)
    assert_same(running, expected)
    pauses = [resumed.pause_ms for one in running for resumed in one.resumed]
    assert len(pauses) >= 2
    assert max(pauses) < 5000
    assert inflight(node4)["poisonous_digests"] == 0


def test_streams_resume_when_inflight_is_killed_and_then_the_model(node4: Node) -> None:
    expected = alone(node4)
    running = streams(node4)
    kill(pid_of(node4, "inflight"))
    kill(pid_of(node4, "model:stub"))
    assert_same(running, expected)


def test_streams_continue_when_inflight_is_killed_alone(node4: Node) -> None:
    expected = alone(node4)
    running = streams(node4)
    before = pid_of(node4, "model:stub")
    kill(pid_of(node4, "inflight"))
    assert_same(running, expected)
    assert pid_of(node4, "model:stub") == before
    # The attempts before were cancelled: no caller waits for them.
    idle = {"running": 0, "waiting": 0}
    eventually(
        lambda: idle.items() <= status_of(node4, "model:stub").items(),
        what="nothing runs",
    )


def test_streams_resume_when_the_models_supervisor_is_killed(node4: Node) -> None:
    expected = alone(node4)
    running = streams(node4)
    kill(pid_of(node4, "models"))
    assert_same(running, expected)
    assert inflight(node4)["suspects"] == 0


@pytest.mark.parametrize("which", ["admin_pid", "root_pid"])
def test_streams_resume_when_the_whole_node_restarts(
    node4: Node, tmp_path: Path, which: str
) -> None:
    expected = alone(node4)
    running = streams(node4)
    record = RuntimeDir(tmp_path / "run" / f"node-{node4.port}").read()
    assert record is not None
    kill(getattr(record, which))
    assert_same(running, expected)


def test_a_request_that_is_killed_while_it_reads_reads_again(node4: Node) -> None:
    prompt = [66 + n % 20 for n in range(12_000)]
    expected = node4.complete("stub", prompt, max_tokens=20)
    node4.unload("stub")
    node4.load("stub", "stub", backend="stub", n_seq_max=4, n_ctx=16_384)
    node4.complete("stub", "another one, so that nothing of it is live", max_tokens=1)
    killed, text = 0, ""
    prompt[0] += 1  # nothing of it is stored
    for event in node4.stream("stub", prompt, max_tokens=20):
        if isinstance(event, PrefillEvent) and not killed and 0 < event.done < event.total:
            killed = pid_of(node4, "model:stub")
            kill(killed)
        elif isinstance(event, TokenEvent):
            text += event.text
    assert killed
    assert len(text) == len(expected.text) == 20
    assert text == node4.complete("stub", prompt, max_tokens=20).text


def test_a_request_that_is_killed_while_it_waits_runs_once(node: Node) -> None:
    node.load("narrow", "narrow", backend="stub", n_seq_max=1)
    expected = [node.complete("narrow", one, max_tokens=1000).text for one in ("first", "second")]
    model = pid_of(node, "model:narrow")
    first = Streaming(node, "narrow", 1000, "first")
    os.kill(model, signal.SIGSTOP)  # else the first may end before the second is there
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(
            lambda: list(node.stream("narrow", "second", max_tokens=1000, resumed_events=True))
        )
        eventually(lambda: inflight(node)["in_flight"] == 2, within_s=60, what="both are there")
        kill(model)
        events = second.result(60)
    assert [type(one) for one in events].count(CompletionEvent) == 1
    assert not any(isinstance(one, ResumedEvent) for one in events)  # it had not begun
    assert "".join(one.text for one in events if isinstance(one, TokenEvent)) == expected[1]
    assert first.whole().text == expected[0]


def test_a_prompt_that_is_only_read_is_read_again(node4: Node) -> None:
    prompt = token_bytes.pack([66 + n % 20 for n in range(12_000)])
    asked = m.Complete(new_ref(), "stub", m.TokenPrompt(prompt), max_tokens=0)
    killed = False
    for reply in node4.connection.stream("inflight", asked, idle_timeout_s=30):
        match reply:
            case m.PrefillProgress(_, done, total, _) if not killed and 0 < done < total:
                killed = True
                kill(pid_of(node4, "model:stub"))
            case m.Completed():
                assert reply.finish_reason is m.FinishReason.PREFILLED
                assert reply.usage.prompt_tokens == 12_000
                break
            case m.CompletionFailed():
                raise AssertionError(reply)
    assert killed


def test_a_stream_whose_model_is_unloaded_gets_that_error(node4: Node) -> None:
    running = Streaming(node4, "stub", 8000)
    kill(pid_of(node4, "model:stub"))
    node4.unload("stub")
    assert running.end() in ([errors.ModelUnloaded], [])  # it may have been resumed before


TALES = (
    ("Once upon a time there was a little dog", {}),
    ("The sun was warm and the garden was", {**SEEDED, "seed": 1}),
    ("Mia and Ben went to the market to buy", {**SEEDED, "seed": 2}),
    ("One day a small bird found a", {}),
)


def tell(node: Node) -> list[Streaming]:
    """Four streams in a fresh context."""
    with contextlib.suppress(errors.ModelUnknown):
        node.unload(EMBEDDED_MODEL_ID)
    node.client.load(EMBEDDED_MODEL_ID, one_thread(embedded_model_path(), n_ctx=4096))
    return [
        Streaming(node, EMBEDDED_MODEL_ID, 300, tale, exact="always", **way) for tale, way in TALES
    ]


def test_four_streams_of_a_real_model_have_the_text_of_an_unbroken_run(node: Node) -> None:
    unbroken = [one.whole() for one in tell(node)]
    running = tell(node)
    kill(pid_of(node, f"model:{EMBEDDED_MODEL_ID}"))
    whole = [one.whole() for one in running]
    assert [one.tokens for one in whole] == [one.tokens for one in unbroken]
    assert [one.text for one in whole] == [one.text for one in unbroken]
    assert any(one.resumed for one in running)
    for one, stream in zip(whole, running, strict=True):
        if stream.resumed and stream.resumed[0].n_tokens > 80:
            assert one.cache.source == "ram"  # the reply so far was restored, not computed


CALLER = textwrap.dedent(
    """
    import sys
    from runtime import Node, TokenEvent
    with Node.attach(int(sys.argv[1]), runtime_dir=sys.argv[2]) as node:
        for event in node.stream("narrow", "of a caller that dies", max_tokens=3900):
            if isinstance(event, TokenEvent):
                print("begun", flush=True)
    """
)


def caller(node: Node, tmp_path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CALLER, str(node.port), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )


def test_a_request_whose_caller_exits_is_cancelled(node: Node, tmp_path: Path) -> None:
    """A generation without a caller must not run to its end."""
    node.load("narrow", "narrow", backend="stub", n_seq_max=1)
    with caller(node, tmp_path) as host:
        assert host.stdout is not None
        host.stdout.readline()
        host.kill()
        generated = status_of(node, "model:narrow")["tokens_generated"]
        eventually(lambda: inflight(node)["in_flight"] == 0, within_s=30, what="it is cancelled")
    assert inflight(node)["orphans_cancelled"] == 1
    assert generated < 3900


def test_a_request_that_waits_is_cancelled_when_its_caller_exits(
    node: Node, tmp_path: Path
) -> None:
    node.load("narrow", "narrow", backend="stub", n_seq_max=1, n_ctx=131_072)
    busy = node.stream("narrow", "busy", max_tokens=100_000)
    next(event for event in busy if isinstance(event, TokenEvent))
    with caller(node, tmp_path) as host:
        eventually(lambda: inflight(node)["in_flight"] == 2, what="it waits")
        host.kill()
        eventually(lambda: inflight(node)["in_flight"] == 1, what="it is cancelled")
    assert inflight(node)["orphans_cancelled"] == 1
    busy.close()
