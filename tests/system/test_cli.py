"""The command line, run as processes."""

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

from tests.support.nodes import ROOT, alive, free_port, port_is_free
from tests.support.runtime_nodes import cli
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

PROMPT = "The old lighthouse keeper counted the waves and wrote each number down. " * 4


class Served:
    """A node started with ``python -m runtime serve``."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.port = free_port()
        self.home = home
        self.errors = (home / "serve.log").open("w+")
        environment = dict(os.environ) | {"LLAMA_ACTORS_RUNTIME_DIR": str(home / "run")}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "runtime", "serve", "--admin-port", str(self.port)),
                *("--cache-dir", str(home / "cache"), "--cache-ram", "32MiB", *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            env=environment,
        )

    @property
    def log(self) -> str:
        return (self.home / "serve.log").read_text()

    def wait_ready(self) -> None:
        eventually(lambda: "node ready" in self.log, within_s=30, what="the node is ready")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return cli(*arguments, port=self.port, runtime_dir=self.home / "run")

    def report(self, actor: str) -> dict[str, Any]:
        """What ``status`` prints of an actor; a busy one may not answer at once."""

        def probe() -> dict[str, Any] | None:
            printed = json.loads(self.run("status", "--json").stdout)
            found: dict[str, Any] | None = printed["actors"].get(actor)
            return found

        found = eventually(probe, what=f"{actor} reports its status")
        assert found is not None
        return found

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(60)
        self.errors.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@pytest.fixture
def served(tmp_path: Path, tiny_gguf: Path) -> Iterator[Served]:
    node = Served(tmp_path, "--model", f"tiny={tiny_gguf}")
    try:
        node.wait_ready()
        eventually(lambda: "loaded tiny" in node.log, within_s=30, what="tiny is loaded")
        yield node
    finally:
        node.end()
    assert port_is_free(node.port)
    assert [p.name for p in (tmp_path / "run").rglob("*") if p.is_file()] == []


def test_a_whole_session(served: Served, tiny_gguf: Path) -> None:
    listed = served.run("models")
    assert listed.returncode == 0
    assert listed.stdout.startswith("tiny ")

    first = served.run("complete", "tiny", PROMPT, "--max-tokens", "8", "--json")
    assert first.returncode == 0, first.stderr
    done = json.loads(first.stdout)
    assert set(done) >= {
        "text",
        "tokens",
        "finish_reason",
        "finish_key",
        "usage",
        "cache",
        "timings",
    }
    assert set(done["usage"]) >= {"prompt_tokens", "cached_tokens", "completion_tokens"}
    assert set(done["cache"]) >= {"hit", "source", "restore_ms", "miss_reason"}
    assert set(done["timings"]) >= {"ttft_ms", "prefill_ms", "decode_ms", "tokens_per_second"}
    assert done["cache"]["hit"] == "cold"
    assert done["usage"]["completion_tokens"] == len(done["tokens"]) == 8

    again = json.loads(served.run("complete", "tiny", PROMPT, "--max-tokens", "8", "--json").stdout)
    assert again["cache"]["hit"] == "exact"
    assert again["text"] == done["text"]

    plain = served.run("complete", "tiny", PROMPT, "--max-tokens", "8")
    assert plain.stdout == done["text"] + "\n"
    assert plain.stderr == ""  # no progress in a pipe

    turn = served.run(
        *("complete", "tiny", PROMPT + done["text"], "--parent-key", done["finish_key"]),
        *("--json", "--max-tokens", "2"),
    )
    assert json.loads(turn.stdout)["usage"]["cached_tokens"] >= done["usage"]["prompt_tokens"]

    assert served.run("load", f"second={tiny_gguf}").returncode == 0
    assert served.run("load", f"second={tiny_gguf}").returncode == 1
    assert served.run("unload", "second").returncode == 0
    assert served.run("unload", "second").returncode == 1

    assert served.report("model:tiny")["cache"]["hits"]["exact"] >= 1
    tree = json.loads(served.run("tree", "--json").stdout)
    assert tree["kind"] == "launcher"
    assert tree["pid"] == served.process.pid
    ids = set()

    def walk(place: dict[str, object]) -> None:
        ids.add(place["id"])
        assert set(place) >= {"id", "kind", "pid", "state", "restarts", "children"}
        for child in place["children"]:
            walk(child)

    walk(tree)
    assert {"root", "cache", "cache_meta", "writer", "registry", "models", "model:tiny"} <= ids
    assert "model:tiny" in served.run("tree").stdout
    assert "cache_meta" in served.run("status").stdout

    stopped = served.run("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert served.process.wait(60) == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_node_cleanly(tmp_path: Path, how: signal.Signals) -> None:
    node = Served(tmp_path)
    node.wait_ready()
    tree = json.loads(node.run("tree", "--json").stdout)
    assert node.end(how) == 0
    assert not alive(tree["children"][0]["pid"] or tree["pid"])
    assert port_is_free(node.port)


def test_rows_survive_a_restart_of_the_node(tmp_path: Path, tiny_gguf: Path) -> None:
    texts = []
    for expected in ("none", "disk"):
        node = Served(tmp_path, "--model", f"tiny={tiny_gguf}")
        node.wait_ready()
        eventually(lambda n=node: "loaded tiny" in n.log, within_s=30, what="loaded")

        def settled(n: Served = node) -> bool:
            meta = json.loads(n.run("status", "--json").stdout)["actors"]["cache_meta"] or {}
            return bool(meta.get("all_persisted")) and "ram" in meta["scanned"]

        eventually(settled, within_s=30, every_s=0.1, what="the disk tier was scanned")
        out = node.run("complete", "tiny", PROMPT, "--max-tokens", "8", "--json")
        done = json.loads(out.stdout)
        assert done["cache"]["source"] == expected, out.stdout
        texts.append(done["text"])
        assert node.run("cache", "flush").returncode == 0
        eventually(settled, within_s=30, every_s=0.1, what="everything is on disk")
        assert node.end() == 0
    assert texts[0] == texts[1]


def test_wrong_usage_is_2_and_failed_work_is_1(served: Served, tmp_path: Path) -> None:
    cases = [
        (("complete", "tiny", ""), 2, "empty"),
        (("complete", "tiny", "x", "--max-tokens", "-3"), 2, "whole number from 0"),
        (("complete", "tiny", "x", "--parent-key", "beef"), 2, "64 hex digits"),
        (("complete", "tiny", "x", "--bogus"), 2, "--bogus"),
        (("complete", "nobody", "x"), 1, "nobody"),
        (("complete", "tiny", "word " * 9000), 1, "n_ctx"),
        (("load", "justaname"), 2, "ID=PATH"),
        (("load", f"dir={tmp_path}"), 1, "regular file"),
        (("load", f"gone={tmp_path}/none.gguf"), 1, "none.gguf"),
        (("load", f"demo={tmp_path}/none.gguf"), 2, "embedded"),
        (("load", "tiny=/x.gguf"), 1, "already loaded"),
        (("frobnicate",), 2, "frobnicate"),
        ((), 2, "COMMAND"),
    ]
    text = tmp_path / "text.gguf"
    text.write_text("not a model at all\n" * 100)
    cases.append((("load", f"text={text}"), 1, "GGUF"))
    for arguments, code, says in cases:
        ran = served.run(*arguments)
        assert ran.returncode == code, (arguments, ran)
        assert says in ran.stderr, (arguments, ran.stderr)
        assert "Traceback" not in ran.stderr, (arguments, ran.stderr)
        assert ran.stdout == ""
    assert served.run("complete", "tiny", "x", "--max-tokens", "1").returncode == 0

    second = cli("serve", "--cache-disk", "0", port=served.port, runtime_dir=tmp_path / "other")
    assert second.returncode == 1
    assert "--admin-port" in second.stderr
    assert served.run("models").returncode == 0


def test_commands_without_a_node_print_how_to_start_one(tmp_path: Path) -> None:
    for command in (("status",), ("tree",), ("stop",), ("models",), ("complete", "tiny", "x")):
        ran = cli(*command, port=free_port(), runtime_dir=tmp_path)
        assert ran.returncode == 1
        assert "python -m runtime serve" in ran.stderr


def test_serve_refuses_bad_settings(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('cahce_dir = "x"\n')
    cases = [
        (("--cache-ram", "lots"), 2, "512MiB"),
        (("--cache-ram", "900TiB"), 2, "cache_ram"),
        (("--admin-port", "80"), 2, "admin_port"),
        (("--config", str(bad)), 2, "cahce_dir"),
        (("--config", str(tmp_path / "none.toml")), 2, "none.toml"),
        (("--cache-dir", "/proc/nowhere"), 2, "cache_dir"),
        (("--model", "nonsense"), 2, "ID=PATH"),
        (("--exact", "sometimes"), 2, "'repeat', 'prefix', 'always'"),
    ]
    for arguments, code, says in cases:
        ran = cli("serve", *arguments, port=free_port(), runtime_dir=tmp_path)
        assert ran.returncode == code, (arguments, ran)
        assert says in ran.stderr, (arguments, ran.stderr)
        assert "Traceback" not in ran.stderr


def test_a_configuration_file_is_read_and_the_command_line_wins(
    tmp_path: Path, tiny_gguf: Path
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        f'cache_ram = "16MiB"\ncache_disk = 0\n'
        f'[models.tiny]\npath = "{tiny_gguf}"\nn_ctx = 512\nn_threads = 1\n'
        'exact = "always"\n'
    )
    more = ("--model", f"more={tiny_gguf}", "--n-ctx", "512", "--exact", "prefix")
    node = Served(tmp_path, "--config", str(config), *more)
    try:
        node.wait_ready()
        eventually(lambda: "loaded tiny" in node.log, within_s=30, what="tiny is loaded")
        assert node.report("model:tiny")["n_ctx"] == 512
        assert node.report("model:tiny")["exact"] == "always"
        eventually(lambda: "loaded more" in node.log, within_s=30, what="more is loaded")
        assert node.report("model:more")["exact"] == "prefix"
        tiers = node.report("cache_meta")["tiers"]
        assert tiers["ram"]["budget_bytes"] > 17 << 20  # 32MiB was set
        assert "disk" not in tiers
    finally:
        assert node.end() == 0


def test_doctor_finds_this_machine_fit() -> None:
    ran = cli("doctor", "--json", port=free_port(), timeout=200)
    findings = {finding["check"]: finding for finding in json.loads(ran.stdout)}
    assert findings["cpu build"]["verdict"] == "ok", findings
    assert findings["shared memory"]["verdict"] == "ok"
    assert "tier disk" in findings
    assert ran.returncode == 0


def test_doctor_warns_of_a_distribution_that_owns_one_of_our_names(tmp_path: Path) -> None:
    foreign = tmp_path / "supervision-9.9.dist-info"
    foreign.mkdir()
    (foreign / "METADATA").write_text("Metadata-Version: 2.1\nName: supervision\nVersion: 9.9\n")
    (foreign / "top_level.txt").write_text("supervision\n")
    (foreign / "RECORD").write_text("supervision/__init__.py,,\n")
    ran = cli("doctor", port=free_port(), env={"PYTHONPATH": str(tmp_path)}, timeout=200)
    assert ran.returncode == 1
    assert "also belongs to supervision" in ran.stdout
    assert "virtual environment of its own" in ran.stdout
