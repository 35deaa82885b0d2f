"""Which models a folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.catalog.files import found_in

pytestmark = pytest.mark.pure


def _write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)


def test_files_and_folders_of_models(tmp_path: Path) -> None:
    _write(tmp_path, "b.gguf", "a-Q4_K_M.gguf", "org/repo/c.gguf", "notes.txt", ".hidden.gguf")
    assert [one.name for one in found_in(tmp_path)] == ["a-Q4_K_M", "b", "c"]


def test_parts_are_one_model(tmp_path: Path) -> None:
    _write(tmp_path, *(f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)))
    (found,) = found_in(tmp_path)
    assert (found.name, found.n_bytes, found.is_whole) == ("big", 30, True)
    assert found.path.name == "big-00001-of-00003.gguf"
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    assert found_in(tmp_path)[0].missing == ("big-00002-of-00003.gguf",)


def test_what_goes_with_a_model_is_none(tmp_path: Path) -> None:
    _write(tmp_path, "mmproj-F16.gguf", "x.lora.gguf", "imatrix.gguf", "loranne.gguf")
    assert [one.name for one in found_in(tmp_path)] == ["loranne"]


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    _write(tmp_path, "one/model.gguf", "two/model.gguf")
    assert [one.name for one in found_in(tmp_path)] == ["model", "two/model"]


def test_links_to_nothing_and_loops_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "a.gguf")
    (tmp_path / "b.gguf").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert {one.path.resolve() for one in found_in(tmp_path)} == {tmp_path / "a.gguf"}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        found_in(tmp_path / "none")
