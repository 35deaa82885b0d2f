"""What README and documentation show is run as it stands, on one node with the embedded model."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Node
from runtime.cli.main import main
from tests.support.documents import DOCS, DOCUMENTS, Command, blocks, commands, name_of
from tests.support.nodes import ROOT
from tests.support.runtime_nodes import LeakCheck, started

pytestmark = pytest.mark.system

SILENT = {"adapters", "evict", "flush"}
"""Commands that may print nothing."""
WITH_COMMANDS = [one for one in DOCUMENTS if any(line.is_run for line in commands(one))]
WITH_PYTHON = [one for one in DOCUMENTS if blocks(one, "python")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Node]:
    with LeakCheck() as leaks, started(folder) as node:
        node.load("demo", n_threads=1)
        leaks.watch(node)
        yield node
        leaks.watch(node)


@pytest.fixture
def attached(host: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The node, found by commands and by ``attach`` as by a user."""
    monkeypatch.setenv("LLAMA_ACTORS_PORT", str(host.port))
    monkeypatch.setenv("LLAMA_ACTORS_RUNTIME_DIR", str(folder / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    return host


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=name_of)
def test_its_commands_run(
    document: Path,
    attached: Node,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert attached.models()
    for command in commands(document):
        if command.is_run:
            _run(command, capsys, monkeypatch)


def _run(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(command.given or ""))
    code = main(list(command.words[1:]))
    printed = capsys.readouterr()
    assert code == 0, (command.where, command.line, printed.out, printed.err)
    assert printed.out or SILENT & set(command.words[1:3]), (command.where, command.line)


@pytest.mark.parametrize("document", WITH_PYTHON, ids=name_of)
def test_its_python_runs(document: Path, attached: Node, tmp_path: Path) -> None:
    names: dict[str, object] = {"node": attached}
    for block in blocks(document, "python"):
        if block.file_name is not None:
            (tmp_path / block.file_name).write_text(block.text, encoding="utf-8")
            _run_alone(f"import {block.file_name.removesuffix('.py')}", block.where, tmp_path)
        elif "Node.start(" in block.text:
            assert _run_alone(block.text, block.where, tmp_path), block.where
        else:
            exec(compile(block.text, block.where, "exec", dont_inherit=True), names)


def _run_alone(code: str, where: str, folder: Path) -> str:
    """What a block prints that starts a node: in a process with a home of its own."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    python_path = os.pathsep.join([str(ROOT), str(folder)])
    own = {"HOME": str(home), "PYTHONPATH": python_path, "LLAMA_ACTORS_RUNTIME_DIR": str(home)}
    env = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env=env | own,
        check=False,
    )
    assert ran.returncode == 0, (where, ran.stderr)
    return ran.stdout


def test_the_documentation_runs_commands_and_python() -> None:
    ran = {line.words[1] for one in DOCUMENTS for line in commands(one) if line.is_run}
    assert {"complete", "chat", "embed", "bench", "evict", "adapters", "cache", "tree"} <= ran
    assert {DOCS / "sessions.md", DOCS / "tool-calls.md", ROOT / "README.md"} <= set(WITH_PYTHON)


def test_limits_in_the_documentation_are_those_of_the_code() -> None:
    from runtime.client.time_limits import HEAL_TIMEOUT_S

    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert f"{HEAL_TIMEOUT_S:.0f} seconds at most" in text
