"""Show a package build as one line: ``build_progress.py -- uv pip install -v …``.

All output of the command is written to ``build/build.log``. On a terminal one line is updated:
``building llama.cpp 57/243, about 80 s left``. In a pipe there is a line at the start and one at
the end. If the command fails, the last lines of the log are shown and its exit code is returned.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "build.log"
_STEP = re.compile(r"^\s*(?:DEBUG )?\[(\d+)/(\d+)\] ")  # ninja's, as pip and uv pass it on
_SHOWN_ON_FAILURE = 40
_CPU_SECONDS = 240  # all of libllama: 122 s on 2 idle cores, gcc 12, x86-64
_MIN_STEPS = 5  # with fewer an estimate would be unstable


class Progress:
    """Turns the output of ninja into one line that is updated."""

    def __init__(self, out: TextIO, *, live: bool) -> None:
        self._out = out
        self._live = live
        self._started = time.monotonic()
        self._first_step_at: float | None = None
        self._shown = ""
        self.tail: deque[str] = deque(maxlen=_SHOWN_ON_FAILURE)

    def start(self) -> None:
        self._print(f"building: about {expected_duration()}; log in {LOG.relative_to(ROOT)}")

    def feed(self, line: str) -> None:
        self.tail.append(line)
        step = _STEP.match(line)
        if step and self._live:
            self._show(self._estimate(int(step[1]), int(step[2])))

    def finish(self, exit_code: int) -> None:
        seconds = time.monotonic() - self._started
        self._show("")
        if exit_code == 0:
            self._print(f"built in {seconds:.0f} s")
            return
        for line in self.tail:
            self._out.write(line)
        self._print(f"the build failed after {seconds:.0f} s; all of it is in {LOG}")

    def _estimate(self, done: int, total: int) -> str:
        now = time.monotonic()
        if self._first_step_at is None:
            self._first_step_at = now
        text = f"building llama.cpp {done}/{total}"
        if done < _MIN_STEPS:
            return text
        left = (now - self._first_step_at) / done * (total - done)
        return f"{text}, about {left:.0f} s left"

    def _show(self, text: str) -> None:
        if self._live:
            self._out.write("\r" + text.ljust(len(self._shown)) + ("" if text else "\r"))
            self._out.flush()
            self._shown = text

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def expected_duration() -> str:
    """How long the build will take: seconds when one was made here before."""
    if any((ROOT / "build").glob("*/.ninja_log")):
        return "10 s, more if sources changed"
    seconds = _CPU_SECONDS / len(os.sched_getaffinity(0))
    return f"{seconds:.0f} s on an idle machine, the first time only"


def follow(lines: Iterable[str], progress: Progress) -> None:
    """Copy ``lines`` to the log and feed each to ``progress``."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w", encoding="utf-8") as log:
        for line in lines:
            log.write(line)
            log.flush()
            progress.feed(line)


def main(argv: list[str]) -> int:
    """Run the command after ``--``; returns its exit code."""
    progress = Progress(sys.stdout, live=sys.stdout.isatty())
    progress.start()
    command = argv[1:] if argv[:1] == ["--"] else argv
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        follow(process.stdout or (), progress)
    progress.finish(process.returncode)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
