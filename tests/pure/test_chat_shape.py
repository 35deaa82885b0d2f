"""Each template gets conversations in the form it was written for, or the caller learns why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.text.chat_request import Chat, Shape, chat_from
from actors.text.chat_shape import fitted, shape_of
from actors.text.chat_shown import NotShown, check_shown
from actors.text.chat_template import ChatTemplate

pytestmark = pytest.mark.pure

LOOP = "{{% for m in messages %}}<{{{{ m.role }}}}>{}{{% endfor %}}"
CALLS = "{% for c in m.tool_calls or [] %}call {{ c.function.name }} {ARGUMENTS};{% endfor %}"
AS_OBJECT = CALLS.replace("{ARGUMENTS}", "{{ c.function.arguments | tojson }}")
AS_TEXT = CALLS.replace("{ARGUMENTS}", "{{ '' + c.function.arguments }}")
AS_EITHER = CALLS.replace("{ARGUMENTS}", "{{ c.function.arguments }}")
TEXT = "{{ m.content }}"
USUAL = LOOP.format(AS_OBJECT + TEXT)
ASKS_NONE = LOOP.format(
    "{% if m.content is none %}" + AS_OBJECT + "{% else %}" + TEXT + "{% endif %}"
)
ASKS_ABSENT = LOOP.format(
    "{% if m.content is defined %}" + TEXT + "{% else %}" + AS_OBJECT + "{% endif %}"
)
PREFERS_CALLS = LOOP.format(
    "{% if m.tool_calls %}" + AS_OBJECT + "{% else %}" + TEXT + "{% endif %}"
)
ARGUMENTS = {"word": "hÉron"}
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": ARGUMENTS}}
USER = {"role": "user", "content": "Why?"}
RESULT = {"role": "tool", "content": "A bird."}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks it up."}}


def shown(source: str, *messages: dict[str, Any], thinks: bool = False, **more: Any) -> str:
    template = ChatTemplate(source)
    chat = fitted(template, chat_from(json.dumps({"messages": messages, **more})))
    text = template.render(chat.variables())
    check_shown(template, chat, text, thinks=thinks)
    return text


def calling(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [CALL], **more}


@pytest.mark.parametrize("source", [USUAL, ASKS_NONE, ASKS_ABSENT, PREFERS_CALLS])
@pytest.mark.parametrize("message", [calling(), calling(content=None), calling(content="")])
@pytest.mark.parametrize("sent", ["object", "text"])
def test_calls_without_text_are_printed_however_they_are_sent(
    source: str, message: dict[str, Any], sent: str
) -> None:
    if sent == "text":
        function = {"name": "look_up", "arguments": json.dumps(ARGUMENTS)}
        message = {**message, "tool_calls": [{**CALL, "function": function}]}
    text = shown(source, USER, message, RESULT)
    assert text == '<user>Why?<assistant>call look_up {"word": "hÉron"};<tool>A bird.'


@pytest.mark.parametrize("source", [USUAL, ASKS_NONE, ASKS_ABSENT, PREFERS_CALLS])
def test_text_beside_calls_is_printed_with_them(source: str) -> None:
    text = shown(source, USER, calling(content="One moment."), RESULT)
    assert "One moment." in text
    assert 'call look_up {"word": "hÉron"};' in text


@pytest.mark.parametrize("calls", [AS_OBJECT, AS_TEXT, AS_EITHER])
@pytest.mark.parametrize("sent", ['{"word":  "hÉron"}', ARGUMENTS, "{}", "", {}, '{"word": '])
def test_arguments_are_json_in_the_prompt(calls: str, sent: object) -> None:
    """A text is printed as it was sent where texts are wanted, also when it is no JSON."""
    function = {"name": "look_up", "arguments": sent}
    text = shown(LOOP.format(calls + TEXT), USER, calling(tool_calls=[{"function": function}]))
    printed = text.split("look_up ")[1].removesuffix(";")
    if sent != '{"word": ':
        assert json.loads(printed) == (json.loads(sent or "{}") if isinstance(sent, str) else sent)
    elif calls != AS_OBJECT:
        assert printed == sent


def test_a_template_that_iterates_over_tools_gets_an_empty_list() -> None:
    source = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + USUAL
    assert shown(source, USER) == "<user>Why?"
    assert shown(source, USER, tools=[TOOL]) == "look_up<user>Why?"
    asks = "{% if tools is not none %}TOOLS{{ tools | tojson }}{% endif %}" + USUAL
    assert shown(asks, USER) == "<user>Why?"


def test_a_template_with_tools_in_the_old_form_gets_them_so() -> None:
    source = (
        "{% for t in tools or [] %}def {{ t.name }}("
        "{% for n, f in t.parameter_definitions.items() %}{{ n }}: {{ f.type }}={{ f.required }} "
        "{% endfor %}){% endfor %}" + USUAL
    )
    properties = {"word": {"type": "string"}, "n": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": ["word"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert shown(source, USER, tools=[tool]).startswith("def f(word: str=True n: int=False )")


ONLY_SYSTEM = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}<{{ m.role }}>"
    "{{ m.content }}{% endif %}{% endfor %}"
)
RAISES = USUAL + (
    "{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}"
)


KNOWS_DEVELOPER = "{% if 'developer' in messages | map(attribute='role') %}{% endif %}" + USUAL


@pytest.mark.parametrize(
    ("source", "role"),
    [(KNOWS_DEVELOPER, "developer"), (USUAL, "system"), (ONLY_SYSTEM, "system")],
)
def test_developer_messages_become_system_messages_where_the_template_has_no_developer(
    source: str, role: str
) -> None:
    rule = {"role": "developer", "content": "Be brief."}
    assert shown(source, rule, USER) == f"<{role}>Be brief.<user>Why?"
    assert shown(source, USER, rule).endswith(f"<{role}>Be brief.")


FIRST_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}"
    "{% endfor %}"
)
FIRST_CALL = LOOP.format("{{ m.tool_calls[0].function.name if m.tool_calls }}" + TEXT)


@pytest.mark.parametrize(
    ("source", "chat", "name"),
    [
        (USUAL, {"messages": [USER], "tools": [TOOL]}, "tools"),
        (USUAL, {"messages": [USER], "documents": [{"text": "Owls."}]}, "documents"),
        (ONLY_SYSTEM, {"messages": [USER, RESULT]}, r"messages\[1\] \(role tool\)"),
        (ONLY_SYSTEM, {"messages": [USER, calling()]}, r"messages\[1\].tool_calls\[0\]"),
        (USUAL, {"messages": [USER], "template_kwargs": {"mood": 1}}, r"template_kwargs\['mood'\]"),
        (USUAL, {"messages": [USER], "enable_thinking": True}, "enable_thinking=True"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_named(source: str, chat: dict[str, Any], name: str) -> None:
    more = {key: value for key, value in chat.items() if key != "messages"}
    with pytest.raises(NotShown, match=name):
        shown(source, *chat["messages"], **more)


def test_a_wish_about_thinking_is_refused_only_where_it_has_no_effect() -> None:
    plain, knows = USUAL, USUAL + "{{ enable_thinking }}"
    assert shown(plain, USER, enable_thinking=False)
    assert shown(plain, USER, enable_thinking=True, thinks=True)
    assert shown(knows, USER, enable_thinking=False, thinks=True).endswith("False")
    assert shown(USUAL + "{{ thinking }}", USER, enable_thinking=True, thinks=True).endswith("True")
    with pytest.raises(NotShown, match="cannot switch thinking off"):
        shown(plain, USER, enable_thinking=False, thinks=True)


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content | tojson }}",
        "{{ m.content | upper }}",
        "{{ m.content.split('</think>')[-1] }}",
    ],
)
def test_texts_that_are_printed_in_another_form_are_no_loss(body: str) -> None:
    reply = {"role": "assistant", "content": "<think>\nhm</think>\nHence."}
    rule = {"role": "system", "content": 'Say "é".'}
    assert shown(LOOP.format(body), rule, USER, reply, rule, RESULT)


def test_a_template_that_uses_too_much_is_not_probed_further() -> None:
    endless = "{% if messages[0].content == 'zquser' %}{% for a in range(99999) %}"
    endless += "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}" + USUAL
    assert shape_of(ChatTemplate(endless)) == Shape()


def test_probing_a_slow_template_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.text.chat_shape.MAX_RENDER_S", -1.0)
    assert shape_of(ChatTemplate(ASKS_NONE)) == Shape()


def test_a_shape_changes_only_what_it_names() -> None:
    chat = chat_from(json.dumps([USER, calling(content="a", name="x"), RESULT]))
    assert chat.shaped(Shape()) is chat
    split = chat.shaped(Shape(splits_calls=True, no_text="absent", text_arguments=True))
    assert [sorted(one) for one in split.messages] == [
        ["content", "role"],
        ["content", "name", "role"],
        ["role", "tool_calls"],
        ["content", "name", "role", "tool_call_id"],
    ]
    assert split.shaped(Shape()).messages == chat.messages
    assert isinstance(chat, Chat)
