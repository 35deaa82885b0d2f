"""Where the processes that a host starts find modules."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from supervision.launched import child_environment

pytestmark = pytest.mark.pure


def test_a_child_finds_what_the_host_finds_and_then_what_pythonpath_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A host may set the variable for its children after its own start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/host", "/with:colon", "/both"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("/both", "", "later", "/host/../own")))
    made = child_environment()
    places = [str(tmp_path), "/host", "/both", str(tmp_path / "later"), "/own"]
    assert made["PYTHONPATH"].split(os.pathsep) == places
    assert made["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize("value", [None, ""])
def test_a_child_finds_no_more_than_the_host_without_pythonpath(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.setattr(sys, "path", ["/host"])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if value is not None:
        monkeypatch.setenv("PYTHONPATH", value)
    assert child_environment()["PYTHONPATH"] == "/host"
