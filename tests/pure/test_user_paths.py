"""Paths as people give them: each setting that takes one names itself when it cannot be used."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.filesystem import PosixFilesystem, make_private_dirs
from native.vendor import Lock, SourceIncomplete, provide
from runtime.cli.options import USER_PATH
from runtime.errors import ConfigError
from runtime.settings import user_paths
from runtime.settings.config import RuntimeConfig, from_mapping, node_dir, parse_model_argument
from runtime.settings.load_options import model_params
from runtime.settings.user_paths import expanded, home, user_path
from supervision import process

pytestmark = pytest.mark.pure

NOBODY = "~no-such-user-here/x"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without a passwd entry, and no variable that helps."""

    def no_entry(_uid: int) -> Any:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "LLAMA_ACTORS_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)


def test_a_home_is_found_by_the_variable_else_by_passwd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/the/home")
    assert expanded("~/x", "s") == Path("/the/home/x")
    assert expanded("~", "s") == Path("/the/home")
    by_passwd = Path(pwd.getpwuid(os.getuid()).pw_dir)
    for useless in ("", "relative/home"):
        monkeypatch.setenv("HOME", useless)
        assert home() == by_passwd
    name = pwd.getpwuid(os.getuid()).pw_name
    assert expanded(f"~{name}/x", "s") == by_passwd / "x"
    assert expanded("./~/x", "s") == Path("./~/x")
    assert user_path("x", "s") == Path.cwd() / "x"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cache_dir": NOBODY}, "cache_dir"),
        ({"runtime_dir": NOBODY}, "runtime_dir"),
        ({"log_file": NOBODY}, "log_file"),
        ({"cache_ram_file_dir": NOBODY}, "cache_ram_file_dir"),
        ({"cache_disks": {NOBODY: "1GiB"}}, "cache_disks"),
        ({"models": {"m": NOBODY}}, "models.m"),
        ({"models": {"m": {"path": NOBODY}}}, "models.m.path"),
        ({"models": {"m": {"path": "/m", "lora": [[NOBODY, 1.0]]}}}, "models.m.lora"),
        ({"models": {"m": {"path": "/m", "draft_path": NOBODY}}}, "models.m.draft_path"),
        ({"cache_dir": 5}, "cache_dir"),
        ({"cache_dir": ""}, "cache_dir"),
        ({"log_file": "a\0b"}, "log_file"),
        ({"models": {"m": {"path": ["/m"]}}}, "models.m.path"),
    ],
)
def test_every_setting_that_is_a_path_names_itself(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_mapping(settings)
    assert refused.value.key == key


def test_other_places_that_take_a_path_do_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"model m: .*no such user"):
        parse_model_argument(f"m={NOBODY}")
    with pytest.raises(ConfigError, match=r"load\.draft_path"):
        model_params({"draft_path": NOBODY}, "load")
    with pytest.raises(click.BadParameter, match="no such user"):
        USER_PATH.convert(NOBODY, None, None)
    monkeypatch.setenv("LLAMA_ACTORS_RUNTIME_DIR", NOBODY)
    with pytest.raises(ConfigError, match="LLAMA_ACTORS_RUNTIME_DIR"):
        node_dir(1234)
    monkeypatch.setenv("LLAMA_CPP_SOURCE_DIR", NOBODY)
    lock = Lock("p", "1", "f", "0", 1, "c", "r", ())
    with pytest.raises(SourceIncomplete, match="LLAMA_CPP_SOURCE_DIR"):
        provide(lock, tmp_path)


@given(st.text() | st.binary() | st.integers() | st.none())
def test_any_value_is_a_path_or_a_config_error(value: object) -> None:
    with contextlib.suppress(ConfigError):
        assert user_path(value, "s").is_absolute()


def test_a_relative_path_without_a_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="working directory"):
        user_path("x", "s")
    assert user_path("/x", "s") == Path("/x")


# ── without a home ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("homeless")
def test_without_a_home_there_is_no_disk_tier_and_a_reason() -> None:
    config = RuntimeConfig()
    assert config.disk_root is None
    assert config.directories() == ()
    assert "no home folder" in config.no_disk_because
    with pytest.raises(ConfigError, match="cache_dir: '~/x' starts with ~, but this user has no"):
        from_mapping({"cache_dir": "~/x"})
    named = from_mapping({"cache_dir": "/x"})
    assert (named.no_disk_because, named.disk_root) == ("", Path("/x"))
    assert from_mapping({"cache_disk": 0}).no_disk_because == ""
    assert from_mapping({"cache_disks": {"/x": "1GiB"}}).no_disk_because == ""


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/the/home")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert RuntimeConfig().disk_root == Path("/the/home/.cache/llama-actors")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert RuntimeConfig().disk_root == Path("/caches/llama-actors")


def test_the_runtime_folder_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_ACTORS_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "run").mkdir()
    fallback = tmp_path / "tmp" / f"llama-actors-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert node_dir(7) == tmp_path / "run" / "llama-actors" / "node-7"
    for useless in (str(tmp_path / "none"), "relative", "", __file__):
        monkeypatch.setenv("XDG_RUNTIME_DIR", useless)
        assert node_dir(7) == fallback / "node-7"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)  # the folder is of another user now
    assert node_dir(7).parent.name == f"llama-actors-{mine + 1}"


def test_a_temporary_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLAMA_ACTORS_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    place = tmp_path / f"llama-actors-{os.getuid()}"
    place.mkdir(mode=0o700)
    assert node_dir(7) == place / "node-7"
    place.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod 0700"):
        node_dir(7)
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        node_dir(7)


# ── folders that are made ──────────────────────────────────────────────────────────────────────


def modes(below: Path) -> set[int]:
    return {stat.S_IMODE(one.stat().st_mode) for one in below.rglob("*")}


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077, 0o777])
def test_every_folder_on_the_way_is_private(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        make_private_dirs(str(tmp_path / "a" / "b" / "c"))
        PosixFilesystem().make_dir(str(tmp_path / "a" / "d" / "e"))
        process.make_private_dirs(tmp_path / "f" / "g" / "h")
    finally:
        os.umask(old)
    assert modes(tmp_path) == {0o700}
    assert len(list(tmp_path.rglob("*"))) == 8


@pytest.mark.parametrize("make", [lambda p: make_private_dirs(str(p)), process.make_private_dirs])
def test_a_folder_that_exists_stays_as_it_is(tmp_path: Path, make: Any) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    make(shared / "new")
    make(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    assert stat.S_IMODE((shared / "new").stat().st_mode) == 0o700
    (shared / "file").touch()
    with pytest.raises(OSError, match="file"):
        make(shared / "file")
    with pytest.raises(OSError, match="file"):
        make(shared / "file" / "below")


def test_a_relative_folder_is_made_where_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_private_dirs("a/b/")
    process.make_private_dirs(Path("c/d"))
    assert (tmp_path / "a/b").is_dir()
    assert (tmp_path / "c/d").is_dir()


def test_no_path_of_a_user_is_expanded_elsewhere() -> None:
    """One function raises the right error; a bare expanduser raises RuntimeError."""
    root = Path(user_paths.__file__).parents[2]
    found = [
        file.relative_to(root).as_posix()
        for package in ("actors", "cache", "native", "runtime", "supervision")
        for file in (root / package).rglob("*.py")
        if "expanduser" in (text := file.read_text(encoding="utf-8")) or "Path.home" in text
    ]
    assert found == ["native/vendor.py"]  # a script of the build, which imports nothing of ours
