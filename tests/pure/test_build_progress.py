"""The progress line of the build."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tools import build_progress
from tools.build_progress import Progress

pytestmark = pytest.mark.pure

STEPS = [f"  [{i}/40] Building CXX object src/file{i}.cpp.o\n" for i in range(1, 41)]


@pytest.fixture(autouse=True)
def log_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build_progress, "ROOT", tmp_path)
    monkeypatch.setattr(build_progress, "LOG", tmp_path / "build" / "build.log")
    return tmp_path / "build" / "build.log"


def test_a_terminal_sees_one_line_with_a_remaining_time() -> None:
    out = io.StringIO()
    progress = Progress(out, live=True)
    for line in ["Preparing metadata\n", *STEPS[:20]]:
        progress.feed(line)
    assert out.getvalue().count("\n") == 0
    last = out.getvalue().split("\r")[-1]
    assert last.startswith("building llama.cpp 20/40, about ")
    assert last.rstrip().endswith("s left")


def test_a_pipe_sees_a_start_and_an_end() -> None:
    out = io.StringIO()
    progress = Progress(out, live=False)
    progress.start()
    for line in STEPS:
        progress.feed(line)
    progress.finish(0)
    first, last = out.getvalue().splitlines()
    assert "about" in first
    assert "build.log" in first
    assert last.startswith("built in")


def run(code: str) -> int:
    return build_progress.main(["--", sys.executable, "-c", code])


def test_the_exit_code_of_the_command_is_returned(
    log_elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("print('fine')") == 0
    assert log_elsewhere.read_text() == "fine\n"
    assert "fine" not in capsys.readouterr().out
    assert run("import sys; sys.exit(7)") == 7


def test_a_failure_shows_the_last_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import sys\nfor i in range(100): print('line', i)\nsys.exit(1)") == 1
    shown = capsys.readouterr().out
    assert "line 60\n" in shown
    assert "line 99\n" in shown
    assert "line 59\n" not in shown
    assert "the build failed" in shown
