"""``run``, ``ls``, ``show`` and ``rm``: from a name to an answer, with a node that stays."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime.embedded
from runtime import Node
from runtime.cli.main import main
from tests.support import hub as hubs
from tests.support.nodes import ROOT, free_port, port_is_free
from tests.support.runtime_nodes import LeakCheck, cli
from tests.support.screens import Screen

pytestmark = pytest.mark.system

NAME = "org/story-GGUF"
FEW = ("--max-tokens", "8", "--threads", "1")


class Home:
    """A user's machine: folders, a port, a hub on the loopback, and perhaps a node."""

    def __init__(self, folder: Path, hub: hubs.Hub) -> None:
        self.folder = folder
        self.hub = hub
        self.port = free_port()
        self.variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "HOME": str(folder),
            "LLAMA_ACTORS_STORE": str(folder / "store"),
            "LLAMA_ACTORS_MODELS_DIR": str(folder / "models"),
            "LLAMA_ACTORS_PORT": str(self.port),
            "LLAMA_ACTORS_RUNTIME_DIR": str(folder / "run"),
            "NO_PROXY": "127.0.0.1,localhost",
            "OLLAMA_MODELS": str(folder / "ollama"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def run(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        given = {"stdin": subprocess.DEVNULL} if "input" not in options else {}
        return cli(*words, env=self.variables, **given, **options)

    def node(self) -> Node:
        return Node.attach(self.port, runtime_dir=self.folder / "run")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One for the file; its node is started by the first ``run`` and stopped at the end."""
    demo = runtime.embedded.path().read_bytes()
    folder = tmp_path_factory.mktemp("machine")
    with hubs.serving() as hub, LeakCheck() as leaks:
        hub.repos[NAME] = hubs.Repo({"story-Q4_K_M.gguf": demo})
        home = Home(folder, hub)
        (folder / "models").mkdir()
        (folder / "models" / "mine.gguf").write_bytes(demo)
        put_ollama(folder / "ollama", demo + b"\0")  # other content, so another model
        assert port_is_free(home.port)
        yield home
        if not port_is_free(home.port):
            with home.node() as node:
                leaks.watch(node)
            assert home.run("stop").returncode == 0
        assert [one for one in (folder / "run").rglob("*") if one.is_file()] == []


@pytest.fixture
def home(machine: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The machine, and this process as a program of its user."""
    for name, value in machine.variables.items():
        monkeypatch.setenv(name, value)
    return machine


def put_ollama(root: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    manifest = root / "manifests/registry.ollama.ai/library/tale/latest"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))


# ── from nothing ────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_fetched_and_no_node_started_unasked(home: Home) -> None:
    done = home.run("run", NAME, "Why is the sky blue?")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: there is no {NAME} on this machine; `llama-actors pull {NAME}` fetches it from "
        "the hub\n"
    )
    assert home.hub.asked == []
    assert port_is_free(home.port)


def test_a_question_at_a_terminal_comes_first(home: Home) -> None:
    answers = ((b"n\n", "is not on this machine"), (b"y\n", "fetched org/story-GGUF:Q4_K_M"))
    for answer, then in answers:
        with Terminal(home, "run", NAME, "Once upon a time", *FEW) as (screen, fd, process):
            screen.read_until("Fetch 3.2 MiB of org/story-GGUF:Q4_K_M from http://127.0.0.1")
            assert home.hub.sent == 0
            os.write(fd, answer)
            screen.read_until("\n")
            screen.read_until(then, within_s=60)
            if answer == b"y\n":
                screen.read_until("started a node in the background", within_s=60)
                screen.read_until("Once upon a time", within_s=60)
            assert process.wait(60) == (1 if answer == b"n\n" else 0)
    assert home.hub.sent == (home.folder / "store" / NAME / "story-Q4_K_M.gguf").stat().st_size


def test_the_node_stays_and_is_warm(home: Home) -> None:
    asked = len(home.hub.asked)
    words = ("run", f"hf.co/{NAME}:Q4_K_M", "Once upon a time", *FEW, "--json")
    first, again = (json.loads(home.run(*words).stdout) for _ in range(2))
    assert again["text"] == first["text"]
    assert again["usage"]["cached_tokens"] > 0
    with home.node() as node:
        assert [one.id for one in node.models()] == ["story-Q4_K_M"]
    assert len(home.hub.asked) == asked
    log = home.folder / "state" / "llama-actors" / f"node-{home.port}.log"
    assert "node" in log.read_text()


@pytest.mark.parametrize(
    ("name", "model"),
    [("mine", "mine"), ("tale", "tale"), ("demo", "demo"), ("story-GGUF", "story-Q4_K_M")],
)
def test_every_name_gets_an_answer(
    home: Home, name: str, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", name, *FEW, "--", "Once", "upon", "a time"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("Once upon a time, there was a")
    assert "started" not in err
    with home.node() as node:
        assert model in {one.id for one in node.models()}


def test_a_prompt_from_a_pipe_and_a_file_of_parts(home: Home) -> None:
    path = str(home.folder / "models" / "mine.gguf")
    piped = home.run("run", path, *FEW, input="Once upon a time\n")
    assert piped.stdout.startswith("Once upon a time, there was")
    assert piped.stderr.startswith("note: mine is loaded already; options of loading hold after")
    empty = home.run("run", path, input="\n")
    assert (empty.returncode, empty.stderr) == (
        2,
        "error: standard input is empty; give a prompt\n",
    )


def test_a_model_without_a_chat_template_continues_the_text(
    home: Home, tiny_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny_gguf), "Hello", *FEW, "--json"]) == 0
    done = json.loads(capfd.readouterr().out)
    assert done["usage"]["completion_tokens"] == 8
    assert main(["run", "tiny", "Hello", "--system", "Be brief."]) == 1
    assert "tiny has no chat template" in capfd.readouterr().err
    other = home.folder / "tiny.gguf"
    other.write_bytes(tiny_gguf.read_bytes())
    assert main(["run", str(other), "Hello", *FEW]) == 0  # another file of that name
    with home.node() as node:
        ids = sorted(one.id for one in node.models() if one.id.startswith("tiny"))
    assert len(ids) == 2
    assert ids[0] == "tiny"


def test_aliases_and_models_of_the_settings_are_names(
    home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = home.folder / "settings.toml"
    settings.write_text(
        '[gateway.aliases]\n"claude-*" = "tale"\n'
        f'[models.own]\npath = "{home.folder / "models" / "mine.gguf"}"\nn_ctx = 512\n'
        "n_threads = 1\n"
    )
    for name in ("claude-any", "own"):
        words = ["run", name, "Once upon a time", "--max-tokens", "8", "--config", str(settings)]
        assert main(words) == 0
        assert capfd.readouterr().out.startswith("Once upon a time, there was")
    with home.node() as node:
        node.unload("mine")  # the file of `own`, which is loaded by its id now
    assert main(["run", "own", "Once", "--config", str(settings), "--threads", "2"]) == 2
    assert "has the settings of own; change them there" in capfd.readouterr().err
    assert main(["run", "own", "Once", "--config", str(settings), "--json"]) == 0
    with home.node() as node:
        assert node.model_info("own").details["params"]["n_ctx"] == 512


def test_a_chat_at_a_terminal(home: Home) -> None:
    with Terminal(home, "run", "demo", "--max-tokens", "6") as (screen, fd, process):
        screen.read_until("> ", within_s=60)
        os.write(fd, b"Hello\n")
        screen.read_until("tokens warm")
        screen.read_until("> ")
        os.write(fd, b"/exit\n")
        assert process.wait(60) == 0


# ── what there is ───────────────────────────────────────────────────────────────────────────────


def test_what_there_is_and_where_from(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert rows[0] == ["NAME", "SIZE", "QUANTISATION", "FROM", "PATH"]
    assert [(row[0], row[3], row[4]) for row in rows[1:]] == [
        (f"{NAME}:Q4_K_M", "Q8_0", "fetched"),
        ("mine", "Q8_0", "folder"),
        ("tale:latest", "Q8_0", "ollama"),
    ]
    assert main(["ls", "--json"]) == 0
    plain = json.loads(capfd.readouterr().out)
    assert plain[0]["repo"] == NAME
    assert plain[0]["revision"] == "1" * 40
    (digest,) = plain[0]["digests"].values()
    assert digest == f"sha256:{hashlib.sha256(runtime.embedded.path().read_bytes()).hexdigest()}"
    assert main(["show", NAME]) == 0
    shown = capfd.readouterr().out
    for words in (f"{NAME} at {home.hub.url}, fetched ", "1" * 40, digest, "6 layers of 192"):
        assert words in shown
    assert main(["show", "tale", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["origin"]["from"] == "ollama"


def test_what_is_not_removed(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    for name, why in {
        "tale": "tale:latest is Ollama's; `ollama rm tale:latest` removes it",
        "mine": "mine is a file of your own folder; remove",
        str(home.folder / "models" / "mine.gguf"): "is a file of your own; remove",
        "demo": "demo is part of this package",
        "nothing": "there is no model nothing on this machine",
        NAME: "is loaded as story-Q4_K_M; `llama-actors unload story-Q4_K_M` first",
    }.items():
        assert main(["rm", name, "--yes"]) == 1
        assert why in capfd.readouterr().err
    assert home.run("rm", NAME).returncode == 1


def test_removed_after_it_is_unloaded(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["unload", "story-Q4_K_M"]) == 0
    refused = home.run("rm", NAME)
    assert refused.returncode == 2
    assert "--yes removes it all the same" in refused.stderr
    with Terminal(home, "rm", NAME) as (screen, fd, process):
        screen.read_until("Remove org/story-GGUF:Q4_K_M, 3.2 MiB, from ", within_s=60)
        os.write(fd, b"n\n")
        assert process.wait(60) == 1
    assert (home.folder / "store" / NAME).is_dir()
    capfd.readouterr()
    assert main(["rm", NAME, "--yes"]) == 0
    assert capfd.readouterr().err == f"removed {NAME}:Q4_K_M, 3.2 MiB\n"
    assert list((home.folder / "store").iterdir()) == []


def test_what_is_not_whole_is_listed_and_removed(
    home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    partial = home.folder / "store" / NAME / ".partial"
    partial.mkdir(parents=True)
    (partial / "story-Q4_K_M.gguf.0123").write_bytes(b"x" * 2048)
    assert main(["ls"]) == 0
    assert f"note: 2.0 KiB of {NAME} are not whole yet; `pull` continues" in capfd.readouterr().err
    assert main(["rm", NAME, "--yes"]) == 0
    assert capfd.readouterr().err == f"removed the unfinished files of {NAME}, 2.0 KiB\n"
    assert list((home.folder / "store").iterdir()) == []


def test_two_commands_start_one_node(home: Home) -> None:
    with home.node() as node:
        node.stop()
    words = [sys.executable, "-m", "runtime", "run", "demo", "Once upon a time", *FEW]
    both = [
        subprocess.Popen(
            words, cwd=ROOT, env=os.environ | home.variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    ends = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert sum("started a node" in err for _, err in ends) == 1


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, home: Home, *words: str) -> None:
        self._home = home
        self._words = words

    def __enter__(self) -> tuple[Screen, int, subprocess.Popen[bytes]]:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "runtime", *self._words],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
            env=os.environ | self._home.variables | {"TERM": "dumb", "COLUMNS": "300"},
        )  # fmt: skip
        os.close(theirs)
        return Screen(self._ours), self._ours, self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(30)
        os.close(self._ours)
