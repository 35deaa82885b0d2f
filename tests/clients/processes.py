"""Run one foreign program to its end: a clean environment, a deadline, nothing left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended; ``code`` is None when its deadline had passed and it was killed."""

    code: int | None
    output: str
    seconds: float

    @property
    def detail(self) -> str:
        """The end of the output, for a report of what failed."""
        how = "ran past its deadline" if self.code is None else f"exit {self.code}"
        lines = [line for line in self.output.splitlines() if line.strip()]
        return f"{how} after {self.seconds:.0f} s: " + " | ".join(lines[-6:])[-900:]


def clean(home: Path, **variables: str) -> dict[str, str]:
    """An environment that has nothing of the caller's: a home of its own and ``variables``."""
    return {
        "PATH": SYSTEM_PATH,
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
    } | variables


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    deadline_s: float,
    typed: str = "",
) -> Ran:
    """Run ``command``; its whole process group is gone when this returns.

    ``typed`` is what it reads on its standard input, which is a file and no terminal.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as given:
        given.write(typed.encode())
        given.seek(0)
        process = subprocess.Popen(
            [str(word) for word in command],
            env=dict(env),
            cwd=cwd,
            stdin=given,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            kill_group(process)
        out.seek(0)
        output = out.read().decode("utf-8", "replace")
    return Ran(code, output, time.monotonic() - began)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a program that leads its process group, and all of the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
