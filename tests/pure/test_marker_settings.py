"""Markers as files give them, and the key that signs thinking."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.messages import LoadModel
from actors.messages.markers import Markers
from actors.messages.model_table import ModelTable
from actors.messages.slot_file import SLOT_BYTES
from runtime.errors import ConfigError
from runtime.launch.signing_key import KEY_BYTES, KEY_FILE, signing_key
from runtime.settings.config import from_mapping, to_mapping

pytestmark = pytest.mark.pure


def config(**options: object) -> dict[str, object]:
    return {"models": {"m": {"path": "/m.gguf", **options}}}


@pytest.mark.parametrize(
    ("options", "markers"),
    [
        ({}, Markers()),
        ({"thinking_markers": []}, Markers(())),
        ({"thinking_markers": ["<a>", "</a>"]}, Markers(("<a>", "</a>"))),
        ({"tool_call_markers": ["a", "b", "c", "d"]}, Markers(None, ("a", "b", "c", "d"))),
    ],
)
def test_markers_come_from_the_table_of_a_model_and_go_back_there(
    options: dict[str, object], markers: Markers
) -> None:
    read = from_mapping(config(**options))
    assert read.models["m"].markers == markers
    assert from_mapping(to_mapping(read)) == read


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"thinking_markers": "<a>"}, "models.m.thinking_markers"),
        ({"thinking_markers": ["a", 3]}, "models.m.thinking_markers"),
        ({"thinking_markers": ["a"]}, "thinking_markers must be a list of 0 or 2 texts"),
        ({"tool_call_markers": ["a", "b", "c"]}, "tool_call_markers must be a list of 0 or 2 or 4"),
    ],
)
def test_markers_that_make_no_sense_stop_the_start(options: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        from_mapping(config(**options))


def test_a_model_that_comes_back_has_its_markers_again(tmp_path: Path) -> None:
    table = tmp_path / "wanted"
    table.write_bytes(bytes(2 * SLOT_BYTES))
    for markers in (Markers(), Markers((), ("a", "b"))):
        ModelTable(str(table)).add(LoadModel("", "m", "/m.gguf", markers=markers))
        (wanted,) = ModelTable(str(table)).all()
        assert wanted.markers == markers


def test_the_signing_key_stays_with_the_rows_and_is_private(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    assert len(key) == KEY_BYTES
    assert signing_key(tmp_path) == key
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / KEY_FILE).write_bytes(b"torn")
    fresh = signing_key(tmp_path)
    assert fresh not in (key, b"torn")
    assert signing_key(tmp_path) == fresh
    assert signing_key(None) != signing_key(None)
    assert len(signing_key(tmp_path / "missing")) == KEY_BYTES
