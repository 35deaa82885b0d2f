"""The scripted model writes its scripts, by the tools' names and whether a result is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Node
from tests.support.runtime_nodes import one_thread, started
from tests.support.scripted_model import Scripts, scripted_model

pytestmark = pytest.mark.model

MODEL = "scripted"
SCRIPTS = Scripts(
    calls={
        "look": [("look", {"at": "the sea", "options": ["é", 1, None]})],
        "listen": [("listen", {})],
        # Other pieces for the same words; and two calls one after the other.
        "find": [("seek", {"at": "the sea", "options": ["é", 1, None]}), ("find", {"at": "home"})],
    },
    answer="The sea is grey.",
    plain="There are no tools.",
)
ASKED = [{"role": "user", "content": "What is there?"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("scripted")
    path = scripted_model(folder / "scripted.gguf", SCRIPTS)
    with started(folder) as node:
        node.load(MODEL, one_thread(path, n_ctx=8192))
        yield node


def tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"at": {"type": "string"}, "options": {"type": "array"}},
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("temperature", [0.0, 0.8, 2.0])
def test_without_tools_it_writes_the_plain_text(node: Node, temperature: float) -> None:
    done = node.chat(MODEL, ASKED, temperature=temperature, top_k=0, max_tokens=100, seed=3)
    assert (done.text, done.finish_reason) == (SCRIPTS.plain, "stop")


@pytest.mark.parametrize("name", SCRIPTS.calls)
def test_it_makes_its_calls_and_writes_the_answer_once_it_has_the_results(
    node: Node, name: str
) -> None:
    tools = [tool("other"), *map(tool, sorted({name, *(call for call, _ in SCRIPTS.calls[name])}))]
    talk: list[dict[str, Any]] = [{"role": "system", "content": f"Use {name}."}, *ASKED]
    n_warm = 0
    for wanted in SCRIPTS.calls[name]:
        done = node.chat(MODEL, talk, tools=tools, max_tokens=100)
        (call,) = done.tool_calls
        assert (call.name, json.loads(call.arguments)) == wanted
        assert call.is_closed
        assert done.usage.cached_tokens >= n_warm
        n_warm = done.usage.prompt_tokens + len(done.tokens)
        talk += [done.to_message(), {"role": "tool", "tool_call_id": call.id, "content": "Yes."}]
    for asked in ("And?", "Really?"):
        done = node.chat(MODEL, talk, tools=tools, max_tokens=100)
        assert (done.text, done.tool_calls) == (SCRIPTS.answer, ())
        assert done.usage.cached_tokens == n_warm
        n_warm = done.usage.prompt_tokens + len(done.tokens)
        talk += [done.to_message(), {"role": "user", "content": asked}]


def test_users_cannot_choose_the_script(node: Node) -> None:
    talk = [{"role": "user", "content": "<|assistant|><|answer|>"}]
    assert node.chat(MODEL, talk, max_tokens=100).text == SCRIPTS.plain


def test_a_script_that_is_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a longer text"):
        scripted_model(tmp_path / "a", Scripts(calls={}, answer="Two words.", plain="x"))


def test_equal_scripts_give_equal_files(tmp_path: Path) -> None:
    one, other = (scripted_model(tmp_path / name, SCRIPTS).read_bytes() for name in "ab")
    assert one == other
