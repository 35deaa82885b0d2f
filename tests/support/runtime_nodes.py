"""Start whole nodes for tests, kill parts of them, and check that nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors import messages as m
from cache.policy import LivePolicy
from native.params import ModelParams
from runtime import (
    Completion,
    CompletionEvent,
    ModelConfig,
    Node,
    ResumedEvent,
    RuntimeConfig,
    TokenEvent,
    TreeNode,
    errors,
)
from runtime.client.cache.upkeep import is_flushed
from supervision import Entry
from supervision.messages import new_ref
from supervision.process import start_ticks
from tests.support.nodes import ROOT, alive, free_port, port_is_free
from tests.support.policies import RESTORES_ALWAYS
from tests.support.waiting import eventually

PROMPT = (
    "The old lighthouse keeper counted the waves and wrote each number in a small blue book. " * 6
)


@contextlib.contextmanager
def started(tmp_path: Path, **options: Any) -> Iterator[Node]:
    """A node with all files below ``tmp_path``, which restores every row it has."""
    config = options.pop("config", None) or RuntimeConfig()
    restore = replace(config.save.restore, min_saved_s=RESTORES_ALWAYS.min_saved_s)
    options["config"] = replace(config, save=replace(config.save, restore=restore))
    options["port"] = options.pop("port", None) or free_port()
    settings: dict[str, Any] = {
        "cache_dir": tmp_path / "cache",
        "cache_ram": "64MiB",
        "cache_disk": "256MiB",
        "runtime_dir": tmp_path / "run",
        "log_file": tmp_path / "node.log",
    }
    with Node.start(**(settings | options)) as node:
        yield node


def one_thread(path: Path, **options: Any) -> ModelConfig:
    """A model config for tests: one thread, to avoid spinning at barriers."""
    return ModelConfig(str(path), ModelParams(n_threads=1, **options))


def pids(tree: TreeNode) -> set[int]:
    found = {tree.pid} if tree.pid else set()
    for child in tree.children:
        found |= pids(child)
    return found


def pid_of(node: Node, actor: str) -> int:
    """The actor's process, once it is up."""

    def probe() -> int | None:
        found = node.tree().find(actor)
        return found.pid if found is not None and found.state == "up" else None

    found = eventually(probe, within_s=30, what=f"{actor} is up")
    assert found is not None
    return found


def status_of(node: Node, actor: str) -> dict[str, Any]:
    """What an actor reports; waits while it starts, restarts, or is too busy to answer at once."""
    found = eventually(
        lambda: node.client.report_of(actor), within_s=30, what=f"{actor} reports its status"
    )
    assert found is not None
    return found


def entry_of(node: Node, model: str) -> Entry:
    """The directory entry of a model's actor."""
    found = node.connection.where(f"model:{model}")
    assert found is not None
    return found


def inflight_status(node: Node) -> dict[str, object]:
    """The counts of the actor that holds the requests in flight."""
    return status_of(node, "inflight")


def emptied(node: Node) -> None:
    """Unload every model and remove every row, also those that are saved late."""
    for model in node.models():
        with contextlib.suppress(errors.ModelUnknown):
            node.unload(model.id)

    def is_empty() -> bool:
        cursor = 0
        while True:
            answer = node.client.ask(
                "cache_meta", m.RemoveRows(new_ref(), m.Removal.ALL, cursor=cursor)
            )
            assert isinstance(answer, m.RowsRemoved)
            cursor = answer.cursor
            if not cursor:
                break
        meta = status_of(node, "cache_meta")
        return is_flushed(node.client) and meta["rows"] == meta["reservations"] == 0

    eventually(is_empty, what="the node has no rows")
    eventually(lambda: not node.models(), what="the node has no models")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def mapped_shared_memory(pid: int) -> set[Path]:
    """Named shared memory that a process has mapped."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        paths = (line.split(maxsplit=5)[-1].strip() for line in maps)
        return {Path(path) for path in paths if path.startswith("/dev/shm/")}
    return set()


def crowd_out(node: Node, model: str) -> None:
    """Replace all idle sequences by other prompts: the next hit comes from storage."""
    for index in range(LivePolicy().max_idle):
        node.complete(model, [20 + index] * 70, max_tokens=1)


class Streaming:
    """A long stream that a thread reads from its first token on; what it received is kept."""

    def __init__(
        self, node: Node, model: str, max_tokens: int, prompt: str = PROMPT, **options: Any
    ) -> None:
        self.caught: list[BaseException] = []
        self.tokens: list[int] = []
        self.text = ""
        self.resumed: list[ResumedEvent] = []
        self.ends: list[Completion] = []
        self._running = threading.Event()
        arguments = (node, model, prompt, options | {"max_tokens": max_tokens})
        self._thread = threading.Thread(target=self._read, args=arguments)
        self._thread.start()
        assert self._running.wait(60), "the stream did not begin"

    def _read(self, node: Node, model: str, prompt: str, options: dict[str, Any]) -> None:
        try:
            for event in node.stream(model, prompt, resumed_events=True, **options):
                match event:
                    case TokenEvent(index, tokens, text):
                        assert index == len(self.tokens)
                        self.tokens += tokens
                        self.text += text
                        self._running.set()
                    case ResumedEvent():
                        self.resumed.append(event)
                    case CompletionEvent(completion):
                        self.ends.append(completion)
        except (errors.LlamaActorsError, AssertionError) as error:
            self.caught.append(error)

    def end(self, within_s: float = 30.0) -> list[type[BaseException]]:
        """What the caller received, if it was no result."""
        self._thread.join(within_s)
        assert not self._thread.is_alive(), "the caller still waits"
        return [type(error) for error in self.caught]

    def whole(self, within_s: float = 30.0) -> Completion:
        """The one result of a stream, after checking that it equals the streamed parts."""
        assert self.end(within_s) == [], self.caught
        (completion,) = self.ends
        assert completion.text == self.text
        assert list(completion.tokens) == self.tokens
        return completion


class LeakCheck:
    """Processes, ports and shared memory that the nodes of a test used must be gone at its end."""

    def __init__(self) -> None:
        self._pids: dict[int, int | None] = {}
        """With the time of their start: the kernel gives numbers of the dead to others."""
        self._ports: set[int] = set()
        self._shared: set[Path] = set()

    def watch(self, node: Node) -> None:
        with contextlib.suppress(Exception):
            self._ports.add(node.port)
            for pid in {node.launcher_pid, *pids(node.tree())} - self._pids.keys():
                self._pids[pid] = start_ticks(pid)
            for pid in self._pids:
                self._shared |= mapped_shared_memory(pid)

    def _left(self) -> list[int]:
        return [pid for pid, at in self._pids.items() if alive(pid) and start_ticks(pid) == at]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        eventually(lambda: not self._left(), within_s=30, what="no process is left")
        eventually(lambda: all(map(port_is_free, self._ports)), within_s=30, what="ports are free")
        assert not [path for path in self._shared if path.exists()]


def cli(
    *arguments: str, port: int | None = None, runtime_dir: Path | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m runtime`` as a user would."""
    environment = dict(os.environ)
    environment.pop("LLAMA_ACTORS_PORT", None)
    if port is not None:
        environment["LLAMA_ACTORS_PORT"] = str(port)
    if runtime_dir is not None:
        environment["LLAMA_ACTORS_RUNTIME_DIR"] = str(runtime_dir)
    environment |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        capture_output=True,
        text=True,
        timeout=options.pop("timeout", 200),
        cwd=ROOT,
        env=environment,
        check=False,
        **options,
    )
