"""A process is forked while it has a node open: parent and child both go on, each by itself."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import AsyncNode, Completion, Node, TokenEvent, errors
from supervision.errors import UnknownMonitor
from tests.support.forking import Forked, in_child
from tests.support.nodes import ROOT, alive
from tests.support.runtime_nodes import LeakCheck, Streaming, pid_of, started
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.fault,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

TEXT = "a small fox went out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forks")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Node]:
    with LeakCheck() as leaks, started(folder) as node:
        node.load("stub", "stub", backend="stub", n_seq_max=8, n_ctx=65_536)
        leaks.watch(node)
        yield node
        leaks.watch(node)


def ask(node: Node) -> str:
    return node.complete("stub", TEXT, max_tokens=5, timeout_s=15).text


def test_parent_and_child_ask_the_same_node(node: Node) -> None:
    expected = ask(node)
    assert in_child(lambda: ask(node)) == expected
    assert ask(node) == expected
    assert in_child(lambda: node.tokenize("stub", TEXT)) == node.tokenize("stub", TEXT)


def test_children_ask_at_the_same_time_as_the_parent(node: Node) -> None:
    expected = ask(node)
    children = [Forked(lambda: [ask(node) for _ in range(5)]) for _ in range(3)]
    own = [ask(node) for _ in range(5)]
    assert {*own, *(text for child in children for text in child.result())} == {expected}


def test_a_grandchild_asks_too(node: Node) -> None:
    assert in_child(lambda: in_child(lambda: ask(node))) == ask(node)


def test_a_pool_of_forked_workers_gets_whole_replies(node: Node) -> None:
    ask(node)
    context = multiprocessing.get_context("fork")
    with context.Pool(2, _keep, (node,)) as pool:
        texts = pool.map(_ask_kept, range(6))
    assert set(texts) == {ask(node)}


_kept: list[Node] = []


def _keep(node: Node) -> None:
    _kept.append(node)


def _ask_kept(_: int) -> str:
    return ask(_kept[0])


def test_a_child_that_exits_inside_a_stream_ends_nothing_of_its_parent(node: Node) -> None:
    tokens: list[int] = []
    with node.stream("stub", TEXT, max_tokens=300) as events:
        for event in events:
            if isinstance(event, TokenEvent):
                tokens += event.tokens
                if len(tokens) == len(event.tokens):
                    child = Forked(lambda: _leave(events))
        assert child.result() == "left"
    assert len(tokens) == 300


def _leave(events: Any) -> str:
    """All that an interpreter does at its end, and a ``with`` that is left by SystemExit."""
    try:
        with events:
            sys.exit(3)
    except SystemExit:
        del events
        gc.collect()
        return "left"


def test_a_stream_that_is_open_across_a_fork_raises_in_the_child(node: Node) -> None:
    with node.stream("stub", TEXT, max_tokens=2000) as events:
        next(events)

        def use() -> list[str]:
            raised = []
            for call in (lambda: next(events), events.cancel):
                with pytest.raises(errors.ForkedProcess, match=str(os.getppid())):
                    call()
                raised.append("yes")
            return raised

        assert in_child(use) == ["yes", "yes"]
        assert isinstance(next(events), object)


def test_a_fork_while_another_thread_reads_a_stream(node: Node) -> None:
    reader = Streaming(node, "stub", 400, TEXT)
    results = [in_child(lambda: ask(node)) for _ in range(3)]
    assert set(results) == {ask(node)}
    assert len(reader.whole().tokens) == 400


def test_neither_with_nor_close_nor_stop_in_a_child_ends_the_node(node: Node) -> None:
    def leave() -> str:
        with node:
            pass
        node.close()
        node.connection.close()
        with pytest.raises(errors.ForkedProcess, match=r"Node\.attach"):
            node.stop()
        return "left"

    pid = node.launcher_pid
    assert not in_child(lambda: node.is_own)
    assert in_child(leave) == "left"
    assert alive(pid)
    assert node.is_own
    assert ask(node)


def test_locks_that_other_threads_held_at_the_fork_hold_up_no_child(node: Node) -> None:
    router = node.connection._router
    with router._lock:
        held = threading.Event()
        child: list[Forked] = []

        def fork() -> None:
            child.append(Forked(lambda: ask(node)))
            held.set()

        threading.Thread(target=fork).start()
        assert held.wait(10)
    assert child[0].result() == ask(node)


def test_a_monitor_stays_with_the_process_that_set_it(node: Node) -> None:
    ref = node.connection.monitor("model:stub")

    def wait() -> str:
        with pytest.raises(UnknownMonitor):
            node.connection.wait_down(ref, 0.1)
        return "unknown"

    assert in_child(wait) == "unknown"
    assert node.connection.wait_down(ref, 0.0) is None


def test_a_fork_in_a_callback_of_a_question_leaves_that_question_to_the_parent(node: Node) -> None:
    def in_the_child(_: float) -> None:
        if not children:
            children.append(os.fork())
            if children[0] == 0:
                children[0] = os.getppid()

    children: list[int] = []
    parent = os.getpid()
    try:
        node.load("forked", "forked", backend="stub", progress=in_the_child)
    except errors.ForkedProcess:
        os._exit(7)
    except BaseException:  # noqa: BLE001
        os._exit(8)
    if os.getpid() != parent:
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    node.unload("forked")


# ── the asyncio twin ────────────────────────────────────────────────────────────────────────────


def test_an_async_node_is_used_in_parent_and_child(node: Node, folder: Path) -> None:
    async def work() -> tuple[str, str]:
        async with AsyncNode.attach(node.port, runtime_dir=folder / "run") as twin:
            await twin.tokenize("stub", TEXT)  # its threads exist before the fork
            own = await twin.complete("stub", TEXT, max_tokens=5)
            stream = twin.stream("stub", TEXT, max_tokens=3000)
            await anext(stream)
            child = in_child(lambda: asyncio.run(use(twin, stream)))
            await stream.aclose()
            again = await twin.complete("stub", TEXT, max_tokens=5)
            assert again.text == own.text
            return own.text, child

    async def use(twin: AsyncNode, stream: Any) -> str:
        await twin.tokenize("stub", TEXT)
        for call in (lambda: anext(stream), _coroutine(stream.cancel)):
            with pytest.raises(errors.ForkedProcess):
                await call()
        done = await asyncio.wait_for(twin.complete("stub", TEXT, max_tokens=5), 15)
        async with twin:
            return done.text

    own, child = asyncio.run(work())
    assert own == child


def _coroutine(call: Any) -> Any:
    async def run() -> None:
        call()

    return run


# ── who starts and who ends ─────────────────────────────────────────────────────────────────────

HOST = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from runtime import Node
    where = Path(sys.argv[1])
    node = Node.start(runtime_dir=where / "run", cache_ram=0, cache_disk=0)
    worker = os.fork()
    if worker == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        sys.stdin.read()            # lives until the test ends it
        sys.exit(0)
    print(node.launcher_pid, worker, flush=True)
    if sys.argv[2] == "exit":
        sys.exit(0)
    os.kill(os.getpid(), 9)
    """
)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_node_ends_with_its_host_though_a_forked_worker_lives_on(
    tmp_path: Path, how: str
) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(tmp_path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert host.stdin is not None
    assert host.stdout is not None
    launcher, worker = map(int, host.stdout.readline().split())
    host.wait(20)
    try:
        assert alive(worker)
        eventually(lambda: not alive(launcher), within_s=15, what="the node has ended")
    finally:
        host.stdin.close()
        host.stdout.close()
        eventually(lambda: not alive(worker), within_s=10, what="the worker has ended")


# ── an answer that does not come ────────────────────────────────────────────────────────────────


def test_an_answer_that_is_lost_is_an_error_by_the_callers_own_limit(node: Node) -> None:
    ask(node)
    calls = (
        lambda: node.complete("stub", TEXT, max_tokens=5, timeout_s=0.5),
        lambda: node.chat("stub", [{"role": "user", "content": "x"}], timeout_s=0.5),
        lambda: node.draft_tokens("stub", [65, 66], 3, timeout_s=0.5),
        lambda: list(node.stream("stub", TEXT, timeout_s=0.5)),
        lambda: node.verify("stub", [65, 66], [67], timeout_s=0.5),
    )
    for actor, asked in (("inflight", calls[:4]), ("model:stub", calls)):
        stopped = pid_of(node, actor)
        os.kill(stopped, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(len(asked)) as threads:
                took = list(threads.map(_time_out, asked))
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert max(took) < 4
    done = node.complete("stub", TEXT, max_tokens=5)
    assert isinstance(done, Completion)


def _time_out(call: Callable[[], object]) -> float:
    """Seconds until the call fails with its deadline."""
    began = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        call()
    return time.monotonic() - began


def test_a_slow_reader_gets_what_came_before_the_deadline(node: Node) -> None:
    with node.stream("stub", TEXT, max_tokens=5, timeout_s=1.0) as events:
        first = next(events)
        eventually(
            lambda: not (node.status()["actors"]["inflight"]["in_flight"]),
            what="the reply is complete",
        )
        over = time.monotonic() + 2.2
        eventually(lambda: time.monotonic() > over, what="the deadline is over")
        rest = list(events)
    assert first
    assert rest[-1].completion.usage.completion_tokens == 5
