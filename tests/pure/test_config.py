"""Settings: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages.exact import Exact
from runtime import RuntimeConfig
from runtime.client.load_request import config_of
from runtime.errors import ConfigError
from runtime.settings.config import (
    ModelConfig,
    check_model_id,
    from_mapping,
    load_toml,
    parse_model_argument,
    to_mapping,
)
from runtime.settings.ports import DEFAULT_PORT, PORT_VARIABLE, resolve_port
from runtime.settings.sizes import Share, disk_settings, parse_budget, parse_size

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4k", 4096),
        ("1.5 KiB", 1536),
        ("512MiB", 512 << 20),
        ("4GB", 4 << 30),
        ("2t", 2 << 40),
        (17, 17),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_named_error(text: str) -> None:
    try:
        size = parse_size(text, "cache_ram")
    except ConfigError as error:
        size, key = 0, error.key
        assert key == "cache_ram"  # either outcome is right
    assert size >= 0


def test_settings_survive_the_way_to_the_launcher() -> None:
    config = from_mapping(
        {
            "admin_port": 20000,
            "cache_dir": "/tmp/x",
            "cache_ram": "1GiB",
            "models": {"a": {"path": "/m/a.gguf", "n_ctx": 512}, "b": "/m/b.gguf"},
        }
    )
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config
    assert config.models["a"].params.n_ctx == 512
    assert config.cache_ram == 1 << 30


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cahce_dir": "x"}, "cahce_dir"),
        ({"admin_port": 80}, "admin_port"),
        ({"cache_ram": "lots"}, "cache_ram"),
        ({"cache_ram": 0.5}, "cache_ram"),
        ({"cache_ram": True}, "cache_ram"),
        ({"cache_ram": "120%"}, "cache_ram"),
        ({"cache_disk": -1}, "cache_disk"),
        ({"cache_ram_file": "-4GiB"}, "cache_ram_file"),
        ({"cache_disks": ["/a"]}, "cache_disks"),
        ({"cache_disks": {"/a": "much"}}, "cache_disks./a"),
        ({"cache_disks": {"/a": -5}}, "cache_disks./a"),
        ({"cache_disks": {"/a": 5, "/b/../a": 5}}, "cache_disks"),
        ({"cache_disks": {"/a": 5}, "cache_dir": "/b"}, "cache_dir"),
        ({"models": ["a"]}, "models"),
        ({"models": {"a b": "/x"}}, "model id"),
        ({"models": {"a": 5}}, "models.a"),
        ({"models": {"a": {"path": "/x", "n_cxt": 5}}}, "models.a.n_cxt"),
        ({"models": {"a": {"path": "/x", "n_ctx": -5}}}, "models.a.n_ctx"),
        ({"models": {"a": {"path": "/x", "split_mode": "rows"}}}, "models.a.split_mode"),
        ({"models": {"a": {"path": "/x", "lora": [["/l", "x"]]}}}, "models.a.lora"),
        ({"models": {"a": {"path": "/x", "backend": "vulkan"}}}, "models.a.backend"),
        ({"models": {"a": {"path": "/x", "exact": "sometimes"}}}, "models.a.exact"),
        ({"models": {"a": {"path": "/x", "exact": True}}}, "models.a.exact"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(settings)
    assert caught.value.key == key


def test_a_model_says_how_exact_its_replies_are() -> None:
    models = {"a": "/a", "b": {"path": "/b", "exact": "always"}, "demo": {"exact": "prefix"}}
    config = from_mapping({"models": models})
    levels = {model: one.exact for model, one in config.models.items()}
    assert levels == {"a": Exact.REPEAT, "b": Exact.ALWAYS, "demo": Exact.PREFIX}
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config
    for name in ("prefix", Exact.PREFIX):
        assert ModelConfig("/a", exact=name).exact is Exact.PREFIX  # type: ignore[arg-type]
        assert config_of("a", "/a", {"exact": name}).exact is Exact.PREFIX
    for refused in (
        lambda: ModelConfig("/a", exact="sometimes"),  # type: ignore[arg-type]
        lambda: config_of("a", "/a", {"exact": "sometimes"}),
    ):
        with pytest.raises(ConfigError, match=r"exact: .sometimes. is not one of"):
            refused()


def test_a_budget_may_be_a_share_of_what_is_free() -> None:
    assert parse_budget("25%", "cache_ram") == Share(25.0)
    assert parse_budget(" 12.5 % ", "cache_ram").of(800) == 100  # type: ignore[union-attr]
    assert parse_budget("0%", "cache_ram") == 0
    assert parse_budget("4k", "cache_ram") == 4096
    config = from_mapping({"cache_ram": "25%", "cache_disks": {"/a": "50%", "/b": "1GiB"}})
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config
    assert 0 < config.ram_bytes() < 1 << 50


def test_directories_are_named_fastest_first() -> None:
    config = from_mapping(
        {"cache_ram_file": "1MiB", "cache_disks": {"/a": "1GiB", "/b": 0, "/c": "50%"}}
    )
    plans = config.directories()
    assert [(plan.name, str(plan.root)) for plan in plans[1:]] == [("disk", "/a"), ("disk3", "/c")]
    assert plans[0].name == "ram_file"
    assert not plans[0].is_asked_for
    assert config.disk_root == Path("/a")
    assert from_mapping({"cache_disk": 0}).directories() == ()
    assert from_mapping({"cache_disk": 0}).disk_root is None


def test_disks_on_the_command_line() -> None:
    assert disk_settings(["4GiB"]) == {"cache_disk": "4GiB"}
    assert disk_settings(["/a=1GiB", "/b=c=50%"]) == {"cache_disks": {"/a": "1GiB", "/b=c": "50%"}}
    for texts in (["4GiB", "/a=1GiB"], ["4GiB", "5GiB"], ["=4GiB"], ["/a=1", "/a=2"]):
        with pytest.raises(ConfigError, match="cache_disk"):
            disk_settings(texts)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("admin_port = = 3")
    with pytest.raises(ConfigError, match="not TOML"):
        load_toml(path)


def test_ports_come_from_the_argument_then_the_environment_then_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PORT_VARIABLE, raising=False)
    assert resolve_port(None) == DEFAULT_PORT
    monkeypatch.setenv(PORT_VARIABLE, "20001")
    assert resolve_port(None) == 20001
    assert resolve_port(20002) == 20002
    monkeypatch.setenv(PORT_VARIABLE, "many")
    with pytest.raises(ConfigError, match=PORT_VARIABLE):
        resolve_port(None)


def test_model_arguments() -> None:
    model, config = parse_model_argument("tiny=/models/tiny.gguf")
    assert (model, config.path) == ("tiny", "/models/tiny.gguf")
    assert parse_model_argument("demo")[1].path.endswith("demo.gguf")
    for text in ("tiny", "=x", "a b=x", "demo=/x.gguf", "tiny="):
        with pytest.raises(ConfigError):
            parse_model_argument(text)


@given(st.text(max_size=80))
def test_model_ids_are_safe_in_a_path_and_a_shell(model: str) -> None:
    try:
        check_model_id(model)
    except ConfigError:
        return
    assert model.isascii()
    assert not set(model) & set(" /\\\"'$`;|&<>()\n")
    assert not model.startswith((".", "-"))


def test_the_ram_tier_never_takes_more_than_a_quarter_by_default() -> None:
    from native.system_memory import available_memory

    assert RuntimeConfig().ram_bytes() <= max(available_memory() or 0, 1) // 3
    with pytest.raises(ConfigError, match="available"):
        RuntimeConfig(cache_ram=1 << 60).ram_bytes()
