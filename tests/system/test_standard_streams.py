"""Programs whose standard streams are closed, full, or lead to a reader that has gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import Node
from supervision.node_file import RuntimeDir
from tests.support.nodes import ROOT, alive, free_port
from tests.support.runtime_nodes import started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

RUNTIME = [sys.executable, "-m", "runtime"]


def close_all() -> None:
    for fd in (0, 1, 2):
        os.close(fd)


def close_errors() -> None:
    os.close(2)


def gone_reader() -> None:
    """Standard error is a pipe that is read by no process any more."""
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)


def full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


WAYS = [close_all, close_errors, gone_reader, full]


def _serve(
    tmp_path: Path, streams: Callable[[], None], *arguments: str
) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    environment = dict(os.environ) | {"LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path / "run")}
    command = [*RUNTIME, "serve", "--admin-port", str(port), "--cache-ram", "0", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        preexec_fn=streams,  # noqa: PLW1509 - it only moves descriptors
        close_fds=False,
    )
    return process, port


@pytest.mark.parametrize("streams", WAYS)
def test_a_node_runs_whatever_its_standard_streams_are(
    tmp_path: Path, tiny_gguf: Path, streams: Callable[[], None]
) -> None:
    log = ["--log-file", str(tmp_path / "log")] if streams is not full else []
    process, port = _serve(
        tmp_path, streams, "--cache-dir", str(tmp_path / "c"), "--model", f"tiny={tiny_gguf}", *log
    )
    try:
        folder = RuntimeDir(tmp_path / "run" / f"node-{port}")
        eventually(folder.read, within_s=30, what="the node is up")
        with Node.attach(port, runtime_dir=tmp_path / "run") as node:

            def loaded() -> bool:
                return any(one.id == "tiny" and one.state == "up" for one in node.models())

            eventually(loaded, within_s=30, what="the model is loaded")
            assert node.complete("tiny", [1, 2, 3], max_tokens=2).tokens
            for fd in (0, 1, 2):
                where = os.readlink(f"/proc/{process.pid}/fd/{fd}")
                assert not where.startswith(("socket:", "anon_inode:", "/memfd:")), (fd, where)
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_default_disk_tier_that_is_given_up_needs_no_reader_either(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    os.environ |= environment
    try:
        process, port = _serve(tmp_path, gone_reader)
    finally:
        del os.environ["XDG_CACHE_HOME"]
    folder = RuntimeDir(tmp_path / "run" / f"node-{port}")
    try:
        eventually(folder.read, within_s=30, what="the node is up")
    finally:
        process.terminate()
        assert process.wait(30) == 0


HOST = """
import os, sys
from pathlib import Path
for fd in (0, 1, 2):
    os.close(fd)
from runtime import Node
where = Path(sys.argv[1])
with Node.start(runtime_dir=where / "run", cache_ram=0, cache_disk=0) as node:
    node.load("stub", "stub", backend="stub")
    done = node.complete("stub", "a", max_tokens=3)
    (where / "said").write_text(str(len(done.tokens)))
"""


def test_a_host_without_standard_streams_starts_a_node(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HOST, str(tmp_path)], cwd=ROOT, timeout=60, check=False
    )
    assert ran.returncode == 0
    assert (tmp_path / "said").read_text() == "3"


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_stops_a_node_in_order(tmp_path: Path, how: signal.Signals) -> None:
    def as_at_a_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup

    process, port = _serve(
        tmp_path, as_at_a_terminal, "--cache-disk", "0", "--log-file", str(tmp_path / "log")
    )
    folder = RuntimeDir(tmp_path / "run" / f"node-{port}")
    try:
        record = eventually(folder.read, within_s=30, what="the node is up")
        assert record is not None
        process.send_signal(how)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
    log = (tmp_path / "log").read_text()
    assert f"stopping: {how.name}" in log
    assert "killing what is left" not in log
    assert not alive(record.root_pid)


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process, port = _serve(
        tmp_path, nohup, "--cache-disk", "0", "--log-file", str(tmp_path / "log")
    )
    folder = RuntimeDir(tmp_path / "run" / f"node-{port}")
    try:
        eventually(folder.read, within_s=30, what="the node is up")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert "stopping: SIGTERM" in (tmp_path / "log").read_text()


# ── output that cannot be written ───────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    folder = tmp_path_factory.mktemp("streams")
    with started(folder) as node:
        node.load("demo", n_threads=1)
        yield node.port, folder / "run"


def environment(port: tuple[int, Path], **more: str) -> dict[str, str]:
    given = {"LLAMA_ACTORS_PORT": str(port[0]), "LLAMA_ACTORS_RUNTIME_DIR": str(port[1])}
    return dict(os.environ) | given | more


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (["models"], ""),
        (["complete", "demo", "Once", "--max-tokens", "5"], ""),
        (["-h"], ""),
        (["-h"], "1"),
    ],
    ids=["models", "complete", "help", "unbuffered"],
)
def test_output_that_cannot_be_written_is_one_line_and_an_exit_code(
    port: tuple[int, Path], arguments: list[str], unbuffered: str
) -> None:
    reader, gone = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, open(gone, "w", closefd=True) as pipe:
        for output, says in ((full, "No space left on device"), (pipe, "Broken pipe")):
            ran = subprocess.run(
                [*RUNTIME, *arguments],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment(port, PYTHONUNBUFFERED=unbuffered),
                timeout=60,
                check=False,
            )
            errors = [line for line in ran.stderr.splitlines() if "error" in line]
            assert errors == [f"error: standard output did not take all of the result: {says}"]
            assert "Traceback" not in ran.stderr
            assert ran.returncode == 1


@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {
        "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"
    }], ids=["ascii", "latin-1", "C"]
)  # fmt: skip
def test_an_output_that_lacks_characters_gets_them_escaped(
    port: tuple[int, Path], encoding: dict[str, str]
) -> None:
    text = "Füchse 狐 🦊"
    ran = subprocess.run(
        [*RUNTIME, "tokenize", "demo", text, "--json"],
        capture_output=True,
        cwd=ROOT,
        env=environment(port, **encoding),
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    plain = json.loads(ran.stdout.decode("latin-1"))
    utf8 = subprocess.run(
        [*RUNTIME, "tokenize", "demo", text, "--json"],
        capture_output=True,
        cwd=ROOT,
        env=environment(port, PYTHONUTF8="1"),
        timeout=60,
        check=True,
    )
    assert plain == json.loads(utf8.stdout)
    assert not ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["complete", "demo", b"a\xffb"],
        ["tokenize", "demo", b"a\xffb"],
        ["embed", "demo", "x", b"a\xffb"],
        ["complete", "demo", "x", "--stop", b"a\xffb"],
        ["chat", "demo", "--system", b"a\xffb"],
    ],
    ids=lambda one: "-".join(str(part) for part in one[:2]),
)
def test_bytes_that_are_no_character_are_refused_and_never_replaced(
    port: tuple[int, Path], arguments: list[str | bytes]
) -> None:
    ran = subprocess.run(
        [*RUNTIME, *arguments],
        input=b"hello\n",
        capture_output=True,
        cwd=ROOT,
        env=environment(port),
        timeout=60,
        check=False,
    )
    assert b"0xff" in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert ran.returncode != 0
    assert not ran.stdout


@pytest.mark.parametrize("arguments", [["complete", "demo", "-"], ["chat", "demo"]])
def test_bytes_of_standard_input_that_are_no_character_are_refused(
    port: tuple[int, Path], arguments: list[str]
) -> None:
    ran = subprocess.run(
        [*RUNTIME, *arguments],
        input=b"a\xffb\n",
        capture_output=True,
        cwd=ROOT,
        env=environment(port),
        timeout=60,
        check=False,
    )
    assert b"0xff" in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert ran.returncode in (1, 2)  # 1: a turn of a chat that failed
