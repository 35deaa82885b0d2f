"""What ``launch`` sets for each program, and that no key is in its words or in a script."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from runtime.cli.launch.command import script
from runtime.cli.launch.programs import (
    KEY_NAME,
    NO_KEY,
    PROGRAMS,
    Target,
    environment,
    setup_for,
)

pytestmark = pytest.mark.pure

TARGET = Target("http://127.0.0.1:8080", 'my "model"', 65_536, has_key=True)
GIVEN = {"words": ("-p", "Hi you"), "key_file": None, "gateway_key": "secret"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_key_is_in_variables_alone(name: str) -> None:
    setup = setup_for(PROGRAMS[name], TARGET)
    found = environment(setup, {"PATH": "/bin"}, "secret")
    assert [one for one, value in found.items() if value == "secret"] == list(setup.key_variables)
    assert found["PATH"] == "/bin"
    assert set(environment(setup, {}, "").values()) >= {NO_KEY}
    assert "secret" not in script(PROGRAMS[name], setup, GIVEN)
    from_file = script(PROGRAMS[name], setup, {**GIVEN, "key_file": Path("/a key")})
    assert "\"$(cat '/a key')\"" in from_file


def test_claude_code_leaves_out_what_changes_and_asks_nobody_else() -> None:
    setup = setup_for(PROGRAMS["claude"], TARGET)
    before = {"ANTHROPIC_API_KEY": "real", "CLAUDE_CODE_USE_BEDROCK": "1"}
    found = environment(setup, before, "")
    assert not before.keys() & found.keys()
    assert found["ANTHROPIC_BASE_URL"] == TARGET.url
    assert found["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"
    assert found["ANTHROPIC_MODEL"] == found["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == TARGET.model
    assert setup.words == ()


def test_codex_gets_settings_that_toml_reads() -> None:
    setup = setup_for(PROGRAMS["codex"], TARGET)
    assert set(setup.words[::2]) == {"-c"}
    read = tomllib.loads("\n".join(setup.words[1::2]))
    provider = read["model_providers"]["llama-actors"]
    assert provider["base_url"] == f"{TARGET.url}/v1"
    assert (provider["env_key"], read["model"]) == (KEY_NAME, TARGET.model)
    assert read["model_context_window"] == 65_536


def test_opencode_gets_a_configuration_in_a_variable() -> None:
    setup = setup_for(PROGRAMS["opencode"], TARGET)
    plain = json.loads(setup.variables["OPENCODE_CONFIG_CONTENT"])
    provider = plain["provider"]["llama-actors"]
    assert provider["options"] == {
        "baseURL": f"{TARGET.url}/v1", "apiKey": f"{{env:{KEY_NAME}}}",
    }  # fmt: skip
    assert provider["models"][TARGET.model]["limit"]["context"] == 65_536
    assert plain["model"] == plain["small_model"] == f"llama-actors/{TARGET.model}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_certificates_travel(name: str) -> None:
    trusted = Target("https://x", "m", ca_file=Path("/ca.pem"))
    assert "/ca.pem" in setup_for(PROGRAMS[name], trusted).variables.values()
    assert "/ca.pem" not in setup_for(PROGRAMS[name], TARGET).variables.values()
