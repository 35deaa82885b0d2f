"""What lies in its own part of a prompt is not rendered again; what looks like it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from actors.text.chat_request import chat_from
from actors.text.chat_shown import NotShown, check_shown
from actors.text.chat_template import ChatTemplate
from actors.text.parts import parts_of
from actors.text.template_marks import Marks

pytestmark = pytest.mark.pure

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Explains a word of the language."},
}
USER = {"role": "user", "content": "What is a heron?"}


def call(name: str = "look_up", number: int = 1) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": {}}}


class Counted(ChatTemplate):
    n_rendered = 0

    def render_marked(self, variables: Mapping[str, Any]) -> tuple[str, Marks]:
        self.n_rendered += 1
        return super().render_marked(variables)


def check(source: str, messages: list[dict[str, Any]], **more: Any) -> int:
    """How often it was rendered to know that all is shown; NotShown."""
    template = Counted(source)
    chat = chat_from(json.dumps({"messages": messages, **more}))
    text, marks = template.render_marked(chat.variables())
    check_shown(template, chat, text, thinks=False, parts=parts_of(chat, text, marks.found))
    return template.n_rendered - 1


LOOP = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}!{{ c.function.name }}{% endfor %}{% endfor %}"
)
TALK = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [call()]},
    {"role": "tool", "content": "A bird that wades.", "tool_call_id": "call_1"},
]


def test_what_is_there_is_not_rendered_again() -> None:
    assert check(LOOP, TALK, tools=[TOOL]) == 0


def test_what_is_too_short_to_be_sure_of_is_rendered_again() -> None:
    short = {"type": "function", "function": {"name": "add", "description": "Adds."}}
    assert check(LOOP, [USER], tools=[short]) == 1
    assert check(LOOP, [USER, {"role": "tool", "content": "3"}]) == 1
    assert (
        check(LOOP, [USER, {"role": "assistant", "content": "", "tool_calls": [call("add")]}]) == 1
    )


def test_tools_that_only_a_message_describes_are_missed() -> None:
    source = LOOP.replace("{{ tools | tojson if tools else '' }}", "")
    rules = {"role": "system", "content": f"Tools: {json.dumps(TOOL)}"}
    with pytest.raises(NotShown, match=r"^tools would not reach"):
        check(source, [rules, USER], tools=[TOOL])


def test_a_text_that_is_printed_as_something_else_is_missed() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.tool_call_id }}"
        "{{ m.content if m.role != 'tool' }}{% endfor %}"
    )
    result = {"role": "tool", "content": "A bird that wades.", "tool_call_id": "A bird that wades."}
    with pytest.raises(NotShown, match=r"messages\[1\] \(role tool\)"):
        check(source, [USER, result])


@pytest.mark.parametrize("field", ["reasoning_content", "content"])
def test_a_call_that_is_only_thought_of_is_missed(field: str) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}{% endfor %}"
    )
    message = {"role": "assistant", "content": "", "tool_calls": [call()], field: "I use look_up."}
    with pytest.raises(NotShown, match=r"messages\[1\]\.tool_calls\[0\]"):
        check(source, [USER, message])


def test_a_second_call_of_the_same_name_is_missed() -> None:
    source = LOOP.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
    message = {"role": "assistant", "content": "", "tool_calls": [call(), call(number=2)]}
    with pytest.raises(NotShown, match=r"messages\[1\]\.tool_calls\[1\]"):
        check(source, [USER, message])
    longer = {"role": "assistant", "content": "", "tool_calls": [call("look_up_all"), call()]}
    with pytest.raises(NotShown, match=r"messages\[1\]\.tool_calls\[1\]"):
        check(source, [USER, longer])
