"""What a caller gives as a model becomes the one configuration that is meant, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from native.params import ModelParams
from runtime import ModelConfig, RuntimeConfig, errors
from runtime.client.load_request import config_of, config_of_start
from runtime.embedded import path as embedded_model_path
from runtime.settings.config import from_mapping, to_mapping

pytestmark = pytest.mark.pure

EMBEDDED = str(embedded_model_path())
STUB = ModelConfig("stub", ModelParams(n_ctx=512), backend="stub")


@pytest.mark.parametrize(
    ("model", "value", "path"),
    [
        ("demo", None, EMBEDDED),
        ("demo", "", EMBEDDED),
        ("demo", "/models/other.gguf", "/models/other.gguf"),
        ("demo", Path("/models/other.gguf"), "/models/other.gguf"),
        ("demo", STUB, "stub"),
        ("mine", "/models/mine.gguf", "/models/mine.gguf"),
    ],
)
def test_a_model_of_a_start_is_the_path_that_is_given(model: str, value: object, path: str) -> None:
    assert config_of_start(model, value).path == path


@pytest.mark.parametrize("value", [None, 5])
def test_only_the_embedded_model_needs_no_path(value: object) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"models\[mine\]"):
        config_of_start("mine", value)


def test_a_configuration_keeps_the_path_of_every_model() -> None:
    models = {"demo": ModelConfig("/models/other.gguf"), "mine": ModelConfig("/models/mine.gguf")}
    again = from_mapping(to_mapping(RuntimeConfig(models=models)))
    assert {model: config.path for model, config in again.models.items()} == {
        "demo": "/models/other.gguf",
        "mine": "/models/mine.gguf",
    }
    table = {"demo": {"n_ctx": 512}}
    assert from_mapping({"models": table}).models["demo"].path == EMBEDDED


def test_a_load_takes_a_path_with_options_or_a_whole_configuration() -> None:
    made = config_of("mine", "/models/mine.gguf", {"n_ctx": 512, "n_batch": None})
    assert made == ModelConfig("/models/mine.gguf", ModelParams(n_ctx=512))
    assert config_of("mine", STUB, {}) == STUB
    with pytest.raises(errors.InvalidRequest, match="n_ctx beside it"):
        config_of("mine", STUB, {"n_ctx": 512})
    assert config_of("demo", None, {}).path == EMBEDDED
    with pytest.raises(errors.InvalidRequest, match="needs the path"):
        config_of("mine", None, {})
