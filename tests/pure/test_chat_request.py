"""A conversation is checked before a template sees it, and nothing of it is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.text.chat_request import BadChat, chat_from

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("plain", "why"),
    [
        ([], "at least one"),
        ({"tools": []}, "at least one"),
        ([3], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r'messages\[0\] has no "role"'),
        ([{"role": "user", "content": "x"}, {"role": 3, "content": "x"}], r"messages\[1\].role"),
        ([{"role": "a|>", "content": "x"}], r"messages\[0\].role"),
        ([{"role": "user"}], r'has no "content"'),
        ([{"role": "user", "content": 3}], r"content must be text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] is of type"),
        ([{"role": "user", "content": [{"type": "text"}]}], r'content\[0\] has no "text"'),
        ([{"role": "a", "tool_calls": [{"id": 1}]}], r'tool_calls\[0\] must be .* "function"'),
        ([{"role": "a", "tool_calls": [{"function": {}}]}], r'has no "name"'),
        ({"messages": [{"role": "u", "content": ""}], "tools": {}}, "tools must be a list"),
        (
            {"messages": [{"role": "u", "content": ""}], "deferred_tools": [1]},
            "deferred_tools must",
        ),
        ({"messages": [{"role": "u", "content": ""}], "tool": []}, "unknown key 'tool'"),
        ({"messages": [{"role": "u", "content": ""}], "template_kwargs": {"messages": 1}}, "set"),
        ({"messages": [{"role": "u", "content": ""}], "add_generation_prompt": 1}, "true or false"),
        (3, "an object"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(plain: object, why: str) -> None:
    with pytest.raises(BadChat, match=why):
        chat_from(json.dumps(plain))


def test_deferred_tools_may_be_called_and_do_not_reach_the_template() -> None:
    tools = [{"name": "shown", "parameters": {}}]
    more = [{"name": "found", "parameters": {}, "strict": True}]
    asked = {"messages": [{"role": "user", "content": "x"}]}
    chat = chat_from(json.dumps({**asked, "tools": tools, "deferred_tools": more}))
    assert [one["function"]["name"] for one in chat.variables()["tools"]] == ["shown"]
    assert [one["function"]["name"] for one in chat.callable_tools] == ["shown", "found"]
    assert chat.strict == {"found"}
    alone = chat_from(json.dumps({**asked, "deferred_tools": more}))
    assert alone.has_tools
    assert not alone.variables()["tools"]


@pytest.mark.parametrize("raw", ["{", "[" * 100_000, b"\xff", ""])
def test_what_is_no_json_is_refused(raw: str | bytes) -> None:
    with pytest.raises(BadChat):
        chat_from(raw)


def test_content_may_come_before_the_role() -> None:
    before = chat_from('[{"content": "x", "role": "user"}]')
    assert before.messages == chat_from('[{"role": "user", "content": "x"}]').messages


def test_parts_are_joined_and_nothing_is_empty_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = chat_from(json.dumps([{"role": "user", "content": parts}]))
    assert chat.messages[0]["content"] == "a\nb"
    call = {"function": {"name": "f", "arguments": "{}"}}
    chat = chat_from(json.dumps([{"role": "assistant", "content": None, "tool_calls": [call]}]))
    assert chat.messages[0]["content"] == ""


def test_arguments_that_are_no_json_stay_as_the_model_wrote_them() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": '}}
    chat = chat_from(json.dumps([{"role": "assistant", "tool_calls": [call]}]))
    assert chat.messages[0]["tool_calls"][0]["function"]["arguments"] == '{"a": '


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text(), max_size=4))
def test_what_is_not_known_here_reaches_the_template(more: dict[str, object]) -> None:
    more = {key: value for key, value in more.items() if key not in ("role", "content")}
    more.pop("tool_calls", None)
    chat = chat_from(json.dumps([{"role": "tool", "content": "x", **more}]))
    assert chat.messages[0] == {"role": "tool", "content": "x", **more}
