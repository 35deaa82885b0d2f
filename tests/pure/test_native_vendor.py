"""The pinned source: what is unpacked, what is refused, and that a second call does nothing."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from native import vendor
from native.vendor import (
    FetchFailed,
    HashMismatch,
    Lock,
    SourceIncomplete,
    UnsafeArchive,
    VendorError,
)

pytestmark = pytest.mark.pure

FILES = {
    "pkg/vendor/llama.cpp/CMakeLists.txt": b"project(llama)",
    "pkg/vendor/llama.cpp/include/llama.h": b"// h",
    "pkg/vendor/llama.cpp/src/llama.cpp": b"// cpp",
    "pkg/vendor/llama.cpp/ggml/CMakeLists.txt": b"project(ggml)",
    "pkg/vendor/llama.cpp/common/json-schema-to-grammar.cpp": b"// one file of a folder",
    "pkg/vendor/llama.cpp/common/json-schema-to-grammar.cpp.orig": b"not wanted",
    "pkg/vendor/llama.cpp/common/common.cpp": b"not wanted",
    "pkg/vendor/llama.cpp/models/big.bin": b"not wanted",
    "pkg/other.py": b"not wanted",
}
KEPT = ("CMakeLists.txt", "include", "src", "ggml", "common/json-schema-to-grammar.cpp")
Add = Callable[[tarfile.TarFile], None]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def place_archive(build: Path, add: Add = lambda _: None) -> Lock:
    """Put an archive where a download would be, and return the lock that pins it."""
    archive = build / "downloads" / "pkg.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in FILES.items():
            info = member(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        add(tar)
    return Lock(
        package="pkg",
        version="1",
        filename="pkg.tar.gz",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        megabytes=1,
        commit="abc",
        root="pkg/vendor/llama.cpp",
        keep=KEPT,
    )


@pytest.fixture(autouse=True)
def no_own_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_SOURCE_DIR", raising=False)


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_only_the_kept_folders_and_files_are_unpacked(tmp_path: Path) -> None:
    source = vendor.provide(place_archive(tmp_path), tmp_path)
    kept = {"CMakeLists.txt", "include/llama.h", "src/llama.cpp", "ggml/CMakeLists.txt"}
    kept.add("common/json-schema-to-grammar.cpp")
    assert names(source) == kept | {vendor.STAMP}
    assert source == tmp_path / "llama.cpp-abc"


def test_a_second_call_touches_nothing(tmp_path: Path) -> None:
    lock = place_archive(tmp_path)
    source = vendor.provide(lock, tmp_path)
    (tmp_path / "downloads" / "pkg.tar.gz").unlink()
    (source / "src" / "marker").touch()
    assert vendor.provide(lock, tmp_path) == source
    assert (source / "src" / "marker").exists()


def test_a_new_pin_replaces_the_old_source(tmp_path: Path) -> None:
    vendor.provide(place_archive(tmp_path), tmp_path)
    lock = replace(place_archive(tmp_path), keep=(*KEPT, "models"))
    source = vendor.provide(lock, tmp_path)
    assert (source / "models" / "big.bin").exists()


def test_test_data_has_a_folder_and_a_selection_of_its_own(tmp_path: Path) -> None:
    vocabulary = member("pkg/vendor/llama.cpp/models/ggml-vocab-x.gguf")
    lock = replace(
        place_archive(tmp_path, lambda tar: tar.addfile(vocabulary)), keep_for_tests=("models",)
    )
    data = vendor.provide_test_data(lock, tmp_path)
    kept = {"models/big.bin", "models/ggml-vocab-x.gguf"}
    assert names(data) == kept | {vendor.STAMP}
    assert data == tmp_path / "llama.cpp-abc-test-data"
    assert not names(vendor.provide(lock, tmp_path)) & kept
    (tmp_path / "downloads" / "pkg.tar.gz").unlink()
    assert vendor.provide_test_data(lock, tmp_path) == data


def test_an_archive_without_test_data_leaves_no_folder(tmp_path: Path) -> None:
    lock = replace(place_archive(tmp_path), keep_for_tests=("models",))
    with pytest.raises(SourceIncomplete, match=r"unpack\.tests"):
        vendor.provide_test_data(lock, tmp_path)
    assert not (tmp_path / "llama.cpp-abc-test-data").exists()


def test_an_archive_with_another_hash_is_never_unpacked(tmp_path: Path) -> None:
    lock = replace(place_archive(tmp_path), sha256="0" * 64)
    with pytest.raises(HashMismatch, match="pins 000"):
        vendor.provide(lock, tmp_path)
    assert not (tmp_path / "llama.cpp-abc").exists()


@pytest.mark.parametrize(
    "bad",
    [
        member("pkg/vendor/llama.cpp/src/../../../../escape"),
        member("../escape"),
        member("/absolute"),
        member("pkg/vendor/llama.cpp/src/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("pkg/vendor/llama.cpp/src/hard", tarfile.LNKTYPE, "pkg/other.py"),
        member("pkg/vendor/llama.cpp/src/device", tarfile.CHRTYPE),
    ],
    ids=lambda info: info.name,
)
def test_members_that_leave_the_folder_or_are_no_files_stop_it(
    tmp_path: Path, bad: tarfile.TarInfo
) -> None:
    build = tmp_path / "build"
    lock = place_archive(build, lambda tar: tar.addfile(bad))
    with pytest.raises(UnsafeArchive):
        vendor.provide(lock, build)
    assert names(build) == {"downloads/pkg.tar.gz", ".vendor.lock"}
    assert names(tmp_path) == {f"build/{name}" for name in names(build)}


def test_an_archive_without_the_needed_files_leaves_no_source(tmp_path: Path) -> None:
    lock = replace(place_archive(tmp_path), keep=("include",))
    with pytest.raises(SourceIncomplete):
        vendor.provide(lock, tmp_path)
    assert not (tmp_path / "llama.cpp-abc").exists()


def test_the_error_of_a_failed_download_has_the_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = place_archive(tmp_path)
    (tmp_path / "downloads" / "pkg.tar.gz").unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchFailed, match="LLAMA_CPP_SOURCE_DIR"):
        vendor.provide(lock, tmp_path)


def test_a_source_of_ones_own_is_used_and_named_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = place_archive(tmp_path)
    own = tmp_path / "own"
    vendor.provide(lock, tmp_path).rename(own)
    (own / vendor.STAMP).unlink()
    monkeypatch.setenv("LLAMA_CPP_SOURCE_DIR", str(own))
    assert vendor.provide(lock, tmp_path / "build") == own
    before = vendor.source_id(own, lock)
    assert before.startswith("own-")
    (own / "src" / "llama.cpp").write_bytes(b"// changed")
    assert vendor.source_id(own, lock) != before


def test_a_folder_that_is_no_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_SOURCE_DIR", str(tmp_path))
    with pytest.raises(SourceIncomplete, match="LLAMA_CPP_SOURCE_DIR"):
        vendor.provide(place_archive(tmp_path), tmp_path)


def test_the_command_prints_the_folder_and_explains_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA_CPP_SOURCE_DIR", str(tmp_path))
    assert vendor.main([]) == 1
    assert "SourceIncomplete" in capsys.readouterr().err


def test_the_committed_lock_is_complete() -> None:
    lock = Lock.read()
    assert len(lock.sha256) == 64
    assert lock.filename.endswith(f"{lock.version}.tar.gz")
    assert lock.root.startswith(lock.filename.removesuffix(".tar.gz"))
    assert {"include", "src", "ggml", "LICENSE"} <= set(lock.keep)
    assert issubclass(HashMismatch, VendorError)


def test_it_runs_before_anything_is_installed() -> None:
    """`make install` calls it before this project is installed."""
    root = Path(__file__).parents[2]
    bare = [sys.executable, "-I", "-S", str(root / "native" / "vendor.py"), "--help"]
    ran = subprocess.run(bare, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert '"native/vendor.py"' in (root / "tools" / "install.py").read_text(encoding="utf-8")
