"""Install and run the project on machines as clean as they can be made here.

``python3 tools/matrix.py [--list] [CASE …]`` (``make matrix`` runs all). Each case gets a folder, a
HOME and caches of its own and an environment with nothing else in it; only the pinned archive of
llama.cpp is reused. The log of a case is ``build/matrix/CASE.log``; the table goes to standard
output and to ``build/matrix/table.md``. Exit 1 when a case failed.

Some cases need root, Debian packages (debootstrap, qemu-user-static, systemd) or other Pythons;
those that cannot run here are shown as such, with the reason, and do not fail the rest.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "matrix"
DOWNLOADS = ROOT / "build" / "downloads"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 3600
#: Where a model's process cannot use the CPU of today: SSE4.2 and nothing newer, of 2008 to 2010.
OLD_CPU = "Nehalem"


class Unavailable(Exception):
    """This machine cannot run the case; the message names what it lacks."""


class Failed(Exception):
    """A command of the case failed; its output is in the log."""


@dataclass
class Place:
    """Everything a case may touch, and its log."""

    folder: Path
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    umask: int = 0o022

    def run(self, *command: str | Path, cwd: Path | None = None, timeout: int = TIMEOUT_S) -> None:
        words = [str(word) for word in command]
        with self.log.open("a", encoding="utf-8") as out:
            out.write(f"$ {' '.join(words)}\n")
            out.flush()
            identity = pwd.getpwnam(self.user) if self.user else None
            done = subprocess.run(
                words,
                cwd=cwd or self.folder,
                env=self.env,
                umask=self.umask,
                user=identity.pw_uid if identity else None,
                group=identity.pw_gid if identity else None,
                extra_groups=[] if identity else None,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        if done.returncode != 0:
            raise Failed(f"exit {done.returncode}: {' '.join(words)[:100]}")

    def give_to_user(self) -> None:
        if self.user:
            identity = pwd.getpwnam(self.user)
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, identity.pw_uid, identity.pw_gid, follow_symlinks=False)


# --- interpreters ------------------------------------------------------------------------------


def interpreter(version: str, *, debian: bool = False) -> Path:
    """The interpreter of that version: Debian's, or the newest that pyenv built."""
    if debian:
        found = Path(f"/usr/bin/python{version}")
        if not found.exists():
            raise Unavailable(f"no {found}: apt-get install python{version} python{version}-venv")
        return found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    built = sorted(root.glob(f"versions/{version}.*/bin/python{version}"))
    on_path = shutil.which(f"python{version}", path=SYSTEM_PATH)
    if not built and not on_path:
        raise Unavailable(f"no Python {version} on this machine")
    return built[-1] if built else Path(on_path or "")


# --- sources -----------------------------------------------------------------------------------


def source_tree(place: Place, name: str = "llama-actors", *, git: bool = True) -> Path:
    """A fresh clone (or a copy of what is committed, without git) that may reuse the archive."""
    tree = place.folder / name
    if git:
        subprocess.run(["git", "clone", "-q", "--no-local", str(ROOT), str(tree)], check=True)
    else:
        tree.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    if DOWNLOADS.is_dir():
        shutil.copytree(DOWNLOADS, tree / "build" / "downloads")
    return tree


def wheel() -> Path:
    wheels = sorted((ROOT / "dist").glob("llama_actors-*-abi3-*.whl"))
    if not wheels:
        raise Unavailable("no wheel in dist/: run `make wheel` first")
    return max(wheels, key=lambda path: ("manylinux" in path.name, path.stat().st_mtime))


# --- cases: from source ------------------------------------------------------------------------


def from_source(
    version: str = "3.11",
    *,
    debian: bool = False,
    name: str = "llama-actors",
    git: bool = True,
    user: str | None = None,
    umask: int = 0o022,
    tmpdir: bool = False,
    env: Mapping[str, str] | None = None,
) -> Callable[[Place], None]:
    """`make demo` in a fresh tree, under the conditions named."""

    def case(place: Place) -> None:
        python = interpreter(version, debian=debian)
        place.env |= env or {}
        place.umask = umask
        if not git:
            place.env["PATH"] = str(_path_without_git(place.folder / "bin"))
        if tmpdir:
            other = Path("/dev/shm")
            if not other.is_dir() or other.stat().st_dev == place.folder.stat().st_dev:
                raise Unavailable("no second file system at /dev/shm")
            place.env["TMPDIR"] = tempfile.mkdtemp(prefix="llama-actors-", dir=other)
        tree = source_tree(place, name, git=git)
        if user:
            if os.geteuid() != 0:
                raise Unavailable("only root can become another user")
            place.user = user
            _let_in(place.folder)
            place.give_to_user()
        try:
            place.run("make", "demo", f"PYTHON={python}", cwd=tree)
        finally:
            if tmpdir:
                shutil.rmtree(place.env["TMPDIR"], ignore_errors=True)

    return case


def old_setuptools(place: Place) -> None:
    """The interpreter's own pip, setuptools 65 and no wheel: what broke the first installation."""
    python = interpreter("3.11")
    tree = source_tree(place)
    venv = place.folder / "host"
    place.run(python, "-m", "venv", venv)
    check = "import importlib.metadata as m; assert m.version('setuptools') < '70'; "
    check += "assert 'wheel' not in {d.name for d in m.distributions()}"
    place.run(venv / "bin" / "python", "-c", check)
    place.run("make", "demo", f"PYTHON={venv / 'bin' / 'python'}", cwd=tree)


def _path_without_git(folder: Path) -> Path:
    """A folder with links to every program of the system but git."""
    folder.mkdir()
    for directory in SYSTEM_PATH.split(":"):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else ():
            link = folder / program.name
            if not program.name.startswith("git") and not link.is_symlink():
                link.symlink_to(program)
    return folder


def _let_in(folder: Path) -> None:
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)


# --- cases: the wheel --------------------------------------------------------------------------


def from_wheel(version: str, *, debian: bool = False) -> Callable[[Place], None]:
    """The wheel in an empty environment, without a compiler; the demo from another folder."""

    def case(place: Place) -> None:
        python = interpreter(version, debian=debian)
        file = wheel()
        venv = place.folder / "venv"
        place.run(python, "-m", "venv", venv)
        place.env["PATH"] = str(venv / "bin")
        place.run(venv / "bin" / "python", "-m", "pip", "install", file)
        elsewhere = place.folder / "elsewhere"
        elsewhere.mkdir()
        place.run(venv / "bin" / "llama-actors", "demo", cwd=elsewhere)
        place.run(venv / "bin" / "llama-actors", "doctor", cwd=elsewhere)

    return case


def sdist(place: Place) -> None:
    """The sdist builds by itself: without git, without the archive, and for this CPU."""
    files = sorted((ROOT / "dist").glob("llama_actors-*.tar.gz"))
    if not files:
        raise Unavailable("no sdist in dist/: run `make wheel` first")
    venv = place.folder / "venv"
    place.run(interpreter("3.11"), "-m", "venv", venv)
    place.env["LLAMA_ACTORS_CMAKE_ARGS"] = "-DLLAMA_ACTORS_PORTABLE=OFF"
    place.run(venv / "bin" / "python", "-m", "pip", "install", files[-1])
    place.run(venv / "bin" / "llama-actors", "demo", cwd=place.folder)


def old_cpu(place: Place) -> None:
    """The wheel decodes on an x86-64 of 2008 to 2010, as qemu-user shows it."""
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None:
        raise Unavailable("no qemu-x86_64: apt-get install qemu-user-static")
    venv = place.folder / "venv"
    place.run(interpreter("3.11"), "-m", "venv", venv)
    place.run(venv / "bin" / "python", "-m", "pip", "install", wheel())
    python = venv / "bin" / "python"
    real = python.resolve()
    place.env["PYTHONPATH"] = str(next((venv / "lib").glob("python*/site-packages")))
    place.run(qemu, "-cpu", OLD_CPU, real, "-c", _DECODE_HERE, timeout=900)


_DECODE_HERE = """
from native import load_backend
from native.backend import Batch
from native.params import ModelParams
from runtime.embedded import path
backend = load_backend("llama", str(path()), ModelParams(n_ctx=256, n_threads=1))
from native.llama import cpu_features, cpu_variant
batch = Batch()
row = batch.extend_prefill(backend.tokenize("Once upon a time"), 0, 0, True)
backend.decode(batch)
import math
assert all(math.isfinite(value) for value in backend.logits(row))
print("decoded with the CPU library", cpu_variant(), "|", cpu_features())
assert cpu_variant() in ("sse42", "x64"), cpu_variant()
"""


def debootstrap(suite: str) -> Callable[[Place], None]:
    """The wheel in a bare Debian root that holds Python and nothing that compiles."""

    def case(place: Place) -> None:
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise Unavailable("needs root and apt-get install debootstrap")
        file = wheel()
        root = place.folder / "root"
        packages = "python3,python3-venv,ca-certificates"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root)],
            stdout=place.log.open("a"),
            stderr=subprocess.STDOUT,
            check=False,
        )
        if made.returncode != 0:
            raise Unavailable(f"debootstrap could not make {suite} here; see the log")
        inside = root / "inside"
        inside.mkdir()
        shutil.copy(file, inside)
        _give_network(root)
        place.env |= {"HOME": "/inside", "PATH": SYSTEM_PATH}
        with _Mounted(root):
            place.run("chroot", root, "sh", "-c", "! command -v cc && ! command -v gcc")
            place.run("chroot", root, "python3", "-m", "venv", "/inside/venv")
            wheel_inside = f"/inside/{file.name}"
            place.run("chroot", root, "/inside/venv/bin/pip", "install", wheel_inside)
            place.run("chroot", root, "/inside/venv/bin/llama-actors", "demo")

    return case


def _give_network(root: Path) -> None:
    """The resolver and the certificates of this machine, so that pip works inside."""
    for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf"):
        if Path(path).exists():
            shutil.copy(path, root / path.lstrip("/"))
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():
        shutil.copy(bundle, root / str(bundle).lstrip("/"))


class _Mounted:
    """``/proc`` and ``/dev`` in a root folder."""

    def __init__(self, root: Path) -> None:
        self._targets = [("/proc", root / "proc"), ("/dev", root / "dev")]

    def __enter__(self) -> None:
        for source, target in self._targets:
            subprocess.run(["mount", "--rbind", source, str(target)], check=True)
            subprocess.run(["mount", "--make-rslave", str(target)], check=True)

    def __exit__(self, *_: object) -> None:
        for _source, target in self._targets:
            subprocess.run(["umount", "-R", "-l", str(target)], check=False)


def service_files(place: Place) -> None:
    """The systemd unit passes systemd's own check."""
    if shutil.which("systemd-analyze") is None:
        raise Unavailable("no systemd-analyze: apt-get install systemd")
    unit = place.folder / "llama-actors.service"
    text = (ROOT / "packaging" / "llama-actors.service").read_text(encoding="utf-8")
    program = place.folder / "llama-actors"  # the check requires that the program exists
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    text = text.replace("/opt/llama-actors/bin/llama-actors", str(program))
    unit.write_text(text, encoding="utf-8")
    place.run("systemd-analyze", "verify", "--man=no", unit)
    complaints = [
        line for line in place.log.read_text().splitlines() if "llama-actors.service:" in line
    ]
    if complaints:
        raise Failed(complaints[0])


ODD_NAME = "Käse und Brot/llama actors"
CASES: dict[str, tuple[str, Callable[[Place], None]]] = {
    "clone": ("fresh clone, empty HOME, no caches, pyenv 3.11", from_source()),
    "debian": ("Debian's Python 3.11", from_source(debian=True)),
    "old-setuptools": ("setuptools 65, no wheel, pip 23", old_setuptools),
    "py312-odd-path": ("Python 3.12, space and umlaut", from_source("3.12", name=ODD_NAME)),
    "py313-no-git": ("Python 3.13, no git, no .git", from_source("3.13", git=False)),
    "py314": ("Python 3.14", from_source("3.14")),
    "user-umask-c": (
        "user nobody, umask 077, LC_ALL=C, Debian's Python",
        from_source(debian=True, user="nobody", umask=0o077, env={"LC_ALL": "C"}),
    ),
    "tmpdir": ("TMPDIR on another file system", from_source(tmpdir=True)),
    "wheel-3.11": ("wheel, pyenv 3.11, no compiler in PATH", from_wheel("3.11")),
    "wheel-debian": ("wheel, Debian's 3.11, no compiler in PATH", from_wheel("3.11", debian=True)),
    "wheel-3.12": ("wheel, 3.12, no compiler in PATH", from_wheel("3.12")),
    "wheel-3.13": ("wheel, 3.13, no compiler in PATH", from_wheel("3.13")),
    "wheel-3.14": ("wheel, 3.14, no compiler in PATH", from_wheel("3.14")),
    "sdist": ("sdist, no archive at hand, for this CPU", sdist),
    "old-cpu": (f"wheel on a {OLD_CPU} (qemu-user)", old_cpu),
    "bookworm": ("wheel in a bare Debian 12 root, no compiler", debootstrap("bookworm")),
    "trixie": ("wheel in a bare Debian 13 root, no compiler", debootstrap("trixie")),
    "sid": ("wheel in a bare Debian unstable root", debootstrap("sid")),
    "service": ("systemd unit, verified", service_files),
}


def run_case(name: str) -> tuple[str, str, float]:
    """Run one case; returns (result, detail, seconds)."""
    about, case = CASES[name]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    log.write_text(f"# {about}\n", encoding="utf-8")
    folder = Path(tempfile.mkdtemp(prefix=f"llama-actors-{name}-"))
    home = folder / "home"
    home.mkdir()
    place = Place(folder, log, {"PATH": SYSTEM_PATH, "HOME": str(home)})
    began = time.monotonic()
    try:
        case(place)
        result, detail = "ok", ""
    except Unavailable as reason:
        result, detail = "not here", str(reason)
    except (Failed, subprocess.SubprocessError, OSError) as trouble:
        result, detail = "FAILED", str(trouble)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result, detail, time.monotonic() - began


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/matrix.py", description="Clean installs.")
    parser.add_argument("case", nargs="*", help="all of them, if none is named")
    parser.add_argument("--list", action="store_true", help="show the cases")
    options = parser.parse_args(arguments)
    if options.list:
        for name, (about, _case) in CASES.items():
            print(f"{name:<16} {about}")
        return 0
    unknown = set(options.case) - CASES.keys()
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    lines = ["| case | conditions | result | s |", "|---|---|---|--:|"]
    failed = False
    for name in options.case or CASES:
        result, detail, seconds = run_case(name)
        failed = failed or result == "FAILED"
        shown = f"{result}: {detail}" if detail else result
        lines.append(f"| {name} | {CASES[name][0]} | {shown} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    (LOGS / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
