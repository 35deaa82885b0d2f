"""kill -9 of anything: the tree heals, what was published survives, and a completion works."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runtime import Completion, Node, TokenEvent
from supervision.node_file import RuntimeDir
from tests.support.nodes import ROOT, alive, port_is_free
from tests.support.runtime_nodes import (
    PROMPT,
    crowd_out,
    kill,
    one_thread,
    pid_of,
    pids,
    started,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

ACTORS = (
    "model:tiny",
    "cache_meta",
    "ram_tier",
    "tier:disk",
    "writer",
    "registry",
    "inflight",
    "residency",
    "scheduler",
    "models",
    "cache",
)


def warm(node: Node, cold: Completion) -> Completion:
    """Complete until the cache answers again; the very first one may find it healing."""

    def probe() -> Completion | None:
        crowd_out(node, "tiny")
        done = node.complete("tiny", PROMPT, max_tokens=8)
        assert done.text == cold.text
        is_found = done.cache.hit.value == "exact" and done.cache.source != "live"
        return done if is_found else None

    found = eventually(probe, within_s=30, what="the rows are found again")
    assert found is not None
    return found


@pytest.mark.parametrize("actor", ACTORS)
def test_after_a_kill_of_any_actor_the_node_recovers_and_keeps_its_rows(
    tiny_node: Node, actor: str
) -> None:
    cold = tiny_node.complete("tiny", PROMPT, max_tokens=8)
    victim = pid_of(tiny_node, actor)
    kill(victim)
    after = tiny_node.complete("tiny", PROMPT, max_tokens=8)  # works at once, warm or cold
    assert after.text == cold.text
    eventually(lambda: pid_of(tiny_node, actor) != victim, what="another process is up")
    assert warm(tiny_node, cold).cache.source == "ram"
    assert not alive(victim)


@pytest.mark.parametrize("which", ["admin_pid", "root_pid"])
def test_killing_admin_or_root_restarts_the_node_with_its_models(
    tiny_node: Node, tmp_path: Path, which: str
) -> None:
    cold = tiny_node.complete("tiny", PROMPT, max_tokens=8)
    before = pids(tiny_node.tree())
    launcher = tiny_node.launcher_pid
    record = RuntimeDir(tmp_path / "run" / f"node-{tiny_node.port}").read()
    assert record is not None
    kill(getattr(record, which))
    after = tiny_node.complete("tiny", PROMPT, max_tokens=8)
    assert after.text == cold.text
    assert warm(tiny_node, cold).cache.source == "ram"  # the launcher held the arena
    assert tiny_node.launcher_pid == launcher
    assert tiny_node.tree().restarts == 1
    eventually(lambda: not any(map(alive, before - {launcher})), what="the old tree is gone")


def test_killing_the_launcher_takes_everything_with_it(tiny_gguf: Path, tmp_path: Path) -> None:
    with started(tmp_path) as node:
        node.client.load("tiny", one_thread(tiny_gguf))
        everything = pids(node.tree())
        kill(node.launcher_pid)
        eventually(lambda: not any(map(alive, everything)), within_s=30, what="all gone")
        eventually(lambda: port_is_free(node.port), within_s=30, what="the port is free")


def test_a_node_ends_with_the_host_that_started_it(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        from runtime import Node
        node = Node.start(cache_disk=0, cache_ram="32MiB", runtime_dir={str(tmp_path)!r})
        node.load("stub", "stub", backend="stub")
        print(node.port, flush=True)
        sys.stdin.read()
        """
    )
    host = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert host.stdin is not None
    assert host.stdout is not None
    with host.stdin, host.stdout:
        port = int(host.stdout.readline())
        with Node.attach(port, runtime_dir=tmp_path) as node:
            everything = pids(node.tree())
        kill(host.pid)
        host.wait(60)
        eventually(lambda: not any(map(alive, everything)), within_s=30, what="the node is gone")
        assert port_is_free(port)


@pytest.mark.parametrize("actor", ["cache_meta", "writer", "ram_tier"])
def test_running_requests_are_unaffected_by_a_kill_in_the_cache(
    tiny_node: Node, tiny_gguf: Path, actor: str
) -> None:
    expected = tiny_node.complete("tiny", PROMPT, max_tokens=400).text
    # In a fresh context the cells lie as they did: beside others, 400 random choices may drift.
    tiny_node.unload("tiny")
    tiny_node.client.load("tiny", one_thread(tiny_gguf))
    seen = 0
    text = []
    for event in tiny_node.stream("tiny", PROMPT, max_tokens=400):
        if isinstance(event, TokenEvent):
            text.append(event.text)
            seen += 1
            if seen == 3:
                kill(pid_of(tiny_node, actor))
    assert "".join(text) == expected
