"""Which part of a conversation wrote which part of its prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.text.chat_request import Chat, Shape, chat_from
from actors.text.chat_template import ChatTemplate
from actors.text.parts import Parts, parts_of, with_tools
from actors.text.template_marks import MAX_MARKS, Marks
from tests.support.prompt_parts import check

pytestmark = pytest.mark.pure

LOOP = (
    "<s>{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "!{{ c.function.name }}{% endfor %}</>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)
HEAD = (
    "{% set rest = messages %}"
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}"
    "{% set rest = messages[1:] %}{% endif %}{% if tools %}[{{ tools | tojson }}]{% endif %}"
    "{% for m in rest %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Hence."},
    {"role": "user", "content": "How?"},
]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}


def shown(source: str, messages: list[dict[str, Any]], **more: Any) -> tuple[Chat, str, Parts]:
    chat = chat_from(json.dumps({"messages": messages, **more}))
    text, marks = ChatTemplate(source).render_marked(chat.variables())
    parts = parts_of(chat, text, marks.found)
    check(chat, text, parts)
    return chat, text, parts


def cut(text: str, parts: Parts) -> list[tuple[str, str]]:
    return [(part.name, text[part.start : part.end]) for part in parts.found]


def test_a_message_is_what_the_loop_wrote_for_it() -> None:
    _, text, parts = shown(LOOP, TALK)
    assert cut(text, parts) == [
        ("template", "<s>"),
        ("messages[0]", "<system>Be brief.</>"),
        ("messages[1]", "<user>Why?</>"),
        ("messages[2]", "<assistant>Hence.</>"),
        ("messages[3]", "<user>How?</>"),
        ("reply", "<assistant>"),
    ]
    assert not parts.unknown


def test_what_is_written_before_the_loop_is_found_by_its_text() -> None:
    _, text, parts = shown(HEAD, TALK, tools=[TOOL])
    names = [name for name, _ in cut(text, parts)]
    assert names == [
        "template", "messages[0]", "tools", "messages[1]", "messages[2]", "messages[3]", "reply",
    ]  # fmt: skip
    assert "look_up" in dict(cut(text, parts))["tools"]


def test_other_prompts_part_where_messages_begin() -> None:
    _, _, parts = shown(LOOP, [*TALK, {"role": "assistant", "content": "So."}])
    names = [parts.found[at].name for at in parts.restarts]
    assert names == ["messages[1]", "messages[3]", "messages[4]"]


def test_a_message_that_is_left_out_has_no_part() -> None:
    source = "{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    _, _, parts = shown(source, [*TALK, {"role": "tool", "content": "A heron."}])
    assert parts.unknown == ("messages[4]",)


def test_tools_that_are_left_out_have_no_part() -> None:
    assert shown(LOOP, TALK, tools=[TOOL])[2].unknown == ("tools",)


CAPTURED = {
    "a macro": (
        "{% macro all(them) %}{% for m in them %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% endmacro %}{{ all(messages) }}"
    ),
    "a block": (
        "{% set text %}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% endset %}{{ text }}"
    ),
    "a variable": (
        "{% set ns = namespace(out='') %}{% for m in messages %}"
        "{% set ns.out = ns.out ~ '<' ~ m.role ~ '>' ~ m.content %}{% endfor %}{{ ns.out }}"
    ),
}


@pytest.mark.parametrize("loop", CAPTURED.values(), ids=CAPTURED)
def test_a_captured_loop_is_looked_through_for_the_messages(loop: str) -> None:
    _, text, parts = shown(loop, TALK)
    assert dict(cut(text, parts))["messages[1]"] == "Why?"
    # Which of two equal texts is whose is not known.
    _, _, parts = shown(loop, [TALK[1], TALK[2], TALK[1]])
    assert parts.unknown == ("messages[0]", "messages[2]")


def test_a_loop_over_numbers_counts_as_well() -> None:
    loop = (
        "{% for i in range(messages | length) %}{% set m = messages[i] %}"
        "{% set next = messages[i + 1] %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    _, text, parts = shown(loop, TALK)
    assert cut(text, parts)[1] == ("messages[1]", "<user>Why?")


def test_a_loop_that_looks_ahead_writes_nothing_for_what_it_looks_at() -> None:
    loop = (
        "{% for m in messages %}{% for later in messages[loop.index:] %}{{ later.role[0] }}"
        "{% endfor %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    )
    _, text, parts = shown(loop, TALK)
    assert cut(text, parts)[1] == ("messages[1]", "au<user>Why?</>")


def test_a_loop_that_writes_later_messages_early_gives_them_their_part() -> None:
    loop = (
        "{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}"
        "{% for later in messages if later.role == 'tool' and m.tool_calls %}({{ later.content }})"
        "{% endfor %}</>{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    talk = [
        TALK[1],
        {"role": "assistant", "content": "Look.", "tool_calls": [call]},
        {"role": "tool", "content": "A heron."},
    ]
    _, text, parts = shown(loop, talk)
    assert cut(text, parts) == [
        ("messages[0]", "<user>Why?</>"),
        ("messages[1]", "<assistant>Look."),
        ("messages[2]", "(A heron.)"),
        ("messages[1]", "</>"),
    ]


def test_a_system_text_that_is_folded_into_a_message_has_its_own_part() -> None:
    loop = (
        "{% set system = messages[0].content %}{% for m in messages[1:] %}<{{ m.role }}>"
        "{% if loop.first %}{{ system }}\n\n{% endif %}{{ m.content }}</>{% endfor %}"
    )
    _, text, parts = shown(loop, TALK)
    assert cut(text, parts)[:2] == [
        ("messages[0]", "<user>Be brief."),
        ("messages[1]", "\n\nWhy?</>"),
    ]


def test_tools_inside_of_a_message_have_their_own_part() -> None:
    loop = (
        "{% for m in messages %}{% if loop.last %}[{{ tools | tojson }}]{% endif %}"
        "<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    )
    _, text, parts = shown(loop, TALK, tools=[TOOL])
    assert [name for name, _ in cut(text, parts)][-2:] == ["tools", "messages[3]"]
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% if loop.first %}[{{ tools | tojson }}]{% endif %}</>{% endfor %}"
    )
    assert [name for name, _ in cut(*shown(source, TALK, tools=[TOOL])[1:])][:2] == [
        "messages[0]",
        "tools",
    ]


@pytest.mark.parametrize(
    "written",
    [
        "{{ tools | tojson }}",
        "{% for t in tools %}<{{ t | tojson }}>{% endfor %}",
        "{% for t in tools %}<{{ t.function | tojson(indent=4) }}>{% endfor %}",
    ],
)
def test_tools_that_are_written_as_json_have_a_part_each(written: str) -> None:
    tools = [
        {
            "type": "function",
            "function": {"name": one, "description": "", "parameters": {"type": "object"}, "é": 1},
        }
        for one in ("one", "two")
    ]
    chat, text, parts = shown(f"Tools: {written}. {LOOP}", TALK, tools=tools)
    each = with_tools(chat, text, parts)
    check(chat, text, each)
    names = [name for name, _ in cut(text, each)]
    assert names[:5] == ["tools", "tools[0]", "tools", "tools[1]", "tools"]
    found = dict(cut(text, each))
    assert json.loads(found["tools[1]"]) in (tools[1], tools[1]["function"])
    assert [each.found[at].name for at in each.restarts] == [
        parts.found[at].name for at in parts.restarts
    ]


def test_tools_that_are_written_otherwise_are_one_part() -> None:
    source = "{% for t in tools %}{{ t.function.name }}(){% endfor %}" + LOOP
    chat, text, parts = shown(source, TALK, tools=[TOOL])
    assert with_tools(chat, text, parts) is parts
    assert "tools" not in parts.unknown


def test_calls_are_no_tools() -> None:
    """The tools are left out, and a call of one is not."""
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    talk = [TALK[1], {"role": "assistant", "content": "Look.", "tool_calls": [call]}]
    assert shown(LOOP, talk, tools=[TOOL])[2].unknown == ("tools",)


def test_a_thought_that_is_left_out_leaves_the_part_of_its_message() -> None:
    loop = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}</>{% endfor %}"
    )
    thought = {"role": "assistant", "content": "<think>Hm.</think>A heron."}
    _, text, parts = shown(loop, [TALK[1], thought, TALK[3]])
    assert cut(text, parts)[1] == ("messages[1]", "<assistant>A heron.</>")
    assert parts.found[1].content is None


def test_a_message_that_is_given_as_two_has_one_part() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    talk = [TALK[1], {"role": "assistant", "content": "Look.", "tool_calls": [call]}, TALK[3]]
    chat = chat_from(json.dumps(talk)).shaped(Shape(splits_calls=True))
    text, marks = ChatTemplate(LOOP).render_marked(chat.variables())
    parts = parts_of(chat, text, marks.found)
    check(chat, text, parts)
    assert cut(text, parts)[2] == ("messages[1]", "<assistant>Look.</><assistant>!look_up</>")


def in_shape(shape: Shape, messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    chat = chat_from(json.dumps(messages)).shaped(shape)
    text, marks = ChatTemplate(LOOP).render_marked(chat.variables())
    parts = parts_of(chat, text, marks.found)
    check(chat, text, parts)
    assert not parts.unknown
    return cut(text, parts)


def test_messages_that_are_given_as_one_have_a_part_each() -> None:
    system, user, reply, more = TALK
    assert in_shape(Shape(joins_systems=True), [system, {**system, "content": "Be kind."}, user])[
        :3
    ] == [
        ("template", "<s>"),
        ("messages[0]", "<system>Be brief.\n\n"),
        ("messages[1]", "Be kind.</>"),
    ]
    assert in_shape(Shape(system_in_user=True), TALK)[1:4] == [
        ("messages[0]", "<user>Be brief.\n"),
        ("messages[1]", "Why?</>"),
        ("messages[2]", "<assistant>Hence.</>"),
    ]
    assert in_shape(Shape(folds_systems=True), [user, reply, system, more])[3:5] == [
        ("messages[2]", "<user><system>\nBe brief.\n</system>\n\n"),
        ("messages[3]", "How?</>"),
    ]
    assert in_shape(Shape(folds_systems=True), [user, system])[1:3] == [
        ("messages[0]", "<user>Why?\n\n<system>\n"),
        ("messages[1]", "Be brief.\n</system></>"),
    ]
    assert in_shape(Shape(joins_turns=True), [user, user, more, reply])[1:5] == [
        ("messages[0]", "<user>Why?\n\n"),
        ("messages[1]", "Why?\n\n"),
        ("messages[2]", "How?</>"),
        ("messages[3]", "<assistant>Hence.</>"),
    ]


def test_calls_that_are_given_one_by_one_are_parts_of_their_message() -> None:
    calls = [
        {"id": one, "type": "function", "function": {"name": f"look_{one}", "arguments": "{}"}}
        for one in ("up", "down")
    ]
    results = [
        {"role": "tool", "content": f"It is {one}.", "tool_call_id": one} for one in ("up", "down")
    ]
    calling = {"role": "assistant", "content": "Look.", "tool_calls": calls}
    assert in_shape(Shape(one_call=True), [TALK[1], calling, *results])[2:6] == [
        ("messages[1]", "<assistant>Look.!look_up</>"),
        ("messages[2]", "<tool>It is up.</>"),
        ("messages[1]", "<assistant>!look_down</>"),
        ("messages[3]", "<tool>It is down.</>"),
    ]


def test_results_in_the_message_with_their_calls_have_a_part_each() -> None:
    loop = (
        "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}"
        "!{{ c.function.name }}{% endfor %}{% for one in m.tool_responses or [] %}"
        "={{ one.response }};{% endfor %}{{ m.content or '' }}</>{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    talk = [
        TALK[1],
        {"role": "assistant", "content": "Look.", "tool_calls": [call]},
        {"role": "tool", "content": "A heron.", "tool_call_id": "1"},
        {"role": "assistant", "content": "It wades."},
    ]
    chat = chat_from(json.dumps(talk)).shaped(Shape(results_in_call=True))
    text, marks = ChatTemplate(loop).render_marked(chat.variables())
    parts = parts_of(chat, text, marks.found)
    check(chat, text, parts)
    assert cut(text, parts)[1:] == [
        ("messages[1]", "<assistant>Look.</><assistant>!look_up="),
        ("messages[2]", "A heron.;"),
        ("messages[3]", "It wades.</>"),
    ]


def test_a_template_may_use_the_mark_and_changes_nothing() -> None:
    _, text, parts = shown("{{ messages | _begins(0) }}{{ 1 | _begins }}" + LOOP, TALK)
    assert dict(cut(text, parts))["messages[1]"] == "<user>Why?</>"


def test_a_template_that_turns_to_messages_without_end_is_not_attributed() -> None:
    message = {"role": "user", "content": "Why?"}
    marks = Marks(numbers={id(message): 0})
    for at in range(MAX_MARKS + 9):
        marks.n_chars = at
        marks.begins(message, 0)
        marks.begins(message, 0)  # nothing was written in between
    assert len(marks.found) < 99
    assert all(mark.inner == mark.outer == -1 for mark in marks.found)


CONTENTS = st.one_of(
    st.sampled_from(["", " ", "user", "<user>", "</>", "a", "assistant", "look_up"]),
    st.text("ab</>é \n", max_size=12),
)


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@given(
    talk=st.lists(st.tuples(ROLES, CONTENTS), min_size=1, max_size=8),
    source=st.sampled_from([LOOP, HEAD]),
    tools=st.booleans(),
)
def test_parts_cover_the_prompt_and_hold_what_they_claim(
    talk: list[tuple[str, str]], source: str, *, tools: bool
) -> None:
    messages = [{"role": role, "content": content} for role, content in talk]
    shown(source, messages, **({"tools": [TOOL]} if tools else {}))


def test_many_messages_that_are_given_as_one_take_little_time() -> None:
    talk = [{"role": "user", "content": f"number {at}."} for at in range(4000)]
    chat = chat_from(json.dumps(talk)).shaped(Shape(joins_turns=True))
    for loop, n_known in ((LOOP, 4000), (LOOP.replace("m.content", "m.content | upper"), 1)):
        text, marks = ChatTemplate(loop).render_marked(chat.variables())
        parts = parts_of(chat, text, marks.found)
        assert 4000 - len(parts.unknown) == n_known


def test_many_messages_take_little_time_whether_a_loop_is_captured_or_not() -> None:
    talk = [{"role": "user", "content": f"number {at}."} for at in range(2000)]
    _, _, parts = shown(LOOP, talk)
    assert len(parts.found) == 2002
    captured = (
        "{% set text %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ text }}"
    )
    _, _, parts = shown(captured, talk)
    assert len(parts.unknown) > 1900
