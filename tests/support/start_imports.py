"""What a command has imported when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from tests.support.nodes import ROOT

SLOW = {
    "asyncio", "cffi", "ctypes", "decimal", "difflib", "hashlib", "hmac", "jinja2", "logging",
    "random", "rich", "secrets", "subprocess", "thespian", "tomllib", "traceback",
}  # fmt: skip
"""Modules that take milliseconds, and that no question to a node needs."""
_REPORT = """
import runpy, sys
sys.argv = ["runtime", *sys.argv[1:]]
try:
    runpy.run_module("runtime", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
names = sorted(name for name in sys.modules if sys.modules[name] is not None)
sys.stderr.write(f"\\nCODE {code}\\nMODULES {' '.join(names)}\\n")
"""


def imported(variables: Mapping[str, str], *arguments: str) -> tuple[int, set[str]]:
    """The exit code of a command, and the modules that it has imported in the end."""
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    code, modules = done.stderr.rpartition("\nCODE ")[2].split("\nMODULES ")
    return int(code), set(modules.split())
