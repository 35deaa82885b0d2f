"""A node of one's own tree: from host code, and from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from supervision import Connection, Node
from supervision.errors import ForkedProcess, NodeNotRunning
from supervision.launched import LauncherSaid
from supervision.messages import new_ref
from supervision.node_file import RuntimeDir
from supervision.spec import AutoShutdown, ChildSpec, Restart, Strategy, SupervisorSpec
from tests.support.children import Do, Echo, Echoed
from tests.support.forking import in_child
from tests.support.nodes import ROOT, alive, group_pids, running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

GOOD = "tests.support.children.GoodChild"
TREE = SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", GOOD), ChildSpec("b", GOOD)))
BROKEN = SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", "tests.no_such_module.Actor"),))
NO_TREE = "text"


def test_a_tree_of_ones_own_starts_answers_and_leaves_nothing(tmp_path: Path):
    log = tmp_path / "log"
    with Node.start(f"{__name__}:TREE", tmp_path / "run", log_file=log) as node:
        answer = node.connection.ask("a", Echo(new_ref()), timeout_s=30)
        assert isinstance(answer, Echoed)
        group = os.getpgid(answer.pid)
        pid = node.pid
        assert alive(pid)
    assert not alive(pid)
    eventually(lambda: not group_pids(group), what="no process is left")
    assert list((tmp_path / "run").iterdir()) == []
    assert "stopped" in log.read_text()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_asks_by_itself_and_stops_nothing(tmp_path: Path) -> None:
    with Node.start(f"{__name__}:TREE", tmp_path / "run") as node:

        def use() -> int:
            answer = node.connection.ask("a", Echo(new_ref()), timeout_s=5)
            assert isinstance(answer, Echoed)
            with pytest.raises(ForkedProcess, match=str(os.getppid())):
                node.stop()
            with node:
                pass
            return answer.pid

        own = node.connection.ask("a", Echo(new_ref()), timeout_s=5)
        assert isinstance(own, Echoed)
        assert in_child(use) == own.pid
        assert isinstance(node.connection.ask("a", Echo(new_ref()), timeout_s=5), Echoed)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (f"{__name__}:NOTHING", "cannot be loaded"),
        ("no_such_module:TREE", "cannot be loaded"),
        (f"{__name__}:NO_TREE", "is a str"),
        (f"{__name__}:BROKEN", "no_such_module"),
        ("", "cannot be loaded"),
    ],
)
def test_what_cannot_start_fails_with_the_launchers_reason(where: str, words: str, tmp_path: Path):
    with pytest.raises(LauncherSaid, match=words) as said:
        Node.start(where, tmp_path / "run")
    assert said.value.kind == "SpecError"
    assert not (tmp_path / "run" / "node.json").exists()


def test_the_node_ends_with_its_host_whatever_ends_that(tmp_path: Path):
    program = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from supervision import Node\n"
        f"node = Node.start({f'{__name__}:TREE'!r}, Path(sys.argv[1]))\n"
        "print(node.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    host = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        cwd=ROOT, stdout=subprocess.PIPE, timeout=100, check=False,
    )  # fmt: skip
    launcher = int(host.stdout)
    eventually(lambda: not alive(launcher), what="the launcher is gone", within_s=30)
    assert list((tmp_path / "run").iterdir()) == []


def test_the_command_line_runs_a_tree_until_it_is_stopped(tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "supervision", f"{__name__}:TREE", "--runtime-dir", str(run)]
    node = subprocess.Popen([*command, "--log-file", str(log), "--log-format", "json"], cwd=ROOT)
    try:
        eventually(lambda: RuntimeDir(run).read(), what="the node is up", within_s=30)
        with Connection.attach(run) as connection:
            assert isinstance(connection.ask("b", Echo(new_ref()), timeout_s=30), Echoed)
    finally:
        node.send_signal(signal.SIGTERM)
        assert node.wait(60) == 0
    assert log.read_text().startswith("{")
    with pytest.raises(NodeNotRunning):
        Connection.attach(run)


def test_the_command_line_reports_mistakes(tmp_path: Path):
    for arguments in (["x:Y"], ["x:Y", "--runtime-dir", str(tmp_path)]):
        ended = subprocess.run(
            [sys.executable, "-m", "supervision", *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        assert ended.stderr.startswith("error: ")
        assert len(ended.stderr.splitlines()) == 1


def test_a_tree_that_ends_by_itself_ends_its_node(tmp_path: Path):
    last = ChildSpec("last", GOOD, restart=Restart.TRANSIENT, significant=True)
    spec = SupervisorSpec(
        Strategy.ONE_FOR_ONE,
        (ChildSpec("other", GOOD), last),
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
    )
    with running_node(spec, tmp_path) as node:
        node.connect().tell("last", Do("stop"))
        eventually(lambda: node.process.poll() is not None, what="the node has ended")
        assert node.process.returncode == 0
        assert "boot 2" not in node.log


def test_a_node_that_gives_up_names_the_failed_child(tmp_path: Path):
    spec = SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", GOOD),), intensity=0)
    with running_node(spec, tmp_path) as node:
        node.connect().tell("a", Do("raise"))
        eventually(
            lambda: (r := node.folder.read()) and r.boot == 2, what="the next boot", within_s=30
        )
        node.note_group()
        (line,) = [one for one in node.log.splitlines() if "ending the node" in one]
        assert "more than 0 restarts" in line
        assert "a last: abnormal: RuntimeError: raised by the test" in line
