"""The commands that use models: in this process where possible, at a terminal where needed."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from native._stub_adapters import MAGIC
from runtime import Node
from runtime.cli.main import COMPLETE_VARIABLE, main
from tests.support.nodes import ROOT
from tests.support.runtime_nodes import LeakCheck, started
from tests.support.screens import Screen

pytestmark = pytest.mark.system

STORY = "Once upon a time there was a small fox"
ENDLESS = ("--logit-bias", "5=never", "--max-tokens", "3000")
"""Without the token that ends a turn; long enough to be stopped."""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Node]:
    with LeakCheck() as leaks, started(folder) as node:
        node.load("demo", n_threads=1)
        node.load("stub", "stub", backend="stub")
        leaks.watch(node)
        yield node
        leaks.watch(node)


@pytest.fixture
def environment(folder: Path, host: Node) -> dict[str, str]:
    return {
        "LLAMA_ACTORS_PORT": str(host.port),
        "LLAMA_ACTORS_RUNTIME_DIR": str(folder / "run"),
    }


@pytest.fixture
def run(
    environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def play(*words: str, said: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        code = main(words)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return play


# ── complete ─────────────────────────────────────────────────────────────────────────────────────


def test_complete_takes_every_option(run: Run, host: Node, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}', encoding="utf-8")
    ran = run(
        "complete", "demo", STORY, "--json", "--json-schema", str(schema), "--logprobs", "2",
        "--temperature", "0.7", "--seed", "4", "--speculation", "ngram", "--session", "cli",
        "--exact", "prefix",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    done = json.loads(ran.out)
    assert json.loads(done["text"]) in ("yes", "no")
    assert len(done["logprobs"][0]["top_logprobs"]) == 2
    assert done["cache"]["exact"] == "prefix"
    more = run(
        "complete", "demo", " and", "--session", "cli", "--continue", "--max-tokens", "3", "--json"
    )
    assert json.loads(more.out)["usage"]["cached_tokens"] > 8
    forgotten = run("evict", "demo", "--session", "cli", "--json")
    assert json.loads(forgotten.out) == {"session": "cli", "was_known": True}
    plain = run("complete", "demo", "-", "--max-tokens", "4", said=STORY)
    assert plain.out == host.complete("demo", STORY, max_tokens=4).text + "\n"
    assert plain.err == ""
    read = run("complete", "demo", STORY, "--max-tokens", "0")
    assert (read.code, read.out) == (0, "")


def test_complete_prints_several_replies_and_the_prompt_before_each(run: Run, host: Node) -> None:
    hot = {"max_tokens": 4, "temperature": 0.9, "seed": 3}
    words = ("--max-tokens", "4", "--temperature", "0.9", "--seed", "3")
    prompts = [STORY, "The hen"]
    expected = [one.text for one in host.complete_many("demo", prompts, n=2, **hot)]
    ran = run("complete", "demo", *prompts, "--n", "2", *words)
    assert ran.out == "".join(f"{text}\n" for text in expected)
    assert ran.err.splitlines() == [f"reply {number} of 4:" for number in (1, 2, 3, 4)]
    ran = run("complete", "demo", *prompts, "--n", "2", "--json", "--echo", *words)
    objects = [json.loads(line)["text"] for line in ran.out.splitlines()]
    before = [STORY, STORY, "The hen", "The hen"]
    assert objects == [a + b for a, b in zip(before, expected, strict=True)]
    assert run("complete", "demo", STORY, "--echo", *words).out == f"{STORY}{expected[0]}\n"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("complete", "demo", "x", "--n", "0"), 2, "from 1 to 128"),
        (("complete", "demo", "x", "y", "--session", "s"), 2, "one reply at a time"),
        (("complete", "demo", "x", "--samplers", "kq"), 2, "samplers"),
        (("complete", "demo", "x", "--echo", "--continue", "--session", "s"), 2, "echo"),
        (("complete", "demo", "x", "--json-schema", "/nowhere.json"), 2, "cannot read"),
        (("complete", "demo", "x", "--continue"), 2, "session or a parent_key"),
        (("complete", "demo", "x", "--speculation", "draft"), 1, "draft_path"),
        (("complete", "demo", "x", "--exact", "sometimes"), 2, "'repeat', 'prefix', 'always'"),
        (("complete", "demo", "x", "--logit-bias", "fox"), 2, "TOKEN=NUMBER"),
        (("complete", "demo", "x", "--top-p", "9"), 2, "top_p"),
        (("tokenize", "nobody", "x"), 1, "nobody"),
        (("tokenize", "demo", "{", "--chat"), 2, "JSON"),
        (("embed", "demo", ""), 2, "no text"),
        (("chat", "demo", "--load", "/nowhere.json"), 2, "nowhere"),
        (("bench", "demo", "-p", "1"), 2, "at least 2"),
        (("adapters", "stub", "--load", "/nowhere"), 2, "nowhere"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_an_error_is_printed_and_has_an_exit_code(
    run: Run, words: tuple[str, ...], code: int, error: str
) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (code, ""), ran
    assert error in ran.err


# ── tokenize, embed, adapters, evict, bench ──────────────────────────────────────────────────────


def test_tokenize_shows_ids_and_pieces(run: Run, host: Node) -> None:
    ids = host.tokenize("demo", "a fox ☃")
    lines = run("tokenize", "demo", "a fox ☃").out.splitlines()
    assert lines[-1] == f"{len(ids)} tokens"
    assert [int(line.split()[0]) for line in lines[:-1]] == ids
    plain = json.loads(run("tokenize", "demo", "-", "--json", said="a fox").out)
    assert plain["tokens"] == host.tokenize("demo", "a fox")
    assert "".join(plain["pieces"][1:]) == "a fox"
    assert plain["count"] == len(plain["tokens"])
    bare = json.loads(run("tokenize", "demo", "<|user|>", "--bare", "--special", "--json").out)
    assert (bare["count"], bare["pieces"]) == (1, ["<|user|>"])
    talk = [{"role": "user", "content": "Hi"}]
    chat = json.loads(run("tokenize", "demo", json.dumps(talk), "--chat", "--json").out)
    assert tuple(chat["tokens"]) == host.apply_chat_template("demo", talk).tokens


def test_embed_prints_a_vector_a_line(run: Run, host: Node) -> None:
    lines = run("embed", "demo", "-", "--lines", said="a fox\nan owl\n").out.splitlines()
    found = host.embed("demo", ["a fox", "an owl"])
    assert len(lines) == 2
    assert [float(one) for one in lines[0].split()] == pytest.approx(list(found.vectors[0]), 1e-5)
    plain = json.loads(run("embed", "demo", "a fox", "--pooling", "none", "--json").out)
    assert plain["rows"] == [len(plain["vectors"])] == [plain["n_tokens"]]
    assert len(plain["vectors"][0]) == plain["n_embd"] == found.n_embd


def test_adapters_and_evict_change_a_model_that_runs(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.write_bytes(MAGIC + b"1")
    assert "has no adapter" in run("adapters", "stub").err
    (one,) = json.loads(run("adapters", "stub", "--load", str(path), "--scale", "2", "--json").out)
    assert (one["scale"], one["path"]) == (2.0, str(path))
    assert "scale 0.5" in run("adapters", "stub", "--set", str(one["id"]), "--scale", "0.5").out
    assert run("adapters", "stub", "--unload", str(one["id"])).code == 0
    run("complete", "demo", STORY * 3, "--max-tokens", "1")
    assert json.loads(run("evict", "demo", "--json").out)["sequences"] >= 1
    assert run("evict", "demo").out == "0 sequences freed\n"


def test_bench_measures_cold_and_warm(run: Run) -> None:
    ran = run("bench", "demo", "-p", "128", "-n", "8", "-r", "1", "--json")
    assert ran.code == 0, ran.err
    rows = {row["test"]: row for row in json.loads(ran.out)["rows"]}
    assert list(rows) == ["pp128", "pp128 warm: in context", "pp128 warm: stored", "tg8"]
    assert rows["pp128"]["cached_tokens"] == 0
    assert rows["pp128 warm: in context"]["cached_tokens"] == 128
    assert rows["pp128 warm: stored"]["cached_tokens"] == 128
    assert all(row["mean"] > 0 for row in rows.values())
    table = run("bench", "demo", "-p", "16", "-n", "2", "-r", "2").out
    assert "pp16 warm: stored" in table
    assert " ± " in table


def test_a_shell_is_offered_the_models_of_the_running_node(environment: dict[str, str]) -> None:
    line = "llama-actors complete "
    done = subprocess.run(
        [sys.executable, "-m", "runtime"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | environment | {
            COMPLETE_VARIABLE: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "2",
        },
    )  # fmt: skip
    assert sorted(done.stdout.split()) == ["plain,demo", "plain,stub"]


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────


def test_chat_in_a_pipe_takes_a_line_for_a_turn(run: Run, host: Node, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    lines = ["Hello", "How are you?", "/stats", f"/save {kept}", "/reset", "/stats", "/exit", "no"]
    ran = run("chat", "demo", "--system", "Be kind.", "--max-tokens", "9", said="\n".join(lines))
    assert ran.code == 0, ran.err
    first = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    answer = host.chat("demo", first, max_tokens=9).text
    messages = json.loads(kept.read_text(encoding="utf-8"))["messages"]
    assert messages[:2] == first
    assert messages[2] == {"role": "assistant", "content": answer}
    assert [one["role"] for one in messages[3:]] == ["user", "assistant"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert ran.out == f"{answer}\n{messages[4]['content']}\n"
    stats = ran.err.splitlines()
    assert stats[0].startswith("4 messages, 2 answers")
    assert "% of them warm" in stats[0]
    assert stats[1].startswith("0 messages, 0 answers")

    again = run("chat", "demo", "--load", str(kept), "--max-tokens", "5", said="/stats\n/system\n")
    assert again.err.splitlines()[0].startswith("4 messages")
    assert again.err.splitlines()[1] == "Be kind."


def test_a_turn_that_fails_is_removed_and_the_next_one_is_answered(run: Run, host: Node) -> None:
    ran = run("chat", "demo", "--max-tokens", "5", said="word " * 9000 + "\nHello\n/nope\n/load\n")
    assert ran.code == 1
    expected = host.chat("demo", [{"role": "user", "content": "Hello"}], max_tokens=5).text
    assert ran.out == expected + "\n"
    assert "n_ctx" in ran.err
    assert "there is no /nope" in ran.err
    assert run("chat", "stub", said="Hello\n").code == 1
    assert run("chat", "nobody", said="Hello\n").code == 1


def test_ctrl_c_stops_the_answer_and_not_the_program(environment: dict[str, str]) -> None:
    words = [sys.executable, "-m", "runtime", "chat", "demo", *ENDLESS]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT, env=os.environ | environment,
    ) as talk:  # fmt: skip
        assert talk.stdin
        assert talk.stdout
        assert talk.stderr
        talk.stdin.write("Tell me a story about a fox.\n")
        talk.stdin.flush()
        assert talk.stdout.read(1)
        talk.send_signal(signal.SIGINT)
        talk.stdin.write("/stats\n/exit\n")
        talk.stdin.close()
        out, err = talk.stdout.read(), talk.stderr.read()
        assert talk.wait(60) == 0
    assert out.endswith("\n")
    assert err.startswith("2 messages, 1 answers"), err
    n_said = int(err.split(" answers of ")[1].split()[0])
    assert n_said < 3000


def test_at_a_terminal_it_prompts_remarks_and_survives_ctrl_c(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "runtime", "chat", "demo", "--max-tokens", "6"]
    with subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
        env=os.environ | environment | {"TERM": "dumb"},
    ) as talk:  # fmt: skip
        os.close(theirs)
        try:
            screen = Screen(ours)
            screen.read_until("> ")
            os.write(ours, b"Hello\n")
            screen.read_until("\x1b[2m[")
            screen.read_until("tokens warm")
            screen.read_until("> ")
            # Python's input() leaves a signal unhandled until the next one or the next key where it
            # comes between the prompt and the wait for keys.
            for _ in range(30):
                talk.send_signal(signal.SIGINT)
                if screen.shows("Ctrl-D leaves", within_s=1.0):
                    break
            else:
                pytest.fail("Ctrl-C at the prompt had no effect")
            os.write(ours, b"/exit\n")
            assert talk.wait(60) == 0
        finally:
            talk.kill()
            os.close(ours)
