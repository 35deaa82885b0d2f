"""One schema: what it refuses and in which words, its reference, its defaults, its JSON schema."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from actors.messages.pressure_settings import PressureSettings
from cache.policy import SAVE_ALL
from native.model_params import ModelParams
from runtime.cli.main import main
from runtime.errors import ConfigError
from runtime.settings import schema
from runtime.settings.config import RuntimeConfig, from_file, from_mapping, to_mapping
from runtime.settings.reference import default_toml, json_schema, markdown

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("table", "value", "beside"),
    [
        (schema.Node, RuntimeConfig(), {"live", "logits", "restore"}),
        (schema.Pressure, PressureSettings(), set()),
        (schema.Live, SAVE_ALL.live, set()),
        (schema.Logits, SAVE_ALL.logits, set()),
        (schema.Restore, SAVE_ALL.restore, set()),
    ],
)
def test_a_table_has_every_field_of_its_value(table: Any, value: Any, beside: set[str]) -> None:
    fields = {one.name for one in dataclasses.fields(value)} - {"models_presets"}  # of [models]
    assert set(table.__struct_fields__) == fields | beside


def test_a_model_has_every_load_option_and_the_save_table_every_gate() -> None:
    assert {one.name for one in dataclasses.fields(ModelParams)} < {*schema.Model.__struct_fields__}
    gates = {one.name for one in dataclasses.fields(SAVE_ALL)}
    assert gates - {*schema.Save.__struct_fields__} == {"block_tokens", "live", "logits", "restore"}


def test_nothing_given_is_the_default_configuration() -> None:
    assert from_mapping({}) == RuntimeConfig()
    assert from_mapping(json.loads(json.dumps(to_mapping(RuntimeConfig())))) == RuntimeConfig()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cahce_dir": "x"}, "cahce_dir: unknown setting; did you mean cache_dir"),
        ({"tail_delay_ms": 3}, r"tail_delay_ms: belongs into the table \[save\]"),
        ({"admin_port": "many"}, "admin_port: 'many' is not a whole number from 1024 to 65535"),
        ({"admin_port": 80}, "admin_port: 80 is not a whole number from 1024 to 65535"),
        ({"cache_ram": 0.5}, "cache_ram: 0.5 is not a size; write for instance 512MiB"),
        ({"log_format": "xml"}, "log_format: 'xml' is not one of"),
        ({"pressure": {"high": "much"}}, "pressure.high: 'much' is not a number"),
        (
            {"pressure": {"tiers": ["ram", 3]}},
            r"pressure.tiers: \[.*3\] is not a list of texts",
        ),
        ({"pressure": True}, r"pressure: must be a table, for instance \[pressure\] enabled = "),
        ({"save": {"live": {}}}, "save.live: unknown setting"),
        ({"models": 3}, "models: 3 is not a table of models by id"),
        (
            {"models": {"a": {"path": "/x", "n_ctx": "long"}}},
            "a.n_ctx: 'long' is not a whole",
        ),
        ({"models": {"a": {"path": "/x", "type_k": "q9"}}}, "models.a.type_k: 'q9' is not one of"),
        ({"models": {"a": {"path": 5}}}, "models.a.path: 5 is not a path"),
        ({"models": {"a": {"n_ctx": 5}}}, "models.a: must be a path, or a table with a path"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_an_error_names_key_value_and_what_is_expected(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        from_mapping(settings)


def test_an_error_in_a_file_names_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('cache_ram = "1GiB"\n\n[save]\nmin_tokens = 1\ntail_delay_ms = "soon"\n')
    with pytest.raises(ConfigError, match=rf"save.tail_delay_ms: 'soon' .*{file}, line 5"):
        from_file(file)
    assert main(["config", "check", str(file)]) == 2
    assert main(["serve", "--config", str(file)]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("error: save.tail_delay_ms:")
        assert line.endswith("line 5)")
    assert main(["serve", "--config", str(file), "--cache-ram", "lots"]) == 2
    file.write_text('cache_ram = "1GiB"\n')
    assert main(["serve", "--config", str(file), "--cache-ram", "lots"]) == 2
    assert "line" not in capsys.readouterr().err.splitlines()[-1]
    file.write_text('[models]\na = "/m"\n[models.b]\npath = "/m"\nn_cxt = 3\n')
    with pytest.raises(ConfigError, match=r"models.b.n_cxt: unknown.*n_ctx\?.*line 5"):
        from_file(file)
    file.write_text('[models.b]\npath = "/m"\n')
    assert main(["config", "check", str(file)]) == 0


def test_the_default_file_is_valid_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(default_toml(), encoding="utf-8")
    assert from_file(file) == RuntimeConfig()
    changed = re.sub(r"^# (\w+ = .*)(?<!# not set)$", r"\1", default_toml(), flags=re.MULTILINE)
    defaults, _, model = changed.partition("\n# [models.ID]\n")
    assert from_mapping(tomllib.loads(defaults)) == RuntimeConfig()
    options = tomllib.loads(model.partition("\n\n")[0])
    assert from_mapping({"models": {"m": options | {"path": "/m"}}}).models["m"].params == (
        ModelParams()
    )


def test_the_reference_explains_every_setting() -> None:
    text = markdown()
    tables = [schema.Node, schema.Model, *schema.TABLES.values()]
    for table in tables:
        for key, one in schema.table_schema(table)["properties"].items():
            assert one["description"]
            assert key in schema.TABLES or f"| `{key}` | " in text


def test_the_json_schema_accepts_what_the_node_accepts() -> None:
    rules = json_schema()
    Draft202012Validator.check_schema(rules)
    check = Draft202012Validator(rules)
    check.validate(tomllib.loads(default_toml()))
    check.validate({"models": {"a": "/m", "b": {"path": "/m", "lora": ["/l", ["/l", 0.5]]}}})
    for wrong in ({"cahce": 1}, {"admin_port": 1}, {"models": {"a": {"n_cxt": 1}}}):
        assert list(check.iter_errors(wrong)), wrong
