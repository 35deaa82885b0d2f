"""What the suites run, fetched into ``build/clients``: nothing third-party is committed.

* ``venv``, ``venv-older``, ``venv-aider`` and ``venv-load``: packages of
  ``requirements/clients.txt``, ``clients-older.txt``, ``clients-aider.txt`` and
  ``clients-load.txt``, installed by uv with hashes. The last needs a newer Python than the rest.
* ``sdists/<name>-<version>``: the source distributions whose tests and examples are run. pip
  fetches them and checks them against the hashes of the lock; nothing of them is built.
* ``npm``: the programs of ``tests/clients/npm``, whose lock file has a hash of each package.

Each step is skipped while its inputs are unchanged.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.nodes import ROOT
from tools.install import Environment, Problem, digest, report, run, uv_environment
from tools.matrix import Unavailable, interpreter

FOLDER: Final = ROOT / "build" / "clients"
NPM: Final = Path(__file__).parent / "npm"
SDISTS: Final = ("openai", "anthropic", "ollama")
NEWER: Final = ("3.12", "3.13")
_NPM_FILES: Final = ("package.json", "package-lock.json")
_NPM_SCRIPTS: Final = ("served.mjs", "ai_sdk.mjs", "ai_sdk_job.mjs")


@dataclass(frozen=True, slots=True)
class Installed:
    """Where everything is."""

    bin: Path  # programs of the environment with the newest versions
    bin_older: Path
    bin_aider: Path
    bin_load: Path
    encodings: Path  # files of tokenizers by the names under which tiktoken looks for them
    sdists: dict[str, Path]
    node: Path  # the folder with node_modules


def install(*, with_programs: bool, with_load: bool) -> Installed:
    """Bring in what is missing.

    aider and what is from npm only with ``with_programs``, the load tools only with ``with_load``.

    Raises ``Problem`` where something cannot be had.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    newest = _environment("venv", "clients")
    older = _environment("venv-older", "clients-older")
    sdists = {name: _sdist(newest, name) for name in SDISTS}
    aider = FOLDER / "venv-aider"
    node = FOLDER / "npm"
    if with_programs:
        _environment(aider.name, "clients-aider")
        _npm(node)
    load = FOLDER / "venv-load"
    if with_load:
        _environment(load.name, "clients-load", _NewerEnvironment(load))
    return Installed(
        bin=newest.folder / "bin",
        bin_older=older.folder / "bin",
        bin_aider=aider / "bin",
        bin_load=load / "bin",
        encodings=_encodings(newest.folder),
        sdists=sdists,
        node=node,
    )


class _NewerEnvironment(Environment):
    """An environment of a Python that reads the load tools; 3.11 does not parse one of them."""

    def works(self) -> bool:
        probe = "import sys, pip; print(*sys.version_info[:2], sys.prefix)"
        try:
            ran = subprocess.run([self.python, "-c", probe], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        version, _, prefix = os.fsdecode(ran.stdout).strip().rpartition(" ")
        return version.replace(" ", ".") in NEWER and prefix == str(self.folder)

    def create(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        python = newer_python()
        report(f"making {self.folder.relative_to(ROOT)} with {python.name}")
        run(
            [str(python), "-m", "venv", str(self.folder)],
            trouble="the virtual environment of the load tools could not be made",
        )


def newer_python() -> Path:
    """A Python that the load tools run on. Raises ``Problem`` where there is none."""
    for version in NEWER:
        with contextlib.suppress(Unavailable):
            return interpreter(version)
    raise Problem(
        "there is no Python 3.12 or 3.13, and the load suite needs one: install it with pyenv or "
        "the system's packages. Or name the suites to run: python -m tests.clients --list"
    )


def _encodings(environment: Path) -> Path:
    """Where LiteLLM, which is in this environment, has the files of tokenizers."""
    found = environment.glob("lib/python*/site-packages/litellm/litellm_core_utils/tokenizers")
    return next(found, environment / "no-encodings")


def _environment(folder: str, lock: str, environment: Environment | None = None) -> Environment:
    environment = environment or Environment(FOLDER / folder)
    if not environment.works():
        environment.create()
    path = f"requirements/{lock}.txt"
    inputs = digest([path])
    if environment.done().get("packages") != inputs:
        report(f"installing what is locked in {path}")
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        run(
            [
                *(sys.executable, "-m", "uv", "pip", "install", *quiet, "--no-deps"),
                *("--python", environment.python, "--require-hashes", "-r", path),
            ],
            trouble="uv could not install the clients",
            env=uv_environment(sys.executable),
        )
        environment.mark("packages", inputs)
    return environment


def locked_lines(lock: str, name: str) -> tuple[str, str]:
    """Version and requirement lines, with hashes, of one package in a lock file."""
    found = re.search(
        rf"^{re.escape(name)}==(?P<version>\S+) \\\n(?: +--hash=\S+(?: \\)?\n?)+", lock, re.M
    )
    if found is None:
        raise Problem(f"requirements/clients.txt has no {name}: run `make lock`")
    return found["version"], found[0]


def _sdist(environment: Environment, name: str) -> Path:
    lock = (ROOT / "requirements" / "clients.txt").read_text(encoding="utf-8")
    version, lines = locked_lines(lock, name)
    target = FOLDER / "sdists" / f"{name}-{version}"
    if target.exists():
        return target
    report(f"fetching the source distribution of {name} {version}")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(lines, encoding="utf-8")
        # Without isolation pip asks the build backends in this environment for the package's
        # name, and installs none.
        run(
            [
                *(environment.python, "-m", "pip", "download", "--quiet"),
                *("--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"),
                *("--no-build-isolation", "--require-hashes"),
                *("--dest", folder, "-r", str(wanted)),
            ],
            trouble=f"pip could not fetch the source distribution of {name}",
        )
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(Path(folder, "unpacked"), filter="data")
        Path(folder, "unpacked", f"{name}-{version}").rename(target)
    return target


def _npm(folder: Path) -> None:
    program = shutil.which("npm")
    if program is None:
        raise Problem(
            "npm is not in PATH, and the programs suite needs it (Node.js 20 or newer). On Debian: "
            "apt-get install npm. Or name the suites to run: python -m tests.clients --list"
        )
    inputs = digest([f"tests/clients/npm/{name}" for name in _NPM_FILES])
    stamp = folder / ".installed-from"
    folder.mkdir(exist_ok=True)
    _copy(_NPM_SCRIPTS, folder)  # beside the packages that they import
    if stamp.exists() and stamp.read_text(encoding="utf-8") == inputs:
        return
    report("installing what is locked in tests/clients/npm (about 1.4 GB)")
    _copy(_NPM_FILES, folder)
    # Not `npm ci`: it refuses a lock without packages for other systems, which an index may lack.
    run(
        [
            *(program, "install", "--prefix", str(folder), "--no-audit", "--no-fund"),
            *("--omit-lockfile-registry-resolved", "--loglevel=error"),
        ],
        trouble="npm could not install the programs",
    )
    stamp.write_text(inputs, encoding="utf-8")


def _copy(names: Sequence[str], folder: Path) -> None:
    for name in names:
        shutil.copyfile(NPM / name, folder / name)
