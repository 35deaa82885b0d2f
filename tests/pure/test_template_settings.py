"""A chat template as a setting: what is taken, and the error for a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.messages.model_table import ModelTable
from actors.messages.slot_file import SLOT_BYTES
from actors.text.chat_request import BadChat, chat_from
from runtime.client.request_options import chat_json, chat_request
from runtime.errors import ConfigError, InvalidRequest
from runtime.settings.config import from_mapping, to_mapping
from runtime.settings.template_settings import MAX_BYTES, template_from

pytestmark = pytest.mark.pure

GOOD = "{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}"


def test_a_model_gets_a_template_by_text_or_by_file(tmp_path: Path) -> None:
    file = tmp_path / "ä.jinja"
    file.write_text(GOOD + "ü", encoding="utf-8")
    config = from_mapping(
        {
            "models": {
                "plain": "/m",
                "text": {"path": "/m", "chat_template": GOOD},
                "file": {"path": "/m", "chat_template_file": str(file)},
                "demo": {"chat_template": GOOD, "n_ctx": 512},
            }
        }
    )
    templates = {model: one.chat_template for model, one in config.models.items()}
    assert templates == {"plain": None, "text": GOOD, "file": GOOD + "ü", "demo": GOOD}
    assert config.models["demo"].params.n_ctx == 512
    assert config.models["demo"].path.endswith("demo.gguf")
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"chat_template": "{% if %}"}, "chat_template", r"line 1"),
        ({"chat_template": "{{ x"}, "chat_template", "the chat template raised"),
        ({"chat_template": " \n"}, "chat_template", "is empty"),
        ({"chat_template": "You are {{ name }}."}, "chat_template", "reads no variable named mess"),
        ({"chat_template": 5}, "chat_template", "is not a text"),
        ({"chat_template": "\ud800"}, "chat_template", "is not UTF-8"),
        ({"chat_template": "x" * (MAX_BYTES + 1)}, "chat_template", f"at most {MAX_BYTES}"),
        ({"chat_template": GOOD, "chat_template_file": "/f"}, "chat_template_file", "either"),
        ({"chat_template_file": "/not/there"}, "chat_template_file", "cannot read"),
        ({"chat_template_file": "/"}, "chat_template_file", "cannot read"),
        ({"chat_template_file": "~no-such-user/f"}, "chat_template_file", "no such user"),
    ],
)
def test_the_error_of_a_wrong_template_names_the_mistake(
    options: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        template_from(options, "models.m")
    assert refused.value.key == f"models.m.{key}"


def test_a_file_that_is_no_template(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"a\xffb")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 1"):
        template_from({"chat_template_file": file}, "m")
    file.write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=f"at most {MAX_BYTES}"):
        template_from({"chat_template_file": file}, "m")
    file.write_text("a" * MAX_BYTES + "ü" * 9)
    with pytest.raises(ConfigError, match="more than"):
        template_from({"chat_template_file": file}, "m")


def test_a_request_carries_a_template_of_its_own() -> None:
    messages = [{"role": "user", "content": "hi"}]
    wanted = chat_request("m", messages, chat_template=GOOD)
    assert chat_from(wanted.prompt).template == GOOD
    assert chat_from(chat_json(messages)).template is None
    for wrong in (5, "", ["x"]):
        with pytest.raises(BadChat, match="chat_template"):
            chat_from(chat_json(messages, chat_template=wrong))
    with pytest.raises(InvalidRequest):
        chat_request("m", messages, chat_template=b"x")


def test_the_table_of_wanted_models_keeps_templates(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.touch()
    wanted = ModelTable(str(table))
    long = "ü" * (MAX_BYTES // 2)
    for number in range(40):
        wanted.add(m.LoadModel("", f"m{number}", "/m", chat_template=long))
    assert table.stat().st_size <= 2 * SLOT_BYTES
    assert {one.chat_template for one in ModelTable(str(table)).all()} == {long}
