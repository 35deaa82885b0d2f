"""What is saved when, as settings: every wrong one is named with what to do."""

from __future__ import annotations

import json

import pytest

from cache.policy import SAVE_ALL
from runtime.errors import ConfigError
from runtime.settings.config import RuntimeConfig, from_mapping, to_mapping

pytestmark = pytest.mark.pure


def test_settings_reach_the_policy_and_come_back() -> None:
    config = from_mapping({"save": {"min_tokens": 100, "save_finish_tail": False}})
    assert (config.save.min_tokens, config.save.save_finish_tail) == (100, False)
    assert config.save.session_resume_wait_ms == SAVE_ALL.session_resume_wait_ms
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config
    assert RuntimeConfig().save == SAVE_ALL


def test_the_tables_beside_it_reach_the_policy_and_come_back() -> None:
    config = from_mapping(
        {
            "save": {"tail_delay_ms": 0},
            "live": {"max_idle": 8, "idle_s": 60},
            "logits": {"memory_bytes": "32MiB"},
            "restore": {"min_saved_s": 0.01},
        }
    )
    save = config.save
    assert (save.tail_delay_ms, save.live.max_idle, save.live.idle_s) == (0, 8, 60.0)
    assert (save.logits.memory_bytes, save.restore.min_saved_s) == (32 << 20, 0.01)
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"live": {"max_idles": 1}}, r"live\.max_idles.*known are min_tokens, max_idle"),
        ({"live": {"max_idle": -1}}, r"live.*max_idle must be at least 0.*max_idle 0 keeps no"),
        ({"live": {"max_idle_share": 2}}, r"live.*max_idle_share must be 0 \.\. 1"),
        ({"live": {"idle_s": "long"}}, r"live\.idle_s.*is not a number"),
        ({"live": 4}, r"live.*must be a table, for instance \[live\] min_tokens = 16"),
        ({"logits": {"memory_bytes": "much"}}, r"logits\.memory_bytes.*512MiB"),
        ({"logits": {"row_share": 3.0}}, r"logits.*row_share must be 0 \.\. 1"),
        ({"restore": {"weight": 0.0}}, r"restore.*weight must be above 0"),
        ({"restore": {"min_samples": 0}}, r"restore.*min_samples must be at least 1"),
        ({"save": {"tail_delay_ms": 60_000}}, r"save.*tail_delay_ms must be 0 \.\. 30000"),
        ({"save": {"live": {}}}, r"save\.live.*unknown setting"),
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
