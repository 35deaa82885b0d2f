"""Builds llama-server, llama-bench and llama-batched-bench: ``python -m bench.peers``.

They come from the archive that ``native/llama.lock`` pins, verified as for the project's own build,
with the compile flags of ``native/CMakeLists.txt``. Everything is written below ``build/peers``,
which git ignores. About ten minutes of one core the first time, nothing when they are there. The
web interface is left out and nothing is fetched. Environment, as in that build:
``LLAMA_CPP_SOURCE_DIR`` and ``LLAMA_ACTORS_CMAKE_ARGS``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.machine import ROOT
from native import vendor
from runtime.cli.progress import ProgressLine

FOLDER = ROOT / "build" / "peers"
SERVER, BENCH, BATCHED_BENCH = "llama-server", "llama-bench", "llama-batched-bench"
PROGRAMS = (SERVER, BENCH, BATCHED_BENCH)
HOW = "python -m bench.peers"
_LIMIT_S = 300.0
"""Of one run."""
_MORE_FOLDERS = ("common", "tools", "scripts")
_STEP = re.compile(r"^\[(\d+)/(\d+)\] ")
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""As in our build: some virtual machines advertise AMX and then fault."""
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_POSITION_INDEPENDENT_CODE": "ON",
    "GGML_NATIVE": "ON",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_NUMBER": "0",
}


class PeersFailed(RuntimeError):
    """A peer could not be built or run; the message names the log."""


def program(name: str) -> Path | None:
    """The built program, or None when it is not there."""
    path = FOLDER / "build" / "bin" / name
    return path if os.access(path, os.X_OK) else None


def missing(*names: str) -> str:
    """Why a benchmark that needs these programs is skipped; empty when they are all there."""
    lacking = [name for name in names if program(name) is None]
    return f"{', '.join(lacking)} not built: run {HOW}" if lacking else ""


def source(lock: vendor.Lock) -> Path:
    """The source with its tools, unpacked when it is not there yet; VendorError."""
    own = os.environ.get("LLAMA_CPP_SOURCE_DIR")
    if own:
        return vendor.provide(lock)
    wide = dataclasses.replace(lock, keep=lock.keep + _MORE_FOLDERS)
    target = FOLDER / f"llama.cpp-{lock.commit}"
    stamp = target / vendor.STAMP
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wide.identity:
        FOLDER.mkdir(parents=True, exist_ok=True)
        vendor.unpack(vendor.fetch(lock, vendor.BUILD / "downloads"), target, wide)
    return target


def build(n_jobs: int, names: Sequence[str] = PROGRAMS) -> None:
    """Configure and build; PeersFailed, VendorError."""
    lock = vendor.Lock.read()
    where, folder = source(lock), FOLDER / "build"
    log = FOLDER / "build.log"
    options = {**_OPTIONS, "LLAMA_BUILD_COMMIT": lock.commit, **_amx_options()}
    configure = [_tool("cmake"), "-S", str(where), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    configure += [f"-D{key}={value}" for key, value in options.items()]
    configure += shlex.split(os.environ.get("LLAMA_ACTORS_CMAKE_ARGS", ""))
    make = [_tool("cmake"), "--build", str(folder), "-j", str(n_jobs), "--target", *names]
    with log.open("w", encoding="utf-8") as file, ProgressLine("building peers") as progress:
        for command in (configure, make):
            for line in _lines(command, log):
                file.write(line)
                file.flush()
                step = _STEP.match(line)
                if step:
                    progress.share(int(step[1]) / int(step[2]))


def environment() -> Mapping[str, str]:
    """The environment of a peer's process, without variables that would change its settings."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "CUDA_VISIBLE_DEVICES")
    return {key: os.environ[key] for key in kept if key in os.environ}


def output(command: Sequence[str]) -> str:
    """What a peer writes; ``PeersFailed`` with the end of its messages if it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        env=dict(environment()),
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-8:])
        raise PeersFailed(f"{Path(command[0]).name} ended with {done.returncode}:\n{tail}")
    return done.stdout


def _lines(command: Sequence[str], log: Path) -> Iterator[str]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with process:
        yield from process.stdout or ()
    if process.returncode:
        raise PeersFailed(f"the build of the peers failed; see the end of {log}")


def _amx_options() -> dict[str, str]:
    """Compiler flags against AMX where the compiler has them, as the project's build tests it."""
    flags = _NO_AMX if _accepts(_NO_AMX.split()) else ""
    return {"CMAKE_C_FLAGS": flags, "CMAKE_CXX_FLAGS": flags}


def _accepts(flags: Sequence[str]) -> bool:
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        empty = Path(folder) / "empty.c"
        empty.write_text("int empty;\n", encoding="ascii")
        command = [
            compiler,
            "-Werror",
            *flags,
            "-c",
            str(empty),
            "-o",
            str(empty.with_suffix(".o")),
        ]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise PeersFailed(f"{name} is missing: make install brings it")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is missing or out of date."""
    parser = argparse.ArgumentParser(prog=HOW, description=__doc__)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args(arguments)
    try:
        build(asked.jobs)
    except (PeersFailed, vendor.VendorError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(program(name)) for name in PROGRAMS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
