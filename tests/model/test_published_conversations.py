"""Conversations as agents send them, through published templates: whole and in order, or refused.

Beside ``test_published_templates``, which has the simple ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.messages.errors import RequestRefused
from actors.messages.markers import Markers
from actors.text.chat_continuation import prompt_text
from actors.text.chat_request import chat_from
from actors.text.chat_shape import completed, fitted
from actors.text.chat_shown import NotShown, check_shown
from actors.text.chat_template import ChatTemplate, TemplateFailed
from tests.support.template_outcomes import CONVERSATIONS

pytestmark = pytest.mark.model

Message = dict[str, Any]


def said(role: str, content: str | None = None, **more: object) -> Message:
    return {"role": role, "content": content, **more}


def calling(*calls: tuple[str, str], **more: object) -> Message:
    made = [
        {"id": f"call_{name}_0123456789", "type": "function",
         "function": {"name": name, "arguments": json.dumps({"word": word})}}
        for name, word in calls
    ]  # fmt: skip
    return said("assistant", tool_calls=made, **more)


def result(name: str, content: str) -> Message:
    return said("tool", content, tool_call_id=f"call_{name}_0123456789")


SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
TOOLS = [
    {"name": "look_up", "description": "Explains a noun.", "input_schema": SCHEMA},
    {"type": "function", "function": {"name": "count", "parameters": SCHEMA, "strict": True}},
]
USER, REPLY, MORE = said("user", "Why?"), said("assistant", "Hence."), said("user", "How?")
RULE, ORDER = said("system", "Be brief."), said("system", "Be polite.")
ONE_CALL = [USER, calling(("look_up", "heron")), result("look_up", "A wading bird.")]
TWO_CALLS = [
    USER,
    calling(("look_up", "heron"), ("count", "owl")),
    result("look_up", "A wading bird."),
    result("count", "Three of them."),
]
THOUGHT = "It stands in water."
# Case → the request, and what the prompt must have, in this order.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "tools of several forms": (
        {"messages": [RULE, USER], "tools": TOOLS},
        ("look_up", "count"),
    ),
    "two calls": (
        {"messages": TWO_CALLS, "tools": TOOLS},
        ("Why?", "look_up", "heron", "count", "owl", "Three"),
    ),
    "a call with a thought": (
        {"messages": [USER, {**TWO_CALLS[1], "reasoning_content": THOUGHT}, *TWO_CALLS[2:]],
         "tools": TOOLS, "enable_thinking": True},
        ("Why?", THOUGHT, "look_up", "heron"),
    ),
    "a user after a result": (
        {"messages": [*ONE_CALL, MORE], "tools": TOOLS},
        ("Why?", "heron", "wading", "How?"),
    ),
    "a system message after a result": (
        {"messages": [RULE, *ONE_CALL, ORDER], "tools": TOOLS},
        ("Why?", "heron", "wading", "Be polite."),
    ),
    "two system messages": ({"messages": [RULE, ORDER, USER]}, ("Be brief.", "Be polite.")),
    "two developers and two users": (
        {"messages": [said("developer", "Be brief."), said("developer", "Be polite."), USER, MORE]},
        ("Be brief.", "Be polite.", "Why?", "How?"),
    ),
    "a system message in the middle": (
        {"messages": [RULE, USER, REPLY, ORDER, MORE]},
        ("Why?", "Hence.", "Be polite.", "How?"),
    ),
    "continuing": (
        {"messages": [USER, said("assistant", "Hence, ")], "continue_final_message": True},
        ("Why?", "Hence, "),
    ),
    "continuing after a thought": (
        {"messages": [USER, said("assistant", "Hence, ", reasoning=THOUGHT)],
         "enable_thinking": True, "continue_final_message": True},
        ("Why?", THOUGHT, "Hence, "),
    ),
    "continuing a thought": (
        {"messages": [USER, said("assistant", thinking="It stands ")],
         "enable_thinking": True, "continue_final_message": True},
        ("Why?", "It stands "),
    ),
    "little thinking": ({"messages": [USER], "reasoning_effort": "low"}, ("Why?",)),
    "no thinking": ({"messages": [USER], "reasoning_effort": "none"}, ("Why?",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_of_an_agent_is_rendered_as_in_the_table(name: str, published: Path) -> None:
    source = (published / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    template = completed(ChatTemplate(source, bos_token="<bos>", eos_token="<eos>"))
    thinks = bool(Markers().for_template(source).thinking)
    found = {case: outcome(template, case, thinks) for case in CASES}
    assert found == dict(zip(CASES, CONVERSATIONS[name], strict=True))


def test_every_published_template_is_in_the_table(published: Path) -> None:
    assert set(CONVERSATIONS) == {one.stem for one in (published / "templates").glob("*.jinja")}


def outcome(template: ChatTemplate, case: str, thinks: bool) -> str:
    request, words = CASES[case]
    chat = fitted(template, chat_from(json.dumps(request)))
    if not (thinks or chat.shape.marks or chat.shape.keeps_thought):
        plain = {key: value for key, value in request.items() if key != "enable_thinking"}
        chat = fitted(template, chat_from(json.dumps(plain)))
    try:
        text, _ = prompt_text(template, chat)
        check_shown(template, chat, text, thinks=thinks)
    except TemplateFailed as error:
        return "T" if str(error).startswith("the chat template raised: ") else str(error)
    except NotShown:
        return "L"
    except RequestRefused as error:
        return "R" if "does not print the thought" in str(error) else str(error)
    if chat.continuing:
        assert text.endswith(words[-1]), text
    at = 0
    for word in words:
        found = text.find(word, at)
        if found < 0:
            assert word == THOUGHT, (word, text)  # of a turn that called; as its authors meant it
            return "t"
        at = found
    return "."
