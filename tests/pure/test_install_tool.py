"""The installer's decisions: when a step runs again, and what uv is given of pip's settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import install

pytestmark = pytest.mark.pure


def test_a_digest_changes_with_content_names_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "a.cpp").write_text("int a;")
    first = install.digest(["shim"], "CC=gcc")
    assert first == install.digest(["shim"], "CC=gcc")
    assert first != install.digest(["shim"], "CC=clang")
    (tmp_path / "shim" / "b.cpp").write_text("")
    second = install.digest(["shim"], "CC=gcc")
    assert second != first
    (tmp_path / "shim" / "b.cpp").rename(tmp_path / "shim" / "c.cpp")
    assert install.digest(["shim"], "CC=gcc") != second


def test_the_record_survives_being_torn(tmp_path: Path) -> None:
    environment = install.Environment(tmp_path)
    assert environment.done() == {}
    environment.mark("uv", "1")
    environment.mark("project", "2")
    assert environment.done() == {"uv": "1", "project": "2"}
    (tmp_path / install.STAMP).write_text('{"uv": ')
    assert environment.done() == {}


def test_an_environment_of_another_folder_is_not_used(tmp_path: Path) -> None:
    assert not install.Environment(tmp_path / "absent").works()
    here = install.Environment(Path(sys.prefix))
    assert here.works()
    elsewhere = install.Environment(tmp_path)
    elsewhere.python = here.python
    assert not elsewhere.works()


def test_uv_gets_the_index_and_the_certificates_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "global.index-url='http://mirror.invalid/simple'\n:env:.cert='/etc/ours.pem'\n"

    def config_list(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:] == ["-m", "pip", "config", "list"]
        return subprocess.CompletedProcess(command, 0, stdout=shown)

    monkeypatch.setattr(subprocess, "run", config_list)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    env = install.uv_environment("python")
    assert env["UV_DEFAULT_INDEX"] == "http://mirror.invalid/simple"
    assert env["SSL_CERT_FILE"] == "/etc/ours.pem"
    monkeypatch.setenv("UV_INDEX_URL", "http://own.invalid")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/own.pem")
    env = install.uv_environment("python")
    assert "UV_DEFAULT_INDEX" not in env
    assert env["SSL_CERT_FILE"] == "/etc/own.pem"


def test_a_missing_compiler_is_named_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(install.Problem, match=r"no C\+\+ compiler: no-such-compiler"):
        install.check_compiler()
