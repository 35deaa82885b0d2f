"""``doctor`` looks at every directory that the cache would use, and leaves nothing there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.cli import doctor
from runtime.cli.doctor import look_at
from runtime.settings.config import DirectoryPlan, from_mapping

pytestmark = pytest.mark.pure


@pytest.fixture(autouse=True)
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders may lie anywhere."""
    monkeypatch.setattr(doctor, "file_system_of", lambda _: "ext4")


def plan(root: Path, name: str = "disk", budget: int = 1 << 20) -> DirectoryPlan:
    return DirectoryPlan(name, root, budget, "cache_dir", is_asked_for=True)


def test_a_fit_directory_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = look_at(plan(tmp_path / "not" / "there"))
    assert not found.trouble
    assert "ms to write and sync" in found.detail
    assert list(tmp_path.iterdir()) == []


def test_a_problem_of_a_directory_is_reported_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir(mode=0o700)
    assert not look_at(plan(tmp_path)).trouble
    rows.chmod(0o755)
    assert look_at(plan(tmp_path)).fix == f"chmod 0700 {rows}"
    rows.chmod(0o700)
    tmp_path.chmod(0o750)
    assert look_at(plan(tmp_path)).fix == f"chmod 0700 {tmp_path}"
    tmp_path.chmod(0o700)
    memory = look_at(plan(tmp_path, "ram_file"))
    assert "no memory" in memory.trouble
    assert "tmpfs" in memory.fix
    monkeypatch.setattr(doctor, "file_system_of", lambda _: "tmpfs")
    assert not look_at(plan(tmp_path, "ram_file")).trouble
    assert "reboot" in look_at(plan(tmp_path)).trouble
    monkeypatch.setattr(doctor, "file_system_of", lambda _: "ext4")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "belongs to user" in look_at(plan(tmp_path)).trouble
    file = tmp_path / "file"
    file.touch()
    assert "no directory" in look_at(plan(file)).trouble


def test_a_disk_that_is_full_or_slow_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "sync_time_s", lambda _: 0.5)
    assert look_at(plan(tmp_path)).trouble == "a slow disk"
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert "smaller budget" in look_at(plan(tmp_path)).fix


def test_every_directory_of_a_configuration_is_looked_at(tmp_path: Path) -> None:
    config = from_mapping(
        {
            "cache_disks": {str(tmp_path / "a"): "1MiB", str(tmp_path / "b"): "10%"},
            "cache_ram_file": "1MiB",
            "cache_ram_file_dir": str(tmp_path / "c"),
        }
    )
    assert [look_at(one).trouble != "" for one in config.directories()] == [True, False, False]
