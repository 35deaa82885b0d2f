"""``launch`` with a small program in the place of each agent, which records how it was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.launch.programs import KEY_NAME, PROGRAMS
from runtime.gateway.keys import new_key
from tests.support.gateways import Gateway, gateway_node
from tests.support.nodes import ROOT, free_port, port_is_free
from tests.support.runtime_nodes import LeakCheck, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

KEY, DIGEST = new_key()
SHELL = """\
#!/bin/sh
IGNORED=$(grep SigIgn /proc/$$/status) exec '{python}' -I '{records}' "$@"
"""
RECORDS = """\
import json, os, signal, sys, urllib.request
models = None
if os.environ.get("ASK"):
    with urllib.request.urlopen(os.environ["ANTHROPIC_BASE_URL"] + "/v1/models") as answer:
        models = [one["id"] for one in json.load(answer)["data"]]
found = {
    "argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid(), "models": models,
}
record = os.environ["RECORD"]
with open(record + ".new", "w") as file:
    json.dump(found, file)
os.rename(record + ".new", record)
if "wait" in sys.argv:
    signal.pause()
sys.exit(7)
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("launch")
    (folder / "keys.toml").write_text(f'[keys.me]\nsha256 = "{DIGEST}"\n')
    with (
        LeakCheck() as leaks,
        gateway_node(folder, keys_file=str(folder / "keys.toml"), drain_s=0.5) as found,
    ):
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


class Launcher:
    """Starts ``launch`` with recording programs in PATH."""

    def __init__(self, folder: Path, gateway: Gateway) -> None:
        self.folder = folder
        self.record = folder / "record.json"
        self.bin = folder / "bin"
        self.bin.mkdir()
        records = folder / "records.py"
        records.write_text(RECORDS)
        for name in PROGRAMS:
            program = self.bin / name
            program.write_text(SHELL.format(python=sys.executable, records=records))
            program.chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "RECORD": str(self.record),
            "LLAMA_ACTORS_PORT": str(gateway.node.port),
            "LLAMA_ACTORS_RUNTIME_DIR": str(gateway.node._directory.parent),
        }

    def begin(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        self.record.unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "runtime", "launch", *words],
            cwd=ROOT, env={**self.env, **variables}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str, **variables: str) -> tuple[int, str, str]:
        process = self.begin(*words, **variables)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def recorded(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record.read_text())
        return found


@pytest.fixture
def launcher(tmp_path: Path, gateway: Gateway) -> Launcher:
    return Launcher(tmp_path, gateway)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_started_on_the_gateway_of_this_machine(
    launcher: Launcher, gateway: Gateway, name: str
) -> None:
    process = launcher.begin(name, "--", "-p", "Hi", LLAMA_ACTORS_KEY=KEY)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 7, err
    assert "note: demo has a context of 4096 tokens" in err
    found = launcher.recorded()
    assert found["pid"] == process.pid  # it has replaced the command
    assert found["argv"][-2:] == ["-p", "Hi"]
    ignored = int(found["env"]["IGNORED"].split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)
    assert KEY not in " ".join(found["argv"])
    assert KEY in found["env"].values()
    everything = json.dumps([found["argv"], found["env"]])
    assert gateway.url in everything
    assert "demo" in everything
    assert list(launcher.folder.glob(".*")) == []  # nothing is written into its home


def test_a_signal_reaches_the_program(launcher: Launcher) -> None:
    with launcher.begin("claude", "--", "wait", LLAMA_ACTORS_KEY=KEY) as process:
        eventually(launcher.record.exists, what="the program runs", within_s=60)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_what_would_be_set_is_printed_and_nothing_is_started(
    launcher: Launcher, gateway: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    where = ("--url", gateway.url, "--key-file", str(file))
    code, out, err = launcher.run("claude", *where, "--print", "--", "-p", "two words")
    assert code == 0, err
    assert f"export ANTHROPIC_BASE_URL={gateway.url}\n" in out
    assert f'export ANTHROPIC_AUTH_TOKEN="$(cat {file})"\n' in out
    assert out.endswith("claude -p 'two words'\n")
    assert KEY not in out
    assert not launcher.record.exists()
    done = subprocess.run(
        ["/bin/sh", "-c", out], env={**launcher.env, "ANTHROPIC_API_KEY": "real"},
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 7
    found = launcher.recorded()["env"]
    assert found["ANTHROPIC_AUTH_TOKEN"] == KEY
    assert "ANTHROPIC_API_KEY" not in found
    code, out, _ = launcher.run("codex", "--print", LLAMA_ACTORS_KEY=KEY)
    assert (code, KEY in out) == (0, False)
    assert f'export {KEY_NAME}="$LLAMA_ACTORS_KEY"' in out


def test_what_is_missing_is_explained(launcher: Launcher, gateway: Gateway) -> None:
    (launcher.bin / "qwen").unlink()
    code, _, err = launcher.run("qwen", LLAMA_ACTORS_KEY=KEY)
    assert code == 1
    assert "Qwen Code is not installed: there is no `qwen` in PATH; install it with `npm" in err
    code, _, err = launcher.run("claude")
    assert code == 1
    assert "wants a key" in err
    port = str(free_port())
    code, _, err = launcher.run("claude", "--admin-port", port)
    assert code == 1
    assert f"no node runs on port {port}; start one with `llama-actors serve --gateway" in err
    code, _, err = launcher.run("claude", "--url", "unix:/x")
    assert (code, "which these programs cannot use" in err) == (2, True)


def test_a_node_without_a_gateway_is_explained(launcher: Launcher, tmp_path: Path) -> None:
    with started(tmp_path / "other") as node:
        directory = str(node._directory.parent)
        code, _, err = launcher.run(
            "claude", "--admin-port", str(node.port), LLAMA_ACTORS_RUNTIME_DIR=directory
        )
    assert code == 1
    assert "the node that runs here has no gateway; start one with" in err


def test_a_node_can_be_started_for_the_program_alone(launcher: Launcher) -> None:
    own = {"LLAMA_ACTORS_RUNTIME_DIR": str(launcher.folder / "run"), "ASK": "1"}
    own["XDG_CACHE_HOME"] = str(launcher.folder / "cache")
    with launcher.begin("claude", "--serve", "demo", "--", "wait", **own) as process:
        eventually(launcher.record.exists, what="the program runs", within_s=120)
        found = launcher.recorded()
        assert found["models"] == ["demo"]
        assert found["pid"] == process.pid
        port = int(found["env"]["ANTHROPIC_BASE_URL"].rpartition(":")[2])
        assert not port_is_free(port)
        process.kill()
        process.communicate(timeout=60)
    eventually(lambda: port_is_free(port), within_s=60, what="its node has ended")
    code, _, err = launcher.run("claude", "--serve", "broken=/nowhere.gguf", **own)
    assert code == 1
    assert "/nowhere.gguf" in err
