"""What is saved when, as settings: every wrong one is named with what to do."""

from __future__ import annotations

import json

import pytest

from cache.policy import SAVE_ALL
from runtime.config import RuntimeConfig, from_mapping, to_mapping
from runtime.errors import ConfigError
from runtime.save_settings import KEYS, REPLACED

pytestmark = pytest.mark.pure


def test_settings_reach_the_policy_and_come_back() -> None:
    config = from_mapping({"save": {"min_tokens": 100, "save_finish_tail": False}})
    assert (config.save.min_tokens, config.save.save_finish_tail) == (100, False)
    assert config.save.session_resume_wait_ms == SAVE_ALL.session_resume_wait_ms
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config
    assert RuntimeConfig().save == SAVE_ALL


@pytest.mark.parametrize("key", REPLACED)
@pytest.mark.parametrize("where", ["in the table", "beside it"])
def test_a_gate_of_another_cache_is_answered_with_what_replaces_it(key: str, where: str) -> None:
    settings = {"save": {key: 1}} if where == "in the table" else {key: 1}
    with pytest.raises(ConfigError, match=f"{key}.*no such gate here: .{{20}}"):
        from_mapping(settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"save": {"min_token": 1}}, r"save\.min_token.*known are min_tokens"),
        ({"save": {"min_tokens": "many"}}, r"save\.min_tokens.*whole number"),
        ({"save": {"min_tokens": True}}, r"save\.min_tokens.*whole number"),
        ({"save": {"min_tokens": -1}}, r"save.*min_tokens must not be negative"),
        ({"save": {"save_finish_tail": 1}}, r"save\.save_finish_tail.*true or false"),
        ({"save": {"session_resume_wait_ms": -5}}, r"save.*session_resume_wait_ms"),
        ({"save": 3}, r"save.*must be a table"),
        ({"min_tokens": 3}, r"min_tokens.*belongs into the table \[save\]"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_mapping(settings)


def test_every_key_is_a_field_of_the_policy() -> None:
    assert all(hasattr(SAVE_ALL, key) for key in KEYS)
