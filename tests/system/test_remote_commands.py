"""Commands on a gateway elsewhere: each prints what it prints on a node of this machine."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from native._stub_adapters import MAGIC
from runtime import ModelConfig
from runtime.cli.main import main
from runtime.gateway.keys import new_key
from tests.support.gateways import Gateway, gateway_node
from tests.support.nodes import ROOT
from tests.support.runtime_nodes import LeakCheck, inflight_status, one_thread
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

STORY = "The old lighthouse keeper counted the waves and wrote each number in a blue book. " * 8
KEYS = {name: new_key() for name in ("boss", "alice", "slow")}
MORE = {"boss": "admin = true", "alice": 'models = ["demo"]', "slow": "requests_per_min = 1"}
FILE = "".join(
    f'[keys.{name}]\nsha256 = "{digest}"\n{MORE[name]}\nnamespace = "shared"\n'
    for name, (_, digest) in KEYS.items()
)
VARIES = re.compile(
    r'"(uptime_s|memory_bytes|mailbox|turns|silent_s|busy_s|busy_with|\w+_ms|tokens_per_second|'
    r'per_second|created_unix_s|last_used_unix_s|last_use|expires_at)": [^,}\n]+'
)
AGE = re.compile(r" +\d+s +|takes \S+ \w+")
"""In a table: ages, and memory."""


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


class Both:
    """One node, asked on its port and by its gateway."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.gateway = gateway
        self.node = gateway.node
        self.folder = folder
        self.here = {
            "LLAMA_ACTORS_PORT": str(gateway.node.port),
            "LLAMA_ACTORS_RUNTIME_DIR": str(folder / "run"),
        }

    def there(self, key: str | None = "boss") -> dict[str, str]:
        named = {} if key is None else {"LLAMA_ACTORS_KEY": KEYS[key][0]}
        return {"LLAMA_ACTORS_URL": self.gateway.url, **named}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("remote")
    keys_file = folder / "keys.toml"
    keys_file.write_text(FILE)
    models = {
        "demo": None,
        "tiny": one_thread(tiny_gguf),
        "stub": ModelConfig("stub", backend="stub"),
    }
    with (
        LeakCheck() as leaks,
        gateway_node(folder, models, keys_file=str(keys_file), keepalive_s=0.2) as found,
    ):
        leaks.watch(found.node)
        yield Both(found, folder)
        leaks.watch(found.node)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def play(where: dict[str, str], *words: str, said: str = "") -> Ran:
        with monkeypatch.context() as patch:
            for name in ("LLAMA_ACTORS_URL", "LLAMA_ACTORS_KEY", "LLAMA_ACTORS_PORT"):
                patch.delenv(name, raising=False)
            for name, value in where.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.StringIO(said))
            code = main(words)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return play


def steady(text: str) -> str:
    """Without times and other numbers that change from one look to the next."""
    return AGE.sub(" … ", VARIES.sub(r'"\1": …', text))


# ── replies ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [
        ("complete", "demo", "Once upon a time", "--max-tokens", "12"),
        ("complete", "demo", "Once", "--temperature", "0.9", "--seed", "7", "--max-tokens", "9"),
        ("complete", "demo", "Once", "--echo", "--max-tokens", "3"),
        ("complete", "demo", "A fox", "A hen", "--n", "2", "--seed", "3", "--max-tokens", "4"),
        ("complete", "demo", "The fox", "--logit-bias", "the=never", "--max-tokens", "6"),
        ("complete", "demo", "Once", "--max-tokens", "0"),
        ("infill", "tiny", "a", "b", "--max-tokens", "3"),
        ("tokenize", "demo", "Once upon a time, é"),
        ("tokenize", "demo", "Once", "--json", "--bare"),
        ("tokenize", "demo", '[{"role": "user", "content": "Hi"}]', "--chat"),
        ("embed", "tiny", "a fox", "an owl", "--json", "--pooling", "mean"),
        ("embed", "tiny", "a fox", "--raw"),
        ("rerank", "tiny", "a bird", "an owl", "a spade"),
        ("complete", "absent", "x"),
        ("complete", "demo", "x", "--top-p", "7"),
        ("complete", "demo", "x", "--session", "s", "--n", "2"),
        ("complete", "demo", "x", "--timeout", "0"),
        ("complete", "demo", "x " * 5000),
        ("complete", "demo", ""),
        ("embed", "demo", "a fox", "--pooling", "cls"),
        ("rerank", "demo", "a", "b"),
        ("infill", "demo", "a", "b"),
        ("unload", "absent"),
        ("complete", "demo", "x", "--parent-key", "zz"),
    ],
    ids=lambda words: " ".join(words)[:60],
)  # fmt: skip
def test_a_command_prints_the_same_there(both: Both, run: Run, words: tuple[str, ...]) -> None:
    here, there = run(both.here, *words), run(both.there(), *words)
    assert (there.code, there.out) == (here.code, here.out), there.err
    if words[:2] == ("complete", "absent"):  # the gateway names what there is
        assert "there is no model 'absent'; there are: demo, stub, tiny" in there.err
    else:
        assert there.err == here.err


def test_the_json_of_a_completion_has_the_same_keys_and_counts(both: Both, run: Run) -> None:
    words = ("complete", "demo", STORY, "--json", "--logprobs", "2", "--max-tokens", "4")
    run(both.here, *words)
    here, there = run(both.here, *words).json, run(both.there(), *words).json
    del here["finish_key"], there["finish_key"]  # null of a reply that was stored before
    for changing in ("cache", "timings", "usage"):  # the rows of a key are its own
        assert there.pop(changing).keys() == here.pop(changing).keys()
    assert there == here
    again = run(both.there(), *words).json
    assert again["usage"]["cached_tokens"] > 100
    assert again["timings"]["ttft_ms"] > 0


def test_a_session_goes_on_and_its_finish_key_can_be_continued(both: Both, run: Run) -> None:
    first = run(
        both.there(), "complete", "demo", STORY, "--session", "far", "--max-tokens", "3", "--json"
    ).json
    words = ("complete", "demo", " and", "--continue", "--max-tokens", "3", "--json")
    more = run(both.there(), *words, "--session", "far").json
    assert more["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    keyed = run(both.there(), *words, "--parent-key", first["finish_key"])
    assert keyed.code == 0, keyed.err


def test_a_stream_that_is_late_fails_there_as_here(both: Both, run: Run) -> None:
    words = ("complete", "demo", "Once", "--logit-bias", "5=never", "--timeout", "0.4")
    here, there = run(both.here, *words), run(both.there(), *words)
    tokens = re.compile(r"\d+ tokens")
    assert (there.code, here.code) == (1, 1)
    assert tokens.sub("", there.err) == tokens.sub("", here.err)


def test_a_grammar_a_schema_and_a_template_travel(both: Both, run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    words = ("complete", "demo", "Well?", "--json-schema", str(schema))
    here, there = run(both.here, *words), run(both.there(), *words)
    assert json.loads(there.out) in ("yes", "no")
    assert there == here
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    chat = ("chat", "demo", "--max-tokens", "5", "--chat-template-file", str(template))
    assert run(both.there(), *chat, said="Once upon\n") == run(both.here, *chat, said="Once upon\n")
    refused = run(both.there("alice"), *chat, said="Once upon\n")
    assert refused.code == 1
    assert "only a key with admin = true may send a chat template" in refused.err


def test_a_chat_of_several_turns(both: Both, run: Run) -> None:
    words = ("chat", "demo", "--system", "You tell stories.", "--max-tokens", "8")
    said = "Tell me of a fox.\n/stats\nAnd then?\n"
    here, there = run(both.here, *words, said=said), run(both.there("alice"), *words, said=said)
    assert (there.code, there.out) == (here.code, here.out) == (0, there.out)
    assert "2 messages, 1 answers of" in there.err


def test_ctrl_c_cancels_what_runs_there(both: Both) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "runtime", "complete", "demo", "Once"),
            *("--logit-bias", "5=never", "--max-tokens", "3000"),
        ],
        cwd=ROOT, env={**os.environ, **both.there()}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        assert process.stdout.read(1)  # text comes before the end
        assert inflight_status(both.node)["in_flight"] == 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == b""
    eventually(
        lambda: inflight_status(both.node)["in_flight"] == 0 or None, what="it is cancelled there"
    )


# ── the node ─────────────────────────────────────────────────────────────────────────────────────


def test_models_status_and_tree(both: Both, run: Run) -> None:
    for words in (("models",), ("models", "--json")):
        here, there = run(both.here, *words), run(both.there(), *words)
        assert there.code == 0, there.err
        assert steady(there.out) == steady(here.out)
    here, there = (
        run(both.here, "status", "--json").json,
        run(both.there(), "status", "--json").json,
    )
    assert there["node"] == here["node"]
    assert there["actors"].keys() == here["actors"].keys()
    assert run(both.there(), "status").out.startswith(f"node on port {both.node.port}, launcher")
    here, there = run(both.here, "tree", "--json"), run(both.there(), "tree", "--json")
    assert steady(there.out) == steady(here.out)
    columns = run(both.there(), "tree").out.splitlines()
    assert columns[0].split() == run(both.here, "tree").out.splitlines()[0].split()


def test_models_are_loaded_and_unloaded(both: Both, run: Run, tiny_gguf: Path) -> None:
    words = ("--n-ctx", "512", "--threads", "1", "--exact", "prefix")
    loaded = run(both.there(), "load", f"more={tiny_gguf}", *words)
    assert loaded.code == 0, loaded.err
    assert loaded.err.startswith("loaded more: ")
    details = both.node.client.model_info("more").details
    assert details["n_ctx"] == 512
    taken = run(both.there(), "load", f"more={tiny_gguf}")
    assert taken == run(both.here, "load", f"more={tiny_gguf}")
    assert taken.code == 1
    broken = both.folder / "broken.gguf"
    broken.write_bytes(b"GGUF nothing")
    assert run(both.there(), "load", f"bad={broken}") == run(both.here, "load", f"bad={broken}")
    relative = run(both.there(), "load", "bad=models/x.gguf")
    assert relative.code == 2
    assert "'models/x.gguf'" not in relative.err or "machine" in relative.err
    assert run(both.there(), "unload", "more", "--drain", "1") == Ran(0, "", "")
    assert run(both.there(), "unload", "more") == run(both.here, "unload", "more")


def test_adapters(both: Both, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "lora.bin"
    file.write_bytes(MAGIC + b"one")
    loaded = run(both.there(), "adapters", "stub", "--load", str(file), "--scale", "0.5", "--json")
    assert loaded.code == 0, loaded.err
    assert loaded == run(both.here, "adapters", "stub", "--json")
    number = str(loaded.json[0]["id"])
    changed = run(both.there(), "adapters", "stub", "--set", number, "--scale", "0.25")
    assert "scale 0.25" in changed.out
    gone = run(both.there(), "adapters", "stub", "--unload", number)
    assert gone == run(both.here, "adapters", "stub")
    wrong = ("adapters", "stub", "--load", str(tmp_path / "nothing"))
    assert run(both.there(), *wrong) == run(both.here, *wrong)


# ── the cache ────────────────────────────────────────────────────────────────────────────────────


def test_the_cache_is_shown_checked_and_cleared(both: Both, run: Run) -> None:
    run(both.here, "cache", "wipe", "--yes")
    for number in range(3):
        run(both.there(), "complete", "tiny", f"{STORY} Then {number}.", "--max-tokens", "2")
    assert run(both.there(), "cache", "flush", "--json").json == {"flushed": True}
    assert run(both.there(), "cache", "flush") == Ran(0, "", "")
    rows = run(both.here, "cache", "ls", "--limit", "0", "--json").out
    assert len(rows.splitlines()) > 5
    for words in (
        ("cache", "ls"), ("cache", "ls", "--limit", "0", "--json"), ("cache", "ls", "--limit", "2"),
        ("cache", "ls", "--older-than", "7d"), ("cache", "ls", "--newer-than", "1h", "--json"),
        ("cache", "ls", "--model", "absent"), ("cache", "stat"), ("cache", "stat", "--json"),
        ("cache", "verify"), ("cache", "verify", "--json", "--repair"), ("cache", "gc", "--json"),
        ("cache", "gc", "--quarantine-age", "1h"), ("cache", "show", "abc"),
        ("cache", "show", "zzzz"), ("cache", "show", "0123456789"), ("cache", "rm", "abcd"),
        ("cache", "wipe"), ("cache", "wipe", "--model", "absent", "--yes"),
    ):  # fmt: skip
        here, there = run(both.here, *words), run(both.there(), *words)
        assert steady(there.out) == steady(here.out), words
        assert (there.code, there.err) == (here.code, here.err), words
    key = json.loads(rows.splitlines()[0])["key"]
    for words in (("cache", "show", key[:12]), ("cache", "show", key, "--json")):
        assert run(both.there(), *words) == run(both.here, *words)
    removed = run(both.there(), "cache", "rm", key[:16], "--yes", "--json").json
    assert removed["rows"] >= 1
    wiped = run(both.there(), "cache", "wipe", "--yes")
    assert wiped.code == 0
    assert run(both.there(), "cache", "ls").err == "no rows\n"


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_asked_for_and_tells_what_it_may_not_do(
    both: Both, run: Run, tmp_path: Path
) -> None:
    none = run(both.there(None), "models")
    assert none.code == 1
    assert f"the gateway at {both.gateway.url} wants a key: name one with --key-file" in none.err
    wrong = run(both.there(None), "models", "--key", "la-wrong")
    assert "does not take this key (this gateway does not know that key)" in wrong.err
    assert "la-wrong" not in wrong.err
    other = run(both.there("alice"), "models")
    assert "refused this: only a key with admin = true may do that" in other.err
    model = run(both.there("alice"), "complete", "tiny", "x")
    assert "may not use the model 'tiny'; it may use: demo" in model.err
    words = ("complete", "demo", "x", "--max-tokens", "1")
    run(both.there("slow"), *words)
    limited = run(both.there("slow"), *words)
    assert limited.code == 1
    assert "the limit of this key at" in limited.err
    assert "try again after " in limited.err
    file = tmp_path / "key"
    file.write_text(KEYS["boss"][0] + "\n")
    assert run(both.there(None), "models", "--key-file", str(file)).code == 0
    assert run({}, "models", "--url", both.gateway.url, "--key-file", str(file)).code == 0


def test_a_command_for_this_machine_alone_refuses_a_gateway(both: Both, run: Run) -> None:
    for words in (("stop",), ("evict", "demo"), ("cache", "pressure"), ("bench", "demo")):
        refused = run(both.there(), *words)
        assert refused.code == 2
        assert "LLAMA_ACTORS_URL: names a gateway" in refused.err
    port = str(both.node.port)
    run_dir = {"LLAMA_ACTORS_RUNTIME_DIR": both.here["LLAMA_ACTORS_RUNTIME_DIR"]}
    assert run({**both.there(), **run_dir}, "models", "--admin-port", port).code == 0
    clash = run({}, "models", "--url", both.gateway.url, "--admin-port", port)
    assert (clash.code, "name two nodes" in clash.err) == (2, True)
