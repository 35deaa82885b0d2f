"""Roles, turns, calls, results and thoughts are given to each template as it takes them."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.text.chat_form import Shape, in_form
from actors.text.chat_messages import messages_from
from actors.text.chat_request import chat_from
from actors.text.chat_shape import fitted
from actors.text.chat_shown import check_shown
from actors.text.chat_template import ChatTemplate

pytestmark = pytest.mark.pure

LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
LEADS = "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}"
LEADS += "{% set rest = messages %}{% endif %}"
FIRST_ONLY = (  # one system message, at the beginning; others are dropped
    LEADS + "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% endif %}"
    "{% for m in rest if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
HOISTS = (  # all of them, at the beginning
    "{% for m in messages if m.role == 'system' %}<system>{{ m.content }}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LOOP
ALTERNATES = (
    LEADS + "{% for m in rest if m.role in ['user', 'assistant'] and not m.tool_calls %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}{% for m in rest if m.role == 'system' %}{{ raise_exception('no') }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{% endfor %}{{ m.content }}{% endfor %}"
)


def shown(source: str, *messages: tuple[str, str | None] | dict[str, Any], **more: Any) -> str:
    plain = [
        {"role": one[0], "content": one[1]} if isinstance(one, tuple) else one for one in messages
    ]
    template = ChatTemplate(source)
    chat = fitted(template, chat_from(json.dumps({"messages": plain, **more})))
    text = template.render(chat.variables())
    check_shown(template, chat, text, thinks=True)
    return text


RULE, ORDER = ("system", "Be brief."), ("developer", "Be polite.")
USER, REPLY, MORE = ("user", "Why?"), ("assistant", "So."), ("user", "How?")
FOLDED = "<system>\nBe polite.\n</system>"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (LOOP, "<system>Be brief.<system>Be polite.<user>Why?"),
        (FIRST_ONLY, "<system>Be brief.\n\nBe polite.<user>Why?"),
        (ALTERNATES, "<system>Be brief.\n\nBe polite.<user>Why?"),
        (NO_SYSTEM, "<user>Be brief.\n\nBe polite.\nWhy?"),
    ],
)
def test_several_system_messages_at_the_beginning(source: str, text: str) -> None:
    assert shown(source, RULE, ORDER, USER) == text


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ((RULE, USER, REPLY, ORDER, MORE), f"<user>Why?<assistant>So.<user>{FOLDED}\n\nHow?"),
        ((RULE, USER, ORDER, REPLY), f"<user>Why?\n\n{FOLDED}<assistant>So."),
        ((RULE, USER, REPLY, ORDER), f"<user>Why?<assistant>So.<user>{FOLDED}"),
        ((RULE, USER, ORDER, ORDER, MORE), f"{FOLDED}\n\n{FOLDED}\n\nHow?"),
    ],
)
@pytest.mark.parametrize("source", [FIRST_ONLY, HOISTS, ALTERNATES])
def test_a_system_message_in_the_middle_becomes_text_of_a_user(
    source: str, messages: tuple[tuple[str, str], ...], text: str
) -> None:
    printed = shown(source, *messages)
    assert printed.startswith("<system>Be brief.<user>Why?")
    assert printed.endswith(text)


def test_a_system_message_in_the_middle_stays_where_the_template_prints_it() -> None:
    assert shown(LOOP, USER, REPLY, ORDER, MORE).endswith("<system>Be polite.<user>How?")


def called(*names: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    calls = [
        {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": {}}}
        for at, name in enumerate(names)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def result(at: int, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{at}", "content": content}


def test_turns_of_one_role_are_joined_where_roles_must_alternate() -> None:
    assert shown(ALTERNATES, USER, MORE, REPLY, REPLY, MORE) == (
        "<user>Why?\n\nHow?<assistant>So.\n\nSo.<user>How?"
    )
    assert shown(LOOP, USER, MORE) == "<user>Why?<user>How?"


def test_what_follows_a_result_is_in_it_where_no_user_may_follow() -> None:
    text = shown(ALTERNATES, USER, called("f"), result(0, "1"), ORDER, MORE)
    assert text == f"<user>Why?<assistant>f<tool>1\n\n{FOLDED}\n\nHow?"


ONE_CALL = LOOP.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}{% if loop.index > 1 %}"
    "{{ raise_exception('one') }}{% endif %}[{{ c.function.name }}]{% endfor %}",
)


def test_several_calls_are_given_one_by_one_where_only_one_is_taken() -> None:
    messages = [called("f", "g", "h", content="Wait."), result(1, "G"), result(0, "F")]
    assert shown(ONE_CALL, USER, *messages, {"role": "tool", "content": "H"}, MORE) == (
        "<user>Why?<assistant>Wait.[f]<tool>F<assistant>[g]<tool>G<assistant>[h]<tool>H<user>How?"
    )


def test_ids_that_are_too_long_are_replaced_by_the_same_each_time() -> None:
    strict = LOOP.replace(
        "{{ m.content }}",
        "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('9') }}"
        "{% endif %}{{ c.id }}={{ c.function.name }}{% endfor %}"
        "{% if m.role == 'tool' %}{{ m.tool_call_id }}:{% endif %}{{ m.content }}",
    )
    first = shown(strict, USER, called("f"), result(0, "F"))
    made = first.split("<assistant>")[1].split("=")[0]
    assert len(made) == 9
    assert made.isalnum()
    assert first == f"<user>Why?<assistant>{made}=f<tool>{made}:F"
    assert shown(strict, USER, called("f"), result(0, "F"), MORE).startswith(first)


def test_results_go_into_the_message_with_the_calls_where_the_template_reads_them_there() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}"
        "[{{ c.function.name }}]{% endfor %}{% for r in m['tool_responses'] or [] %}"
        "({{ r.name }}:{{ r.response | tojson }}){% endfor %}{{ m.content or '' }}{% endfor %}"
    )
    messages = [called("f", content="Wait."), result(0, '{"a": 1}')]
    assert shown(source, USER, *messages, REPLY, MORE) == (
        '<user>Why?<assistant>Wait.<assistant>[f](f:{"a": 1})So.<user>How?'
    )


THOUGHT = LOOP.replace("{{ m.content }}", "{% if m.KEY %}({{ m.KEY }}){% endif %}{{ m.content }}")
PARTS = LOOP.replace(
    "{{ m.content }}",
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text or '(' + p.thinking + ')' }}{% endfor %}{% endif %}",
)
INLINE = (
    "{% for m in messages %}<{{ m.role }}>{% if '</think>' in m.content and not loop.last %}"
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
THINKS = {"role": "assistant", "content": "So.", "reasoning": "Hm."}


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        *((THOUGHT.replace("KEY", key), "(Hm.)So.") for key in ("reasoning_content", "thinking")),
        (THOUGHT.replace("KEY", "reasoning"), "(Hm.)So."),
        (PARTS, "(Hm.)So."),
        ("{# <think> #}" + INLINE, "<think>\nHm.\n</think>\n\nSo."),
        (LOOP, "So."),
    ],
)
def test_thoughts_are_given_where_the_template_reads_them(source: str, printed: str) -> None:
    assert shown(source, USER, THINKS) == f"<user>Why?<assistant>{printed}"


def test_inline_thoughts_of_earlier_turns_are_cut_out_by_the_template() -> None:
    source = "{# <think> #}" + INLINE
    assert shown(source, USER, THINKS, MORE) == "<user>Why?<assistant>So.<user>How?"
    assert shown("{# <think></think> #}" + LOOP, USER, THINKS) == "<user>Why?<assistant>So."


TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}


def test_tools_without_descriptions_reach_templates_that_add_to_them() -> None:
    source = (
        "{% for t in tools or [] %}{% for n, p in t.function.parameters.properties.items() %}"
        "{{ n + ':' + p.description + ';' }}{% endfor %}{{ '/' + t.function.name }}"
        "{{ '/' + t.function.description }}{% endfor %}" + LOOP
    )
    assert shown(source, USER, tools=[TOOL]) == "a:;/f/<user>Why?"


def test_a_template_that_takes_only_parts_gets_parts() -> None:
    source = LOOP.replace("m.content", "m.content[0]['text'] or raise_exception('parts')")
    assert shown(source, USER) == "<user>Why?"


def test_text_beside_calls_is_given_with_the_reply_where_a_turn_has_one_text() -> None:
    """As templates of alternating turns have it that leave out what stands beside calls."""
    source = (
        "{% set ns = namespace(turn='user') %}{% for m in messages %}"
        "{% if m.role == 'tool' %}={{ m.content }}"
        "{% elif m.tool_calls %}{% for c in m.tool_calls %}!{{ c.function.name }}{% endfor %}"
        "{% else %}{% if m.role != ns.turn %}{{ raise_exception('alternate') }}{% endif %}"
        "{% set ns.turn = 'assistant' if m.role == 'user' else 'user' %}"
        "<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    )
    call = {**called("f"), "content": "One moment."}
    asked = (USER, call, result(0, "r"))
    assert shown(source, *asked) == "<user>Why?<assistant>One moment.!f=r"
    assert shown(source, *asked, REPLY, MORE) == (
        "<user>Why?!f=r<assistant>One moment.\n\nSo.<user>How?"
    )


def test_long_conversations_are_brought_into_form_in_linear_time() -> None:
    shape = Shape(
        joins_turns=True, folds_systems=True, user_in_result=True, one_call=True, one_text=True
    )
    long = [{"role": role, "content": "x" * 900} for role in ("user", "system")] * 8000
    calls = called(*"f" * 9000)
    results = [result(at, "r") for at in range(9000)][:7000]
    sent = messages_from([{"role": "user", "content": "a"}, calls, *results])
    before = time.thread_time()
    in_form(long, shape)
    assert len(in_form(sent, shape)[0]) == 1 + 9000 + 7000
    assert time.thread_time() - before < 5


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Of words that occur once each: contents, thoughts, names of tools."""
    messages: list[dict[str, Any]] = []
    for at in range(draw(st.integers(1, 7))):
        role = draw(st.sampled_from(["system", "developer", "user", "assistant", "tool"]))
        message: dict[str, Any] = {"role": role, "content": f"content{at}."}
        if role == "assistant":
            calls = [
                {"function": {"name": f"call{at}x{n}."}} for n in range(draw(st.integers(0, 3)))
            ]
            message |= {"tool_calls": calls, "reasoning": f"thought{at}."}
            message["content"] = draw(st.sampled_from([None, message["content"]]))
        messages.append(message)
    return messages


SHAPES = st.builds(
    Shape,
    no_text=st.sampled_from(["empty", "null", "absent"]),
    reasoning=st.sampled_from(["reasoning_content", "thinking", "parts"]),
    **{
        name: st.booleans()
        for name in (
            "splits_calls", "text_arguments", "one_call", "results_in_call", "short_ids",
            "typed_content", "one_text", "developer_is_system", "joins_systems", "system_in_user",
            "system_needs_user", "folds_systems", "joins_turns", "user_in_result", "keeps_thought",
        )
    },
)  # fmt: skip


@example(
    [
        called("call0x0."),
        {"role": "tool", "content": "content1."},
        {"role": "assistant", "content": "content2.", "reasoning": "thought2."},
    ],
    Shape(results_in_call=True),
)
@settings(max_examples=500)
@given(conversations(), SHAPES)
def test_no_form_loses_or_repeats_anything(messages: list[dict[str, Any]], shape: Shape) -> None:
    sent = messages_from(messages)
    before = json.dumps(sent)
    made, origins = in_form(sent, shape)
    formed = json.dumps(made)
    assert json.dumps(sent) == before
    assert "origins" not in formed
    for one, numbers in zip(made, origins, strict=True):
        content, calls = json.dumps(one.get("content")), json.dumps(one.get("tool_calls"))
        texts = [int(found) for found in re.findall(r"content(\d+)\.", content)]
        assert texts == [number for number in numbers if number in texts], (one, numbers)
        named = re.findall(r"(?:content|thought)(\d+)\.", json.dumps(one))
        named += re.findall(r"call(\d+)x", calls)
        assert set(map(int, named)) <= set(numbers), (one, numbers)
    for word in re.findall(r"(?:content|thought)\d+\.", before):
        assert formed.count(word) == 1, word
    for word in re.findall(r"call\d+x\d\.", before):  # results have the name as well
        assert word in formed, word
