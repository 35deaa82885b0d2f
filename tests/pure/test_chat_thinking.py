"""Whether and how much a model thinks: in the words of its template, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.text.chat_request import chat_from
from actors.text.chat_shape import fitted
from actors.text.chat_shown import NotShown, check_shown
from actors.text.chat_template import ChatTemplate

pytestmark = pytest.mark.pure

LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FREE = "{{ reasoning_effort | default('medium') }}|" + LOOP
STRICT = (
    "{% if reasoning_effort is defined and reasoning_effort not in ['no_think', 'low', 'high'] %}"
    "{{ raise_exception('no') }}{% endif %}" + FREE
)
NAMES_ALL = (
    "{% if reasoning_effort == 'none' or reasoning_effort == 'minimal' %}.{% endif %}" + FREE
)
BUDGET = "{{ thinking_budget | default(-1) }}|" + LOOP
SWITCH = "{{ 'on' if enable_thinking | default(true) else 'off' }}|" + LOOP
MODE = "{{ thinking_mode | default('adaptive') }}|" + LOOP
USER = {"role": "user", "content": "Why?"}


def shown(source: str, *, thinks: bool = True, **more: Any) -> str:
    template = ChatTemplate(source)
    chat = fitted(template, chat_from(json.dumps({"messages": [USER], **more})))
    text = template.render(chat.variables())
    check_shown(template, chat, text, thinks=thinks)
    return text.split("|")[0].lstrip(".")


@pytest.mark.parametrize(
    ("source", "effort", "printed"),
    [
        (FREE, "low", "low"),
        (FREE, "minimal", "low"),
        (FREE, "max", "high"),
        (STRICT, "none", "no_think"),
        (STRICT, "minimal", "low"),
        (STRICT, "medium", "high"),
        (STRICT, "xhigh", "high"),
        (NAMES_ALL, "none", "none"),
        (NAMES_ALL, "minimal", "minimal"),
        (BUDGET, "none", "0"),
        (BUDGET, "minimal", "512"),
        (BUDGET, "low", "1024"),
        (BUDGET, "medium", "4096"),
        (BUDGET, "high", "-1"),
        (SWITCH, "none", "off"),
        (SWITCH, "high", "on"),
        (MODE, "none", "disabled"),
        (MODE, "low", "enabled"),
    ],
)
def test_an_effort_is_what_the_template_has_for_it(source: str, effort: str, printed: str) -> None:
    assert shown(source, reasoning_effort=effort) == printed


def test_an_explicit_wish_is_stronger_than_an_effort() -> None:
    assert shown(SWITCH, reasoning_effort="high", enable_thinking=False) == "off"


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_both_names_of_the_switch_are_taken(name: str) -> None:
    thinking = "{{ 'on' if thinking | default(true) else 'off' }}|" + LOOP
    for source in (SWITCH, thinking):
        assert shown(source, chat_template_kwargs={name: False}) == "off"


def test_a_level_is_the_switch_where_there_is_no_other() -> None:
    assert shown(STRICT, enable_thinking=False) == "no_think"
    assert shown(STRICT, enable_thinking=True) == "high"
    assert shown(FREE, enable_thinking=True) == "medium"


def test_an_effort_that_cannot_be_had_is_refused_by_name() -> None:
    """A model that always thinks, as much as it does, thinks; others cannot be made to."""
    assert shown(LOOP, reasoning_effort="high", thinks=True)
    assert shown(LOOP, reasoning_effort="none", thinks=False)
    with pytest.raises(NotShown, match=r"reasoning_effort='none' has no effect.*cannot switch"):
        shown(LOOP, reasoning_effort="none", thinks=True)
    with pytest.raises(NotShown, match=r"reasoning_effort='low' has no effect.*cannot make"):
        shown(LOOP, reasoning_effort="low", thinks=False)
