"""Set up ``.venv`` and build llama.cpp into it: ``python3 tools/install.py [VENV [docs]]``.

Four steps, each skipped while its inputs are unchanged; with ``docs`` a fifth, the packages of
``requirements/docs.txt``, which build the documentation:

1. a virtual environment, made by the interpreter that runs this file (Python 3.11 or newer);
2. uv, from its lock with hashes;
3. every dependency, from ``requirements/dev.txt`` with hashes; those that exist as source only are
   built in isolation, with build tools from ``requirements/build.txt``;
4. this project, editable, built in isolation with the same build tools.

Nothing is upgraded and no version is chosen here: ``tools/lock.py`` does that. Only the standard
library is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "llama-actors-install.json"
PACKAGES = ("actors", "cache", "native", "runtime", "supervision")
NATIVE_INPUTS = (
    "pyproject.toml",
    "requirements/build.txt",
    "native/CMakeLists.txt",
    "native/build_ffi.py",
    "native/llama.lock",
    "native/vendor.py",
    "native/shim",
    "native/kernels",
)
BUILD_VARIABLES = (
    "LLAMA_ACTORS_CMAKE_ARGS",
    "LLAMA_CPP_SOURCE_DIR",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
)


class Problem(Exception):
    """The installation cannot continue; the message names what is missing and how to get it."""


def check_interpreter() -> None:
    """Refuse interpreters that cannot make the environment."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise Problem(
            f"{sys.executable} cannot make virtual environments (no module {error.name}). "
            "On Debian: apt-get install python3-venv"
        ) from error


def check_compiler() -> None:
    """Fail before a build of minutes that cannot succeed."""
    for variable, default, language in (("CC", "cc", "C"), ("CXX", "c++", "C++")):
        command = os.environ.get(variable, default).split()[0]
        if shutil.which(command) is None:
            raise Problem(
                f"no {language} compiler: {command} is not in PATH. "
                f"On Debian: apt-get install gcc g++ (or set {variable})"
            )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise Problem(
            f"{header} is missing: the C headers of {sys.executable}. "
            "On Debian: apt-get install python3-dev"
        )


def digest(paths: Sequence[str], *texts: str) -> str:
    """SHA-256 of files, folders and texts: the inputs of one step."""
    total = hashlib.sha256()
    for path in paths:
        for file in _files(ROOT / path):
            total.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    for text in texts:
        total.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return total.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(f for f in path.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def module_names() -> str:
    """Every module of the project: an editable installation maps their names to files."""
    files = (f for package in PACKAGES for f in _files(ROOT / package) if f.suffix == ".py")
    return " ".join(str(f.relative_to(ROOT)) for f in files)


class Environment:
    """The virtual environment and the record of what is installed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        self._record = folder / STAMP

    def done(self) -> dict[str, str]:
        try:
            record: dict[str, str] = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record

    def mark(self, step: str, value: str) -> None:
        partial = self._record.with_suffix(".new")
        partial.write_text(json.dumps(self.done() | {step: value}), encoding="utf-8")
        partial.replace(self._record)

    def works(self) -> bool:
        """Whether the environment is whole and belongs to this folder and interpreter version."""
        probe = "import sys, pip; print(*sys.version_info[:2], sys.prefix)"
        try:
            result = subprocess.run([self.python, "-c", probe], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        major, minor = sys.version_info[:2]
        return os.fsdecode(result.stdout).strip() == f"{major} {minor} {self.folder}"

    def create(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        report(f"making {self.folder.relative_to(ROOT)} with Python {sys.version.split()[0]}")
        run(
            [sys.executable, "-m", "venv", str(self.folder)],
            trouble="the virtual environment could not be made",
        )


def report(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(command: Sequence[str], *, trouble: str, env: Mapping[str, str] | None = None) -> None:
    code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if code != 0:
        raise Problem(f"{trouble} (exit {code}; its own message is above)")


def uv_environment(python: str) -> dict[str, str]:
    """The environment for uv, with the index and certificates of ``pip.conf``, which it ignores."""
    env = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "1"}
    env.pop("VIRTUAL_ENV", None)
    shown = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings: dict[str, str] = {}
    for line in shown.splitlines():
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], value.strip("'\""))
    if "index-url" in settings and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & env.keys():
        env["UV_DEFAULT_INDEX"] = settings["index-url"]
    if "cert" in settings:
        env.setdefault("SSL_CERT_FILE", settings["cert"])
    return env


def install(folder: Path, extras: Sequence[str] = ()) -> None:
    check_interpreter()
    environment = Environment(folder)
    if not environment.works():
        environment.create()
    python, done = environment.python, environment.done()
    uv = [python, "-m", "uv", "pip", "install", "--python", python, "--no-deps"]
    uv += ["--build-constraints", "requirements/build.txt"]

    locked_uv = digest(["requirements/uv.txt"])
    if done.get("uv") != locked_uv:
        report("installing uv")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(
            [*pip, "--no-deps", "--require-hashes", "-r", "requirements/uv.txt"],
            trouble="pip could not install uv, which installs everything else",
        )
        environment.mark("uv", locked_uv)

    env = uv_environment(python)
    locked = digest(["requirements/dev.txt", "requirements/build.txt"])
    if done.get("dependencies") != locked:
        report("installing what is locked in requirements/dev.txt")
        run(
            [*uv, "--quiet", "--require-hashes", "-r", "requirements/dev.txt"],
            trouble="uv could not install the dependencies",
            env=env,
        )
        environment.mark("dependencies", locked)

    for extra in extras:
        path = f"requirements/{extra}.txt"
        locked = digest([path])
        if done.get(extra) != locked:
            report(f"installing what is locked in {path}")
            run(
                [*uv, "--quiet", "--require-hashes", "-r", path],
                trouble="uv could not install the dependencies",
                env=env,
            )
            environment.mark(extra, locked)

    settings = [f"{name}={os.environ.get(name, '')}" for name in BUILD_VARIABLES]
    project = digest(NATIVE_INPUTS, str(ROOT), module_names(), *settings)
    if done.get("project") != project:
        check_compiler()
        vendor = [python, "native/vendor.py", "--quiet"]
        run(vendor, trouble="the source of llama.cpp could not be fetched")
        progress = [python, "tools/build_progress.py", "--"]
        editable = ["--verbose", "--reinstall-package", "llama-actors", "--editable", "."]
        run([*progress, *uv, *editable], trouble="llama.cpp could not be built", env=env)
        environment.mark("project", project)


def main(arguments: Sequence[str]) -> int:
    try:
        install(ROOT / (arguments[0] if arguments else ".venv"), arguments[1:])
    except Problem as problem:
        sys.stderr.write(f"install: {problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
