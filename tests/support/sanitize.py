"""The shim's own tests, with AddressSanitizer and UndefinedBehaviorSanitizer in the shim.

``python -m tests.support.sanitize`` builds the extension module a second time in
``build/sanitize``, with both sanitizers and against the installed libraries, and runs the native
tests with it; the installed module is not touched. ``--slice`` runs few of them, for CI. What
follows ``--`` goes to pytest in place of the choice of tests.

llama.cpp itself is not instrumented, nor is its converter of JSON schemas in the same module:
their reads and writes are seen where they go through ``memcpy`` and its like, or where they free
something twice. Python takes its memory from ``malloc`` meanwhile, so that every buffer that Python
lends to the shim has guarded ends.

Before the tests, a library with known faults is built with the same flags and loaded in the same
way: what is reported there would be reported in the shim. Exit codes: 0 no finding, 1 a finding or
a failed test, 2 the sanitizers do not work here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "sanitize"
SANITIZERS: Final = "address,undefined,float-cast-overflow"
FLAGS: Final = (f"-fsanitize={SANITIZERS}", "-fno-sanitize=vptr", "-fno-sanitize-recover=all")
ALL: Final = ("tests/model", "-k", "test_native_")
SLICE: Final = (
    "tests/model/test_native_adapters.py",
    "tests/model/test_native_grammar.py",
    "tests/model/test_native_sampling.py",
    "tests/model/test_native_checkpoints.py::test_hostile_states_never_crash_and_leave_no_trace[mamba]",
)
_FAULTS: Final = """
#include <climits>
#include <cstring>
#include <stdexcept>
#include <vector>
static int at(const std::vector<int> & values, size_t i) { return values.data()[i]; }
extern "C" {
int beyond(int n) { std::vector<int> v(n); return at(v, n); }
int freed(int n) { volatile int * p = new int[n]; p[0] = n; delete[] p; return p[0]; }
void lent(char * buffer, int n) { for (int i = 0; i <= n; i++) { buffer[i] = 1; } }
int cast(int n) { return (int) (n * 1e30f); }
int overflow(int n) { return INT_MAX - 1 + n; }
int shifted(int n) { return 1 << (n + 30); }
int caught(int n) {
    try { if (n) { throw std::runtime_error("x"); } } catch (const std::exception &) { return 7; }
    return 0;
}
}
"""
_EXPECTED: Final = {
    "lib.beyond(2)": "heap-buffer-overflow",
    "lib.freed(2)": "heap-use-after-free",
    "lib.lent(ffi.new('char[]', 8), 8)": "heap-buffer-overflow",
    "lib.overflow(2)": "signed integer overflow",
    "lib.shifted(2)": "shift exponent",
    "lib.cast(2)": "outside the range of representable values",
}
"""Calls of the faulty library, and what must be reported of each."""
_HOOK: Final = '''"""Puts the module with sanitizers in the place of the installed one."""
import importlib.machinery
import importlib.util
import resource
import sys

set_limit = resource.setrlimit


def setrlimit(what, limits):
    """The shadow memory alone is terabytes of addresses; hard_rss_limit_mb is there instead."""
    if what != resource.RLIMIT_AS:
        set_limit(what, limits)


resource.setrlimit = setrlimit


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "native._llama":
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, {module!r})
        return importlib.util.spec_from_loader(name, loader)


sys.meta_path.insert(0, Finder)
'''


class Unusable(Exception):
    """The sanitizers do not work here; the text has what was observed."""


def _installed_libraries() -> Path:
    """The folder of the installed extension module, where libllama lies; nothing is loaded."""
    found = importlib.util.find_spec("native._llama")
    if found is None or found.origin is None:
        raise Unusable("the project is not installed here: make install")
    return Path(found.origin).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, prove, test; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.sanitize", description=__doc__)
    parser.add_argument("--slice", action="store_true", help="few tests, for CI")
    parser.add_argument("tests", nargs="*", help="what pytest is given instead, after --")
    asked = parser.parse_args(arguments)
    try:
        module = build()
        hook = BUILD / "hook"
        hook.mkdir(exist_ok=True)
        (hook / "sitecustomize.py").write_text(_HOOK.format(module=str(module)), encoding="utf-8")
        environment = environment_with(hook)
        prove(environment, module)
    except Unusable as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    tests = asked.tests or (SLICE if asked.slice else ALL)
    # Output is not captured: a report comes from a process that ends at once.
    command = [sys.executable, "-m", "pytest", "-q", "-s", *tests]
    return 1 if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode else 0


def build() -> Path:
    """The instrumented module; compiles only what changed."""
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "Python_EXECUTABLE": sys.executable,
        "LLAMA_ACTORS_SANITIZE": SANITIZERS,
        "LLAMA_ACTORS_LIBRARIES": str(_installed_libraries()),
    }
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    tool = _tool("cmake")
    _run(tool, "-S", "native", "-B", str(BUILD), "-G", "Ninja", *defines)
    _run(tool, "--build", str(BUILD), "--target", "_llama")
    commands = json.loads((BUILD / "compile_commands.json").read_text(encoding="utf-8"))
    for command in commands:
        if "/shim/" in command["file"] and not set(FLAGS) <= set(command["command"].split()):
            raise Unusable(f"{command['file']} is compiled without {' '.join(FLAGS)}")
    return BUILD / "_llama.abi3.so"


def environment_with(hook: Path) -> dict[str, str]:
    """Variables under which Python and all its children use the sanitizers."""
    # Both must be there before Python: the first replaces malloc, and looks for the throw of the
    # second when it starts.
    first = [_library("libasan.so"), _library("libstdc++.so.6")]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(first),
        "PYTHONPATH": os.pathsep.join([str(hook), str(ROOT)]),
        "PYTHONMALLOC": "malloc",
        # Python frees little at its end. A refusal of too much memory is an error like any other.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:hard_rss_limit_mb=4096",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def prove(environment: dict[str, str], module: Path) -> None:
    """Known faults are reported, exceptions pass, and the instrumented module is loaded."""
    source, library = BUILD / "faults.cpp", BUILD / "faults.so"
    if not source.exists() or source.read_text(encoding="utf-8") != _FAULTS:
        source.write_text(_FAULTS, encoding="utf-8")
        library.unlink(missing_ok=True)
    if not library.exists():
        compiler = os.environ.get("CXX", "c++")
        _run(compiler, *FLAGS, "-O1", "-g1", "-fPIC", "-shared", "-o", str(library), str(source))
    opened = (
        "import cffi; ffi = cffi.FFI(); ffi.cdef('int beyond(int); int freed(int); int caught(int);"
        " void lent(char *, int); int overflow(int); int shifted(int); int cast(int);');"
        f" lib = ffi.dlopen({str(library)!r}); "
    )
    for call, words in _EXPECTED.items():
        code, output = _python(environment, opened + call)
        if not code or words not in output:
            raise Unusable(f"{call} was not reported as {words} (exit code {code}):\n{output}")
    code, output = _python(environment, opened + "assert lib.caught(1) == 7")
    if code:
        raise Unusable(f"a caught exception was not caught (exit code {code}):\n{output}")
    code, output = _python(environment, "import native._llama; print(native._llama.__file__)")
    if code or str(module) not in output:
        raise Unusable(f"the module with sanitizers was not loaded (exit code {code}):\n{output}")
    sys.stderr.write(f"the sanitizers report {len(_EXPECTED)} of {len(_EXPECTED)} known faults\n")


def _python(environment: dict[str, str], script: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise Unusable(f"{compiler} has no {name}; install the compiler's sanitizer libraries")
    return str(Path(found).resolve())


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Unusable(f"{name} is missing; `make install` brings it")
    return found


def _run(*command: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unusable(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
