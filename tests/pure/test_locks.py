"""The lock files agree with pyproject.toml, and hold hashes and no addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import LOCKS, Lock, pins

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def wanted(lock: Lock) -> list[Requirement]:
    texts = list(PROJECT["project"]["dependencies"]) if lock.project else []
    for group in lock.groups:
        texts += PROJECT["dependency-groups"][group]
    return [Requirement(text) for text in texts]


def versions(lock: Lock, name: str) -> list[str]:
    found = pins(lock.path).items()
    return [version for key, version in found if key.split(" ")[0] == canonicalize_name(name)]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_what_the_project_asks_for(lock: Lock) -> None:
    for requirement in wanted(lock):
        locked = versions(lock, requirement.name)
        assert locked, f"{requirement.name} is not in {lock.path.name}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in locked), requirement


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_has_hashes_and_no_line_an_address(lock: Lock) -> None:
    text = lock.path.read_text(encoding="utf-8")
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) == len(pins(lock.path))
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_locks_agree_on_what_they_share() -> None:
    everything: dict[str, str] = {}
    for lock in (lock for lock in LOCKS if not lock.apart):
        for name, version in pins(lock.path).items():
            assert everything.setdefault(name, version) == version, name


def test_the_build_backend_is_locked_as_it_is_required() -> None:
    (build,) = (lock for lock in LOCKS if lock.name == "build")
    for text in PROJECT["build-system"]["requires"]:
        requirement = Requirement(text)
        (version,) = versions(build, requirement.name)
        assert requirement.specifier.contains(version), requirement
