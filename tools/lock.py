"""Lock files with hashes: ``python tools/lock.py renew | outdated``.

``requirements/*.txt`` pin every package that running, developing, building and packaging this
project installs, with the SHA-256 of each of its files, for every Python from 3.11 on. They are
made from ``pyproject.toml`` alone and hold no address of an index, so pip and uv install from them
through any mirror.

renew      resolve again, to the newest versions that ``pyproject.toml`` allows
outdated   show what ``renew`` would change, package by package; changes nothing
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
OLDEST_PYTHON = "3.11"
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+))?")


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock file: the dependency groups it resolves, and which lock it must agree with."""

    name: str
    groups: tuple[str, ...] = ()
    project: bool = False  # the dependencies of the package itself too
    agrees_with: str | None = None
    apart: bool = False  # for an environment of its own, with other versions of shared packages

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.txt"


LOCKS = (
    Lock("run", project=True),
    Lock("dev", groups=("dev",), project=True, agrees_with="run"),
    Lock("build", groups=("build",), agrees_with="dev"),
    Lock("package", groups=("package",), agrees_with="build"),
    Lock("docs", groups=("docs",), agrees_with="dev"),
    Lock("clients", groups=("clients",), agrees_with="dev"),
    Lock("clients-older", groups=("clients-older",), apart=True),
    Lock("clients-aider", groups=("clients-aider",), apart=True),
    Lock("clients-load", groups=("clients-load",), apart=True),
    Lock("uv", groups=("uv",)),
)


def compile_lock(lock: Lock, folder: Path, *extra: str) -> None:
    """Resolve ``lock`` into ``folder``; what stands there already is kept where it still fits."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--system-certs"]
    command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--output-file", str(folder / f"{lock.name}.txt")]
    if lock.project:
        command.append("pyproject.toml")
    for group in lock.groups:
        command += ["--group", group]
    if lock.agrees_with:
        command += ["--constraints", str(folder / f"{lock.agrees_with}.txt")]
    subprocess.run([*command, *extra], check=True, cwd=ROOT)


def pins(path: Path) -> dict[str, str]:
    """Map ``name`` (with its marker, where a package has several pins) to the locked version."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if match := _PIN.match(line):
            marker = f" ; {match['marker'].strip()}" if match["marker"] else ""
            found[match["name"] + marker] = match["version"]
    return found


def renew() -> int:
    FOLDER.mkdir(exist_ok=True)
    for lock in LOCKS:
        compile_lock(lock, FOLDER, "--upgrade")
    return 0


def outdated() -> int:
    rows: dict[str, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for lock in LOCKS:
            compile_lock(lock, Path(folder))
            now, newest = pins(lock.path), pins(Path(folder) / f"{lock.name}.txt")
            for name in sorted(now.keys() | newest.keys()):
                if now.get(name) != newest.get(name):
                    rows[name] = (now.get(name, "-"), newest.get(name, "-"))
    for name, (locked, newest_version) in sorted(rows.items()):
        sys.stdout.write(f"{name:<32} {locked:<20} {newest_version}\n")
    if not rows:
        sys.stdout.write("everything is at the newest version that pyproject.toml allows\n")
    return 0


def main(arguments: list[str]) -> int:
    commands = {"renew": renew, "outdated": outdated}
    if len(arguments) != 1 or arguments[0] not in commands:
        sys.stderr.write((__doc__ or "") + "\n")
        return 2
    return commands[arguments[0]]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
