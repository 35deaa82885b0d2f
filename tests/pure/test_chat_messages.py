"""However clients write messages and tools, they come out in one form, or are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.text.chat_request import BadChat, Chat, chat_from

pytestmark = pytest.mark.pure

USER = {"role": "user", "content": "Why?"}
CALL = {"id": "call_7", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}}


def sent(*messages: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return chat(*messages, **more).sent


def chat(*messages: dict[str, Any], **more: Any) -> Chat:
    return chat_from(json.dumps({"messages": messages, **more}))


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_parts_of_text_are_text_whatever_their_api_calls_them(kind: str) -> None:
    parts = [{"type": kind, "text": "a"}, {"type": kind, "text": "b", "cache_control": {}}]
    for role in ("system", "user", "assistant", "tool"):
        assert sent({"role": role, "content": parts})[0]["content"] == "a\nb"


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": ""}, {"content": []}])
@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_an_answer_without_content_has_an_empty_one(role: str, message: dict[str, Any]) -> None:
    (made,) = chat({"role": role, **message}).messages
    assert made["content"] == ""


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"thinking": "Hm."},
        {"reasoning_content": "Hm.", "reasoning": "Hm.", "thinking": None},
    ],
)
def test_thoughts_have_one_name(thought: dict[str, Any]) -> None:
    (made,) = sent({"role": "assistant", "content": "So.", **thought})
    assert made == {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}


def test_thoughts_as_parts_are_thoughts() -> None:
    parts = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "text", "text": "So."},
    ]
    (made,) = sent({"role": "assistant", "content": parts})
    assert (made["content"], made["reasoning_content"]) == ("So.", "Hm.")


def test_results_get_the_id_and_the_name_of_their_call() -> None:
    calls: list[dict[str, Any]] = [
        {"function": {"name": name, "arguments": {}}} for name in ("f", "g", "f")
    ]
    results = [{"role": "tool", "content": "1", "tool_name": "g"}, {"role": "tool", "content": "2"}]
    made = sent(USER, {"role": "assistant", "tool_calls": calls}, *results)
    assert [one["id"] for one in made[1]["tool_calls"]] == ["call00001", "call00002", "call00003"]
    assert [one["tool_call_id"] for one in made[2:]] == ["call00002", "call00001"]
    assert [one["name"] for one in made[2:]] == ["g", "f"]


def test_a_result_with_an_id_gets_the_name_and_keeps_what_it_has() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "x", "tool_call_id": "call_7"}
    assert sent(USER, called, result)[2] == {**result, "name": "look_up"}
    assert sent(USER, called, {**result, "name": "other"})[2]["name"] == "other"
    assert sent(USER, {**result, "tool_call_id": "unknown"})[1] == {
        **result,
        "tool_call_id": "unknown",
    }


FUNCTION = {"name": "look_up", "description": "Explains.", "parameters": SCHEMA}


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": FUNCTION},
        {"function": FUNCTION},
        FUNCTION,
        {"type": "function", **FUNCTION},
        {"type": "function", "function": {**FUNCTION, "strict": True}},
        {"name": "look_up", "description": "Explains.", "input_schema": SCHEMA},
        {"type": "custom", "name": "look_up", "description": "Explains.", "input_schema": SCHEMA,
         "cache_control": {"type": "ephemeral"}},
    ],
)  # fmt: skip
def test_tools_have_one_form(tool: dict[str, Any]) -> None:
    assert chat(USER, tools=[tool]).variables()["tools"] == [
        {"type": "function", "function": FUNCTION}
    ]


def test_a_tool_without_parameters_has_none() -> None:
    (made,) = chat(USER, tools=[{"name": "now", "parameters": {}}]).variables()["tools"]
    assert made["function"] == {
        "name": "now",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"functions": [FUNCTION]}, 'functions has been replaced .* send "tools"'),
        ({"function_call": "auto"}, "function_call has been replaced .* tool_choice"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, r"\[0\].role is func"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
            r"messages\[0\].function_call has been replaced by tool_calls",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_2025"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\] of type 'function' is no function"),
        ({"tools": [{"function": {}}]}, r'tools\[0\].function has no "name"'),
        ({"tools": [{"name": "f", "parameters": "x"}]}, r"tools\[0\]: its parameters must be"),
        ({"messages": [{"role": "assistant", "thinking": 3}]}, r"\[0\].thinking must be text"),
        (
            {"messages": [{"role": "assistant", "thinking": "a", "reasoning": "b"}]},
            "several different thoughts",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "thinking"}]}]}, "is of type 'think"),
        ({"messages": [{"role": "a", "tool_calls": [{**CALL, "id": 3}]}]}, "id must be text"),
        ({"reasoning_effort": "huge"}, "reasoning_effort must be one of none, minimal"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "give one of them"),
        ({"template_kwargs": {"a": 1}, "chat_template_kwargs": {"a": 1}}, "are the same"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs may not set 'tools'"),
        ({"continue_final_message": 3}, "must be true, false, content or"),
    ],
)
def test_what_is_refused_is_named(request_: dict[str, Any], why: str) -> None:
    with pytest.raises(BadChat, match=why):
        chat_from(json.dumps({"messages": [USER], **request_}))


def test_both_names_of_the_templates_variables_are_taken() -> None:
    for name in ("template_kwargs", "chat_template_kwargs"):
        made = chat(USER, **{name: {"mood": "glad", "enable_thinking": False}}).variables()
        assert (made["mood"], made["enable_thinking"]) == ("glad", False)


def test_many_calls_and_results_without_ids_are_connected_quickly() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    result = {"role": "tool", "content": ""}
    made = sent(USER, {"role": "assistant", "tool_calls": [call] * 9000}, *[result] * 9000)
    assert made[-1]["tool_call_id"] == "call09000"
