"""Fetch, verify and unpack the pinned llama.cpp source: ``python -m native.vendor``.

The repository holds no third-party source. ``llama.lock`` pins one source archive by SHA-256; this
module brings it in through pip, checks the hash once more itself, and unpacks only the folders and
files that are built to ``build/llama.cpp-<commit>`` (ignored by git). A second call finds the
stamp of the first and returns at once.

``python -m native.vendor --test-data`` unpacks what only tests read (published tokenizers and chat
templates) into ``build/llama.cpp-<commit>-test-data``; no build and no wheel contains it.

Environment:
    LLAMA_CPP_SOURCE_DIR   use this llama.cpp checkout instead; nothing is fetched. Test data always
                           comes from the pinned archive.

Without network: put the pinned archive into ``build/downloads/`` and it is used from there.

CMake runs this file as a script, before the package is importable, so it imports only the standard
library and nothing of this project.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
BUILD_TOOLS = HERE.parent / "requirements" / "build.txt"
STAMP = ".unpacked-from"
_CHUNK = 1 << 20
_BUILD_CONSTRAINTS_SINCE = (25, 3)  # of pip


class VendorError(Exception):
    """The source of llama.cpp could not be provided; the message contains what to do."""


class FetchFailed(VendorError):
    """pip could not download the archive. Check the network, or place the file by hand."""


class HashMismatch(VendorError):
    """The archive is not the one that is pinned. Never built; delete it and fetch again."""


class UnsafeArchive(VendorError):
    """A member would lie outside the target folder or is not a plain file. Never unpacked."""


class SourceIncomplete(VendorError):
    """The source tree lacks a file the build needs. Check ``LLAMA_CPP_SOURCE_DIR``."""


@dataclass(frozen=True, slots=True)
class Lock:
    """The content of ``llama.lock``."""

    package: str
    version: str
    filename: str
    sha256: str
    megabytes: int
    commit: str
    root: str
    keep: tuple[str, ...]
    keep_for_tests: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path = HERE / "llama.lock") -> Lock:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        archive, upstream, unpack = table["archive"], table["upstream"], table["unpack"]
        return cls(
            package=archive["package"],
            version=archive["version"],
            filename=archive["filename"],
            sha256=archive["sha256"],
            megabytes=round(archive["bytes"] / 1e6),
            commit=upstream["commit"],
            root=unpack["root"],
            keep=tuple(unpack["keep"]),
            keep_for_tests=tuple(unpack["tests"]["keep"]),
        )

    @property
    def identity(self) -> str:
        """The content of the stamp: another pin or another selection unpacks again."""
        return json.dumps([self.sha256, self.root, list(self.keep)])


def provide(lock: Lock, build: Path = BUILD) -> Path:
    """Return a folder with the llama.cpp source, fetching and unpacking it when it is missing."""
    own = os.environ.get("LLAMA_CPP_SOURCE_DIR")
    if own:
        source = _own_source(own)
        _require_complete(source)
        return source
    return _provide(lock, build / f"llama.cpp-{lock.commit}", _require_complete)


def provide_test_data(lock: Lock, build: Path = BUILD) -> Path:
    """Return a folder with what only tests read, fetching and unpacking it when it is missing."""
    selection = replace(lock, keep=lock.keep_for_tests)
    return _provide(selection, build / f"llama.cpp-{lock.commit}-test-data", _require_test_data)


def _provide(lock: Lock, target: Path, check: Callable[[Path], None]) -> Path:
    if _is_unpacked(target, lock):
        return target
    build = target.parent
    build.mkdir(parents=True, exist_ok=True)
    with _only_one_at_a_time(build / ".vendor.lock"):
        if not _is_unpacked(target, lock):
            unpack(fetch(lock, build / "downloads"), target, lock, check)
    return target


def _own_source(given: str) -> Path:
    """The folder that LLAMA_CPP_SOURCE_DIR names."""
    try:
        return Path(os.path.realpath(Path(given).expanduser()))
    except (RuntimeError, OSError, ValueError) as error:  # no such user, no home
        why = str(error).rstrip(".")
        raise SourceIncomplete(
            f"LLAMA_CPP_SOURCE_DIR is {given!r}: {why}; give a full path."
        ) from error


def source_id(source: Path, lock: Lock) -> str:
    """Name the source exactly: the pinned commit, or a digest of a checkout of the user's own.

    It becomes part of every cache namespace, so two different sources must never share it.
    """
    if _is_unpacked(source, lock):
        return lock.commit
    digest = hashlib.blake2b(digest_size=8)
    for folder in ("include", "src", "ggml/include", "ggml/src"):
        for path in sorted(p for p in (source / folder).rglob("*") if p.is_file()):
            digest.update(str(path.relative_to(source)).encode() + b"\0")
            digest.update(path.read_bytes())
    return f"own-{digest.hexdigest()}"


def fetch(lock: Lock, folder: Path) -> Path:
    """Return the verified archive, downloading it with pip unless it is already in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / lock.filename
    if not archive.exists():
        _log(f"fetching {lock.package} {lock.version} ({lock.megabytes} MB), once")
        _pip_download(lock, folder)
    actual = _sha256(archive)
    if actual != lock.sha256:
        raise HashMismatch(
            f"{archive} has SHA-256 {actual}, but native/llama.lock pins {lock.sha256}. "
            "The file is damaged or not the pinned one: delete it and run this again."
        )
    return archive


def unpack(
    archive: Path, target: Path, lock: Lock, check: Callable[[Path], None] | None = None
) -> None:
    """Unpack what is kept of ``archive`` to ``target``; a crash half way leaves no target.

    ``check`` raises ``SourceIncomplete`` when a needed file is missing.
    """
    _log(f"unpacking llama.cpp {lock.commit}")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member, inner in _kept(tar, lock):
                _write_member(tar, member, partial / inner)
        (check or _require_complete)(partial)
        (partial / STAMP).write_text(lock.identity, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _kept(tar: tarfile.TarFile, lock: Lock) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    root = PurePosixPath(lock.root)
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise UnsafeArchive(f"{member.name!r} in the archive points outside of it")
        if not path.is_relative_to(root) or path == root:
            continue
        inner = path.relative_to(root)
        if member.isdir() or not any(inner.is_relative_to(kept) for kept in lock.keep):
            continue
        if not member.isreg():
            raise UnsafeArchive(f"{member.name!r} in the archive is not a plain file")
        yield member, inner


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    stream = tar.extractfile(member)
    if stream is None:
        raise UnsafeArchive(f"{member.name!r} in the archive cannot be read")
    to.parent.mkdir(parents=True, exist_ok=True)
    with stream, to.open("wb") as out:
        shutil.copyfileobj(stream, out, _CHUNK)
    # The archive's own times keep the second build incremental after a re-unpack.
    os.utime(to, (member.mtime, member.mtime))


def _pip_download(lock: Lock, folder: Path) -> None:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{lock.package}=={lock.version} --hash=sha256:{lock.sha256}\n")
    # Only this package as source: with ":all:" pip compiles its build tools too, CMake among them.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", lock.package]
    command += ["--require-hashes", "--disable-pip-version-check", "--dest", str(folder)]
    live = sys.stderr.isatty()
    command += [] if live else ["--quiet", "--progress-bar", "off"]
    if BUILD_TOOLS.exists() and _pip_version() >= _BUILD_CONSTRAINTS_SINCE:
        # pip runs the archive's metadata hook, without this with the newest build tools available.
        command += ["--build-constraint", str(BUILD_TOOLS)]
    result = subprocess.run(
        [*command, "-r", str(requirement)],
        check=False,
        stdout=sys.stderr,
        stderr=None if live else subprocess.PIPE,
        text=True,
    )
    requirement.unlink()
    if result.returncode == 0:
        return
    tail = "" if live else "\n".join((result.stderr or "").splitlines()[-6:]) + "\n"
    if "DO NOT MATCH" in tail:
        raise HashMismatch(f"{tail}The index offers another file than the one pinned. Not used.")
    raise FetchFailed(
        f"{tail}pip could not download {lock.package} {lock.version} (exit {result.returncode}). "
        f"Check the network and pip's index settings, or place {lock.filename} in {folder} "
        "by hand, or set LLAMA_CPP_SOURCE_DIR to a llama.cpp checkout."
    )


def _pip_version() -> tuple[int, ...]:
    numbers = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("pip"))
    return tuple(map(int, numbers.groups())) if numbers else (0,)


def _is_unpacked(target: Path, lock: Lock) -> bool:
    try:
        return (target / STAMP).read_text(encoding="utf-8") == lock.identity
    except OSError:
        return False


def _require_complete(source: Path) -> None:
    for needed in ("CMakeLists.txt", "include/llama.h", "src/llama.cpp", "ggml/CMakeLists.txt"):
        if not (source / needed).is_file():
            raise SourceIncomplete(
                f"{source} is no llama.cpp source tree: {needed} is missing. "
                "Point LLAMA_CPP_SOURCE_DIR at the top of a checkout, or unset it."
            )


def _require_test_data(folder: Path) -> None:
    if not any((folder / "models").glob("ggml-vocab-*.gguf")):
        raise SourceIncomplete(
            "the pinned archive has no models/ggml-vocab-*.gguf. After a change of the pin, "
            "correct [unpack.tests] in native/llama.lock."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _only_one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _log(text: str) -> None:
    sys.stderr.write(f"native.vendor: {text}\n")


def main(argv: list[str] | None = None) -> int:
    """Print the source folder on standard output; messages go to standard error."""
    parser = argparse.ArgumentParser(prog="python -m native.vendor", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cmake", action="store_true", help="print 'folder;identity' for CMake")
    which.add_argument("--test-data", action="store_true", help="unpack what only tests read")
    parser.add_argument("--quiet", action="store_true", help="print nothing on standard output")
    options = parser.parse_args(argv)
    lock = Lock.read()
    try:
        source = provide_test_data(lock) if options.test_data else provide(lock)
        line = f"{source};{source_id(source, lock)}" if options.cmake else str(source)
    except VendorError as error:
        _log(f"{type(error).__name__}: {error}")
        return 1
    if not options.quiet:
        sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
