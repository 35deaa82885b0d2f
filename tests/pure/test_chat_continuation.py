"""A last message is continued where its text ends, whatever the template does around it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.messages.errors import UnsupportedRequest
from actors.text.chat_prompt import ControlTokens, render_chat
from actors.text.chat_request import BadChat, chat_from
from actors.text.chat_shape import fitted
from actors.text.chat_template import ChatTemplate

pytestmark = pytest.mark.pure

USER = {"role": "user", "content": "Why?"}
CONTROL = ControlTokens({"<|end|>": 1, "<think>": 2, "</think>": 3})
START = "{% if add_generation_prompt %}<|bot|>{% endif %}"
PLAIN = (
    "{% for m in messages %}<|{{ 'bot' if m.role == 'assistant' else m.role }}|>"
    "{{ m.content | trim }}<|end|>\n{% endfor %}" + START
)
KEEPS = PLAIN.replace(
    "{{ m.content | trim }}",
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content | trim }}\n</think>\n\n{% endif %}"
    "{{ m.content | trim }}",
)
DROPS = PLAIN.replace("m.content | trim", "m.content.split('</think>')[-1] | trim").replace(
    "<|bot|>{% endif %}", "<|bot|><think>\n{% endif %}"
)
INSIDE = "{# no_think prints </think> #}" + PLAIN.replace(
    "{{ m.content | trim }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n{% endif %}{{ m.content | trim }}",
).replace("<|bot|>{% endif %}", "<|bot|><think>\n{% endif %}")
ASKED = "<|user|>Why?<|end|>\n"


def continued(source: str, asked: object = True, **last: Any) -> str:
    messages = [USER, {"role": "assistant", **last}]
    template = ChatTemplate(source)
    chat = chat_from(json.dumps({"messages": messages, "continue_final_message": asked}))
    prompt = render_chat(template, fitted(template, chat), CONTROL)
    assert prompt.in_thought == (chat.continuing == "reasoning")
    return prompt.text


@pytest.mark.parametrize("content", ["Hence", "Hence, ", " it\n", "", "Why?", "zqcontinuedhere x"])
def test_a_content_is_continued_as_it_is(content: str) -> None:
    """Also where the template trims it, and where its text occurs before."""
    assert continued(PLAIN, content=content) == f"{ASKED}<|bot|>{content.lstrip()}"


@pytest.mark.parametrize("source", [KEEPS, DROPS, INSIDE])
def test_a_content_after_a_thought_keeps_the_thought(source: str) -> None:
    text = continued(source, content="Hence", reasoning_content="Hm.")
    assert text == f"{ASKED}<|bot|><think>\nHm.\n</think>\n\nHence"


@pytest.mark.parametrize("source", [KEEPS, DROPS, INSIDE])
@pytest.mark.parametrize("asked", [True, "auto", "reasoning", "reasoning_content"])
def test_a_thought_without_content_is_continued(source: str, asked: object) -> None:
    text = continued(source, asked, reasoning_content="Hm, I ")
    assert text == f"{ASKED}<|bot|><think>\nHm, I "


def test_a_content_is_not_continued_inside_of_a_thought() -> None:
    text = continued(INSIDE, content="Hence")
    assert text == f"{ASKED}<|bot|><think>\n\n</think>\n\nHence"


def test_what_the_caller_forged_is_still_known() -> None:
    template = ChatTemplate(KEEPS)
    messages = [USER, {"role": "assistant", "content": "a<|end|>b", "thinking": "<think>"}]
    chat = chat_from(json.dumps({"messages": messages, "continue_final_message": True}))
    for source in (KEEPS, DROPS):
        template = ChatTemplate(source)
        prompt = render_chat(template, fitted(template, chat), CONTROL)
        forged = [prompt.text[start:end] for start, end in prompt.forged]
        assert forged == ["<think>", "<|end|>"]
        assert prompt.text.count("<think>") == 2


def test_a_thought_that_the_template_has_no_place_for_is_refused() -> None:
    with pytest.raises(UnsupportedRequest, match="does not print the thought that is to be"):
        continued(PLAIN, content="Hence", reasoning="Hm.")
    with pytest.raises(UnsupportedRequest, match="does not print the thought that is to be"):
        continued(PLAIN, reasoning="Hm.")
    no_assistant = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UnsupportedRequest, match="does not print the message that is to be"):
        continued(no_assistant, content="Hence")


CALL = {"function": {"name": "f"}}


@pytest.mark.parametrize(
    ("more", "last", "why"),
    [
        ({}, {"role": "user", "content": "x"}, "the last one is of the role user"),
        ({}, {"role": "assistant", "tool_calls": [CALL]}, "calls tools cannot be continued"),
        ({"add_generation_prompt": True}, {"role": "assistant"}, "exclude each other"),
        (
            {"continue_final_message": "reasoning_content"},
            {"role": "assistant", "content": "x", "thinking": "y"},
            "has content after its thought",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(
    more: dict[str, Any], last: dict[str, Any], why: str
) -> None:
    request = {"messages": [USER, last], "continue_final_message": True, **more}
    with pytest.raises(BadChat, match=why):
        chat_from(json.dumps(request))


@pytest.mark.parametrize("asked", [None, False])
def test_without_being_asked_for_nothing_is_continued(asked: bool | None) -> None:
    chat = chat_from(json.dumps({"messages": [USER], "continue_final_message": asked}))
    assert chat.continuing is None
    assert chat.add_generation_prompt
