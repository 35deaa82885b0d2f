"""A newcomer's first minutes, step by step with times: ``python -m tests.support.newcomer``.

In a home of its own, in a new environment that has nothing: install, ask, serve, open the page,
attach an agent, add a model, kill the node under a stream, read the metrics, stop. Each step is
what a user would type; what must be seen is checked, and its time printed. ``--bin FOLDER`` uses an
environment that is there, and leaves out the first step.

The agent is a program that `launch` starts, where one is installed (``--agent claude``); else what
it would be started with is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import runtime.embedded
from tests.support.browser import launched
from tests.support.gateway_soak import say
from tests.support.nodes import ROOT, free_port
from tests.support.waiting import eventually

WITHIN_S = 900.0
PAGE_MS = 60_000


@dataclass
class Newcomer:
    """The home, the environment and the steps so far."""

    home: Path
    bin: Path
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        return kept | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "LLAMA_ACTORS_PORT": str(self.admin_port),
        }

    def run(self, *words: str) -> str:
        """What a command prints; raises where it fails."""
        done = subprocess.run(
            words, env=self.environment, cwd=self.home, timeout=WITHIN_S, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    def get(self, path: str, **headers: str) -> str:
        asked = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return str(answer.read().decode())


@contextlib.contextmanager
def step(number: int, text: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"{number}. {text:72} {time.monotonic() - began:6.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--agent", default="claude")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        home = Path(folder) / "home"
        (home / "models").mkdir(parents=True)
        one = Newcomer(home, given.bin or home / "venv" / "bin")
        if given.bin is None:
            with step(1, "pip install llama-actors, into a new environment"):
                subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
                one.run("pip", "install", "--quiet", str(ROOT))
        try:
            _meet(one, given.agent)
        finally:
            with contextlib.suppress(AssertionError):
                one.run("llama-actors", "stop")
    say(f"all of it: {time.monotonic() - began:.0f} s")
    return 0


def _meet(one: Newcomer, agent: str) -> None:
    with step(2, 'llama-actors run demo "Once upon a time"'):
        assert len(one.run("llama-actors", "run", "demo", "Once upon a time")) > 40
    one.run("llama-actors", "stop")
    command = ["llama-actors", "serve", "--gateway", f"127.0.0.1:{one.port}",
               "--models-dir", str(one.home / "models")]  # fmt: skip
    with _serving(one, command):
        with step(3, "llama-actors serve --gateway … --models-dir models, until it answers"):
            eventually(_answers(lambda: one.get("/v1/models")), within_s=120, what="it answers")
        with step(4, "the page, in a browser, with the tree of processes"), launched() as browser:
            page = browser.new_page()
            page.goto(f"{one.url}/")
            tree = page.get_by_role("tabpanel", name="Tree")
            tree.get_by_role("row", name="registry").wait_for(timeout=PAGE_MS)
        shutil.copy(runtime.embedded.path(), one.home / "models" / "tale.gguf")
        with step(5, "a model added: its file copied into models, seen, loaded, answers"):
            eventually(_answers(lambda: json.dumps("tale") in one.get("/v1/models")), within_s=60)
            told = one.run("llama-actors", "complete", "tale", "The owl", "--max-tokens", "8")
            assert told.strip()
        _attach(one, agent)
        _kill_under_a_stream(one)
        with step(8, "curl …/metrics"):
            assert "llama_actors_generation_tokens_total{" in one.get("/metrics")


def _attach(one: Newcomer, agent: str) -> None:
    launch = ("llama-actors", "launch", agent, "--model", "tale")
    if shutil.which(agent, path=one.environment["PATH"]) is None:
        with step(6, f"llama-actors launch {agent} --print ({agent} is not installed here)"):
            assert one.url in one.run(*launch, "--print")
        return
    with step(6, f"llama-actors launch {agent} -- --version"):
        assert one.run(*launch, "--", "--version")


def _kill_under_a_stream(one: Newcomer) -> None:
    body = {"model": "tale", "prompt": "Once", "max_tokens": 1500, "ignore_eos": True,
            "stream": True, "seed": 4}  # fmt: skip
    asked = urllib.request.Request(
        f"{one.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with step(7, "the node's root killed under a stream, which goes on to its end"):
        with urllib.request.urlopen(asked, timeout=120) as answer:
            data = answer.read(4000)
            root = json.loads(one.run("llama-actors", "tree", "--json"))
            os.kill(_pid(root, "root"), signal.SIGKILL)
            data += answer.read()
        assert data.count(b"data: [DONE]") == 1, data[-300:]


def _pid(tree: dict[str, object], wanted: str) -> int:
    rest: list[dict[str, object]] = [tree]
    while rest:
        node = rest.pop()
        if node.get("id") == wanted:
            return int(str(node["pid"]))
        children = node.get("children", [])
        rest += children if isinstance(children, list) else []
    raise AssertionError(f"there is no {wanted}")


def _answers(ask: Callable[[], object]) -> Callable[[], bool]:
    def probe() -> bool:
        try:
            return bool(ask())
        except OSError:
            return False

    return probe


@contextlib.contextmanager
def _serving(one: Newcomer, command: list[str]) -> Iterator[None]:
    serving = subprocess.Popen(
        command, env=one.environment, cwd=one.home, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        serving.terminate()
        serving.wait(60)


if __name__ == "__main__":
    sys.exit(main())
