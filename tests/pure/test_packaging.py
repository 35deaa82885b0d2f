"""What packages and services name exists: files, commands, settings, variables."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest

from runtime.settings.config import from_mapping
from runtime.settings.ports import RUNTIME_DIR_VARIABLE

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"


def read(name: str) -> str:
    return (PACKAGING / name).read_text(encoding="utf-8")


def test_the_settings_of_services_are_settings() -> None:
    settings = from_mapping(tomllib.loads(read("llama-actors.toml")))
    assert settings.cache_dir == Path("/var/lib/llama-actors/cache")


def test_the_unit_starts_the_launcher_and_stops_it_in_order() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(read("llama-actors.service"))
    service = unit["Service"]
    assert service["ExecStart"].split()[1:3] == ["serve", "--config"]
    assert service["KillMode"] == "mixed"
    assert service["Environment"].partition("=")[0] == RUNTIME_DIR_VARIABLE
    state, runtime = service["StateDirectory"], service["RuntimeDirectory"]
    assert service["Environment"].endswith(f"/run/{runtime}")
    assert f'"/var/lib/{state}/cache"' in read("llama-actors.toml")


def test_the_compose_file_names_what_is_there() -> None:
    text = read("compose.yaml")
    dockerfile = re.search(r"dockerfile: (\S+)", text)
    assert dockerfile is not None
    assert (ROOT / dockerfile[1]).is_file()
    mounts = re.findall(r"^      - (?:\$\{\w+:-)?([^:}\s]+)\}?:(/[^:\s]+)", text, re.MULTILINE)
    assert {target for _, target in mounts} >= {"/models", "/etc/llama-actors.toml"}
    assert '["serve", "--config", "/etc/llama-actors.toml"]' in text


def test_the_container_copies_locks_that_exist_and_runs_our_command() -> None:
    text = read("Containerfile")
    for lock in re.findall(r"requirements/(\S+\.txt)", text):
        assert (ROOT / "requirements" / lock).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "llama-actors" in project["project"]["scripts"]
    assert '"llama-actors"]' in text
    assert RUNTIME_DIR_VARIABLE in text
