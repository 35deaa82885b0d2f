"""The command line without a node: help, wrong usage, completion, the reference."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from runtime.cli.commands import COMMANDS
from runtime.cli.main import COMPLETE_VARIABLE, main
from runtime.cli.reference import commands, markdown
from runtime.cli.table import Column, plain_table, write_table

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]


def completed(tmp_path: Path, line: str, shell: str = "bash") -> list[str]:
    """What the shell is offered for the last word of the line; no node runs."""
    words = line.split(" ")
    environment = os.environ | {
        COMPLETE_VARIABLE: f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "runtime"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("llama-actors co", ["plain,complete", "plain,config", "plain,completion"]),
        ("llama-actors cache ver", ["plain,verify"]),
        ("llama-actors cache ls --older", ["plain,--older-than"]),
        ("llama-actors serve --log-format ", ["plain,text", "plain,json"]),
        ("llama-actors load --type-k q4", ["plain,q4_0"]),
        ("llama-actors inspect mod", ["file,mod"]),
        ("llama-actors run de", ["plain,demo"]),
        ("llama-actors show ./mod", ["file,./mod"]),
        ("llama-actors run demo --pu", ["plain,--pull"]),
        ("llama-actors evict ", [""]),
        ("llama-actors nonsense x", [""]),
    ],
)
def test_a_shell_is_offered_what_fits(tmp_path: Path, line: str, offered: list[str]) -> None:
    assert completed(tmp_path, line) == offered


def test_zsh_shows_the_help_of_each_candidate(tmp_path: Path) -> None:
    assert completed(tmp_path, "llama-actors unl", "zsh") == ["plain", "unload", "unload a model"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"{COMPLETE_VARIABLE}={shell}_complete" in script
    assert "llama-actors" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "Missing command."),
        (["cache"], "Missing command."),
        (["frobnicate"], "No such command 'frobnicate'."),
        (["unload"], "Missing argument 'MODEL'."),
        (["load", "a=b", "--n-ctx", "many"], "Invalid value for '--n-ctx': 'many' is not"),
        (["cache", "ls", "--older-than", "old"], "Invalid value for '--older-than': 'old' is not"),
        (["load", "a=b", "--tensor-split", "x"], "Invalid value for '--tensor-split': 'x' is not"),
        (["adapters", "m", "--set", "1", "--unload", "1"], "give one of --load, --set and"),
        (["unload", "m", "--drian", "1"], "No such option '--drian'."),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_error_below_the_usage(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    usage, last = err.splitlines()
    assert out == ""
    assert usage.startswith("Usage: python -m runtime")
    assert last.startswith(f"error: {error}")


def test_the_reference_has_every_command_and_option() -> None:
    text = markdown()
    for context in commands():
        assert f"# {context.command_path}\n" in text
        for option in context.command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert all(f"`{flag}" in text or f" {flag}" in text for flag in option.opts)
    assert set(COMMANDS) <= {context.info_name for context in commands()}
    assert "--ready-fd" not in text


def test_a_table_on_a_terminal_has_headings_and_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    write_table((Column("NAME"), Column("N", right=True)), [("[a]", "1")], headings=False)
    assert "NAME" in out.getvalue()
    assert "[a]" in out.getvalue()  # markup in a name stays text
    assert "─" in out.getvalue()


def test_a_table_for_a_report_is_markdown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    write_table((Column("test"), Column("ms", right=True)), [("a", "1")], markdown=True)
    assert capsys.readouterr().out == "| test | ms |\n| ---- | -: |\n| a | 1 |\n"


def test_a_table_in_a_pipe_is_aligned_and_plain() -> None:
    columns = (Column("NAME", 6), Column("N", right=True))
    assert plain_table(columns, [("a", "1"), ("bb", "20")]) == (
        "NAME     N\na        1\nbb      20\n"
    )
