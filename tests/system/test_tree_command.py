"""``python -m runtime tree``: once, again and again, in a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Node
from supervision.kill_watch import PERHAPS
from tests.support.nodes import ROOT, free_port
from tests.support.runtime_nodes import cli, kill, pid_of, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


def environment(node: Node, tmp_path: Path) -> dict[str, str]:
    # Their width and height would count instead of the terminal's; pytest-xdist sets them.
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    return inherited | {
        "LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path / "run"),
        "LLAMA_ACTORS_PORT": str(node.port),
        "PYTHONUNBUFFERED": "1",
    }


def every(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree["children"]:
        yield from every(child)


class Watching:
    """A running ``tree --watch`` whose output a thread reads."""

    def __init__(
        self, node: Node, tmp_path: Path, *arguments: str, terminal: tuple[int, int] | None = None
    ) -> None:
        self.text = ""
        if terminal:
            self.reader, writer = pty.openpty()
            size = struct.pack("HHHH", *terminal, 0, 0)
            fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
        else:
            self.reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "tree", "--watch", "0.1", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment(node, tmp_path),
        )
        os.close(writer)
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # a terminal whose other end is closed
            while part := os.read(self.reader, 65536):
                self.text += part.decode("utf-8", "replace")

    def waits_for(self, what: str, *, times: int = 1) -> int:
        """Wait until this was printed; where in the text it ends."""
        eventually(lambda: self.text.count(what) >= times, within_s=30, what=f"{what!r} is shown")
        return self.text.index(what) + len(what)

    def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            _, said = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()  # the test fails, and leaves nothing behind
            self.process.communicate()
            raise
        finally:
            self.thread.join(60)
            os.close(self.reader)
        return self.process.returncode, said.decode()


@contextlib.contextmanager
def watching(*arguments: Any, **options: Any) -> Iterator[Watching]:
    watch = Watching(*arguments, **options)
    try:
        yield watch
    finally:
        if watch.process.poll() is None:
            watch.end()


def test_json_has_the_numbers_of_every_process(node: Node, tmp_path: Path) -> None:
    pid = pid_of(node, "scheduler")
    kill(pid)
    eventually(lambda: node.tree().find("scheduler").restarts == 1, what="the scheduler is back")  # type: ignore[union-attr]
    pid_of(node, "scheduler")
    said = cli("tree", "--json", port=node.port, runtime_dir=tmp_path / "run")
    assert said.returncode == 0, said.stderr
    tree = json.loads(said.stdout)
    processes = {one["id"]: one for one in every(tree)}
    assert {"launcher", "root", "cache", "cache_meta", "registry", "scheduler"} <= set(processes)
    for one in processes.values():
        assert 0 < one["uptime_s"] < 600, one["id"]
        assert 1 << 20 < one["memory_bytes"] < 1 << 30, one["id"]
        assert one["memory_measure"] in ("pss", "rss")
        if one["id"] != "launcher":
            assert one["mailbox"] >= 0
            assert one["turns"] > 0
    scheduler = processes["scheduler"]
    assert (scheduler["incarnation"], scheduler["restarts"]) == (2, 1)
    assert scheduler["last_exit"] == f"killed: {PERHAPS}"
    assert processes["root"]["incarnation"] == 1


def test_text_is_a_table_below_headings(node: Node, tmp_path: Path) -> None:
    said = cli("tree", port=node.port, runtime_dir=tmp_path / "run")
    lines = said.stdout.splitlines()
    headings = lines[0].split()
    assert headings[:6] == ["ID", "KIND", "PID", "INC", "UPTIME", "RESTARTS"]
    assert headings[6] in ("PSS", "RSS")
    assert headings[7:9] == ["MAILBOX", "STATE"]
    end_of_pid = lines[0].index("PID") + len("PID")
    for line in lines[1:]:
        assert line[:end_of_pid].split()[-1].isdigit()
        assert line[end_of_pid] == " "
    assert any(line.startswith("    │   ├── cache_meta") for line in lines)


def test_a_child_that_hangs_is_shown_too(node: Node, tmp_path: Path) -> None:
    pid = pid_of(node, "registry")
    os.kill(pid, signal.SIGSTOP)
    try:
        found = eventually(
            lambda: (one := node.tree(vitals=True).find("registry")) and one.vitals,
            what="the registry's vitals",
        )
        assert found.pid == pid
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_watch_in_a_pipe_continues_through_restarts_and_reports_a_missing_node(
    node: Node, tmp_path: Path
) -> None:
    with watching(node, tmp_path) as watch:
        watch.waits_for("└── root", times=3)
        assert "\x1b" not in watch.text
        assert "\n\nID " in watch.text
        before = watch.text.count("└── root")
        kill(node.connection.record.admin_pid)
        eventually(lambda: node.tree().restarts == 1, within_s=30, what="the node is back")
        watch.waits_for("└── root", times=before + 3)
        assert watch.process.poll() is None
        node.stop()
        watch.waits_for("no node: ")
        before = watch.text.count("└── root")
        with started(tmp_path, port=node.port):  # another one, with another secret
            watch.waits_for("└── root", times=before + 2)
        code, said = watch.end()
        assert (code, said) == (0, "")


def test_a_watch_as_json_prints_one_object_per_line(node: Node, tmp_path: Path) -> None:
    with watching(node, tmp_path, "--json") as watch:
        watch.waits_for("\n", times=3)
        watch.end(signal.SIGTERM)
        objects = [json.loads(line) for line in watch.text.splitlines()]
        assert all(one["id"] == "launcher" for one in objects)


def test_a_watch_on_a_terminal_redraws_in_place_and_restores_it(node: Node, tmp_path: Path) -> None:
    with watching(node, tmp_path, terminal=(8, 60)) as watch:
        watch.waits_for("root", times=3)
        code, said = watch.end()
        assert (code, said) == (0, "")
        assert watch.text.startswith("\x1b[?1049h")
        assert watch.text.count("\x1b[?1049h") == watch.text.count("\x1b[?1049l") == 1
        assert watch.text.rindex("\x1b[?25h") > watch.text.rindex("└──")  # the cursor is back
        screen = watch.text.split("\x1b[H")[2]
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen).rstrip().splitlines()
        assert len(lines) <= 8
        assert all(len(line.rstrip()) <= 60 for line in lines), lines
        assert "more lines" in lines[-1]


def test_a_watch_without_a_node_waits_for_one(node: Node, tmp_path: Path) -> None:
    node.stop()
    with watching(node, tmp_path) as watch:
        watch.waits_for("no node: ", times=2)
        assert watch.process.poll() is None
    assert cli("tree", "--watch", "0", port=node.port).returncode == 2
    assert cli("tree", port=node.port, runtime_dir=tmp_path / "run").returncode == 1


def test_serve_writes_its_log_as_json_on_demand(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('log_format = "text"\ncache_ram = "16MiB"\ncache_disk = 0\n')
    log = tmp_path / "node.log"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "runtime", "serve", "--admin-port", str(free_port())),
            *("--config", str(config), "--log-file", str(log), "--log-format", "json"),
        ],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=dict(os.environ) | {"LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path / "run")},
    )
    try:
        eventually(lambda: log.exists() and "node_up" in log.read_text(), within_s=30)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    objects = [json.loads(line) for line in log.read_text().splitlines()]
    up = {one["child"] for one in objects if one["event"] == "up"}
    assert {"cache", "registry", "models"} <= up
    assert objects[-1]["event"] == "node_stopped"
    wrong = cli("serve", "--log-format", "xml")
    assert wrong.returncode == 2
    config.write_text('log_format = "xml"\n')
    refused = cli("serve", "--config", str(config))
    assert refused.returncode == 2
    assert "log_format" in refused.stderr
