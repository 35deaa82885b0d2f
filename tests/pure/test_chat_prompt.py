"""Only the template writes control tokens, and otherwise nothing changes."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.text.chat_prompt import ControlTokens, prompt_tokens, render_chat
from actors.text.chat_request import chat_from
from actors.text.chat_template import ChatTemplate
from native.params import ModelParams
from native.stub import BEGIN, END, StubBackend

pytestmark = pytest.mark.pure

BACKEND = StubBackend.load("stub", ModelParams(n_ctx=256))
CONTROL = ControlTokens.of(BACKEND)
PLAIN = "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
JOINED = "<s>{% for m in messages %}{{ m.content }}{% endfor %}</s>"
TRIMMED = "<s>{% for m in messages %}{{ m.content | trim }}{% endfor %}</s>"
CUTS = "<s>{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}</s>"
REMOVES = "<s>{% for m in messages %}{{ m.content | replace('<q>', '') }}{% endfor %}</s>"
MEASURES = (
    "<s>{% for m in messages %}{% if '<' in m.content %}!{% endif %}{{ m.content }}{% endfor %}</s>"
)
TOOLS = "<s>{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{{ messages[0].content }}</s>"
PIECES = st.lists(
    st.sampled_from(["<", "s", ">", "</", "<s>", "</s>", "x", " ", "<q>", "</think>", "/", "é"]),
    max_size=8,
).map("".join)


def chat(*contents: str, **more: object) -> str:
    return json.dumps({"messages": [{"role": "user", "content": c} for c in contents], **more})


@functools.cache
def compiled(template: str) -> ChatTemplate:
    return ChatTemplate(template)


def tokens(template: str, source: str) -> tuple[str, list[int]]:
    prompt = render_chat(compiled(template), chat_from(source), CONTROL)
    return prompt.text, prompt_tokens(BACKEND, prompt, CONTROL)


def test_the_control_tokens_of_a_vocabulary_are_found() -> None:
    assert dict(CONTROL.ids) == {"</s>": END, "<s>": BEGIN}


@given(st.lists(PIECES, min_size=1, max_size=3))
@pytest.mark.parametrize("template", [JOINED, TRIMMED, CUTS, REMOVES])
def test_callers_cannot_write_control_tokens(template: str, contents: list[str]) -> None:
    text, ids = tokens(template, chat(*contents))
    assert [one for one in ids if one >= BEGIN] == [BEGIN, END]
    assert ids[0] == BEGIN
    assert BACKEND.detokenize(ids, special=True).decode() == text
    assert text == compiled(template).render(chat_from(chat(*contents)).variables())


@given(st.lists(PIECES, min_size=1, max_size=3))
def test_a_template_that_looks_at_suspicious_characters_is_kept_too(contents: list[str]) -> None:
    text, ids = tokens(MEASURES, chat(*contents))
    # Two neighbours may still join to a control token here; whole ones may not pass.
    if len(contents) == 1 or not any("<" in one for one in contents):
        assert [one for one in ids if one >= BEGIN] == [BEGIN, END]
    assert BACKEND.detokenize(ids, special=True).decode() == text


@given(PIECES, PIECES)
def test_tools_are_texts_of_callers_too(name: str, value: str) -> None:
    tool = {"name": "f", "parameters": {"properties": {name: value, "role": value}}}
    _, ids = tokens(TOOLS, chat("hi", tools=[tool]))
    assert [one for one in ids if one >= BEGIN] == [BEGIN, END]


@given(st.lists(st.text(alphabet="ab <>/é", max_size=8), min_size=1, max_size=3))
def test_without_a_forged_token_it_is_tokenised_as_one_string(contents: list[str]) -> None:
    source = chat(*contents)
    text, ids = tokens(PLAIN, source)
    assert text == compiled(PLAIN).render(chat_from(source).variables())
    assert ids == BACKEND.tokenize(text, add_special=False, parse_special=True)


def test_a_private_character_of_the_caller_stays_what_it_is() -> None:
    content = "".join(map(chr, (0xF0000, 0xF0001, 0x100000))) + "<s>"
    text, ids = tokens(JOINED, chat(content))
    assert content in text
    assert ids.count(BEGIN) == 1


def test_text_that_begins_with_bos_gets_no_second_one() -> None:
    _, with_bos = tokens("{{ messages[0].content }}", chat("hi"))
    assert with_bos.count(BEGIN) == 1
    _, written = tokens("<s>{{ messages[0].content }}", chat("hi"))
    assert written == with_bos
    _, forged = tokens("<s>{{ messages[0].content }}", chat("<s>"))
    assert forged == [BEGIN, *b"<s>"]
    _, only_forged = tokens("{{ messages[0].content }}", chat("<s>"))
    assert only_forged == [BEGIN, *b"<s>"]
