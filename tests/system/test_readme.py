"""What the README shows of asking is run as it stands, on one node."""

from __future__ import annotations

import ast
import asyncio
import io
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import AsyncNode, Completion, Node
from runtime.cli.main import main
from tests.support.nodes import ROOT
from tests.support.runtime_nodes import LeakCheck, started

pytestmark = pytest.mark.system


def section() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("\n## What you can ask\n")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Node]:
    with LeakCheck() as leaks, started(folder) as node:
        node.load("demo", n_threads=1)
        leaks.watch(node)
        yield node
        leaks.watch(node)


def test_its_commands_run(
    host: Node,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAMA_ACTORS_PORT", str(host.port))
    monkeypatch.setenv("LLAMA_ACTORS_RUNTIME_DIR", str(folder / "run"))
    (shown,) = blocks("sh")
    ran = set()
    for line in shown.splitlines():
        said, pipe, command = line.rpartition(" | ")
        monkeypatch.setattr(sys, "stdin", io.StringIO(shlex.split(said)[1] if pipe else ""))
        words = shlex.split(command, comments=True)
        assert words[:3] == ["python", "-m", "runtime"]
        assert main(words[3:]) == 0, (line, capsys.readouterr().err)
        out = capsys.readouterr().out
        assert out or words[3] == "adapters", line
        ran.add(words[3])
    assert ran == {"chat", "complete", "tokenize", "embed", "bench", "evict", "adapters"}


def test_its_python_runs(host: Node, folder: Path) -> None:
    threads, on_a_loop = blocks("python")
    names: dict[str, object] = {"node": host}
    exec(compile(threads, "README.md", "exec"), names)
    assert isinstance(names["done"], Completion)
    body = textwrap.indent(on_a_loop, "    ").replace(
        "attach(port)", "attach(port, runtime_dir=folder)"
    )
    names |= {
        "AsyncNode": AsyncNode,
        "asyncio": asyncio,
        "port": host.port,
        "folder": folder / "run",
    }
    exec(compile(f"async def shown():\n{body}    return stories\n", "README.md", "exec"), names)
    stories = asyncio.run(names["shown"]())  # type: ignore[operator]
    assert len(stories) == 2


def test_it_names_every_method_of_a_node_and_no_other() -> None:
    rows = [line.partition(" | ")[0] for line in section().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    shown = {
        one.attr
        for block in blocks("python")
        for one in ast.walk(ast.parse(block))
        if isinstance(one, ast.Attribute)
        and isinstance(one.value, ast.Name)
        and one.value.id == "node"
    }
    methods = {
        name
        for name in dir(Node)
        if not name.startswith("_") and not isinstance(getattr(Node, name), property)
    }
    assert named | shown | {"start", "attach", "stream_chat"} == methods


def test_its_limits_are_those_of_the_code() -> None:
    from runtime.client.time_limits import HEAL_TIMEOUT_S

    assert f"{HEAL_TIMEOUT_S:.0f} seconds at most" in section()
