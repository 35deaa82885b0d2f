"""Chat templates: rendered as elsewhere, and limited in what they may use."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from actors.text.chat_request import chat_from
from actors.text.chat_template import ChatTemplate, TemplateFailed

pytestmark = pytest.mark.pure

CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'none' %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' ~ call.function.name ~ (call.function.arguments | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def render(source: str, chat: str = '[{"role": "user", "content": "hi"}]', **more: str) -> str:
    return ChatTemplate(source, **more).render(chat_from(chat).variables())


def test_a_conversation_is_rendered_by_its_template() -> None:
    chat = '[{"role": "system", "content": "Be kind."}, {"content": "Hi <é>", "role": "user"}]'
    assert render(CHATML, chat) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <é><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_arrive_with_their_whole_schemas() -> None:
    schema = (
        '{"type": "function", "function": {"name": "f", "description": "", '
        '"parameters": {"type": "object", '
        '"properties": {"q": {"type": "string", "description": "où & <why>"}}}}}'
    )
    text = render(
        CHATML, f'{{"messages": [{{"role": "user", "content": "x"}}], "tools": [{schema}]}}'
    )
    assert schema in text


def test_arguments_of_tool_calls_are_objects_however_they_were_sent() -> None:
    call = '{{"function": {{"name": "f", "arguments": {}}}}}'
    calls = '[{{"role": "assistant", "tool_calls": [' + call + "]}}]"
    as_object = render(CHATML, calls.format('{"a": "é"}'))
    as_text = render(CHATML, calls.format('"{\\"a\\": \\"é\\"}"'))
    assert as_object == as_text
    assert '<tool_call>f{"a": "é"}' in as_text


def test_variables_of_the_template_can_be_set() -> None:
    chat = '{"messages": [{"role": "user", "content": "x"}], "enable_thinking": false}'
    assert render(CHATML, chat).endswith("<think>\n\n</think>\n\n")
    chat = '{"messages": [{"role": "user", "content": "x"}], "template_kwargs": {"mood": "glad"}}'
    assert render("{{ mood }}", chat) == "glad"


def test_without_a_generation_prompt_it_ends_with_the_last_message() -> None:
    chat = '{"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false}'
    assert render(CHATML, chat).endswith("x<|im_end|>\n")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{% for m in messages %}{{ loop.index0 }}{% break %}{% endfor %}", "0"),
        ("{% generation %}a{{ messages[0].content }}{% endgeneration %}", "ahi"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "1"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ ['a', 'b'] | join(', ') }}{{ 'aXa' | replace('a', 'b') }}", "a, bbXb"),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ f('a') | trim }}", "<1><a>"),
        ("{{ messages[0].content.split('h')[-1].strip('\\n') }}", "i"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{{ '%s-%03d' | format('a', 7) }}{{ '%s' % 'b' }}{{ '{}'.format('c') }}", "a-007bc"),
        ("{% if messages[0] is mapping and messages[0].content is string %}y{% endif %}", "y"),
    ],
)  # fmt: skip
def test_what_templates_rely_on_is_there(source: str, text: str) -> None:
    assert render(source, bos_token="<s>", eos_token="</s>") == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% set l = [] %}{% set _ = l.append(1) %}{% set _ = l.insert(0, 2) %}{{ l }}", "[2, 1]"),
        ("{% set l = [1, 2] %}{{ l.pop(0) }}{% set _ = l.extend([3]) %}{{ l }}", "1[2, 3]"),
        ("{% set d = {} %}{% set _ = d.update({'a': 1}) %}{{ d.pop('a') }}{{ d }}", "1{}"),
        ("{% set m = messages[0:1] %}{% set _ = m.append(1) %}{{ m | length }}", "2"),
        ("{% set m = messages[0].copy() %}{% set _ = m.update(role='x') %}{{ m.role }}", "x"),
        ("{% set q = namespace(l=[]) %}{% set _ = q.l.append('a') %}{{ q.l[0] }}", "a"),
        ("{% set n = namespace(l=[0]) %}{{ [n] }}", "[<Namespace {'l': [0]}>]"),
        ("{{ messages | map(attribute='role') | tojson }}", '["user"]'),
        ("{{ messages }}", "[{'role': 'user', 'content': 'hi'}]"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hi"}'),
    ],
)  # fmt: skip
def test_a_template_may_change_lists_of_its_own(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "change",
    [
        "messages.append(1)", "messages.pop()", "messages[0].update(role='x')",
        "messages[0].pop('role')", "messages[0:1][0].clear()", "tools[0].function.update(a=1)",
        "messages[0].copy().tool_calls.append(1)", "messages[0].setdefault('a', 1)",
    ],
)  # fmt: skip
def test_what_the_caller_sent_stays_as_it_is(change: str) -> None:
    chat = """{"messages": [{"role": "user", "content": "hi", "tool_calls":
        [{"function": {"name": "f"}}]}], "tools": [{"function": {"name": "f"}}]}"""
    with pytest.raises(TemplateFailed, match=r"'(list|dict)' object is unsafe"):
        render("{% set _ = " + change + " %}", chat)


def test_a_variable_of_its_own_that_is_not_given_is_named() -> None:
    with pytest.raises(TemplateFailed, match=r"'moods' is undefined .*template_kwargs"):
        render("{% for m in moods %}{% endfor %}{{ moods.first }}")


def test_strftime_now_prints_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}").isdigit()


def test_a_refusal_by_a_template_reaches_the_caller() -> None:
    with pytest.raises(TemplateFailed, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ messages[0].content.nope.deeper }}", "{{ 1 // 0 }}", "{% include 'x' %}",
     "{{ messages[0]['content'].__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os }}",
     "{{ messages.append(1) }}"],
)  # fmt: skip
def test_what_is_broken_or_forbidden_is_an_error_of_the_template(source: str) -> None:
    with pytest.raises(TemplateFailed):
        render(source)


def grown(start: str, step: str) -> str:
    loop = "{% for a in range(64) %}" + step + "{% endfor %}"
    return "{% set ns = namespace(x=" + start + ") %}" + loop


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10000000000 }}",
        "{{ ['x'] * 10000000000 }}",
        grown("'x'", "{% set ns.x = ns.x + ns.x %}"),
        grown("'x'", "{% set ns.x = ns.x ~ ns.x %}"),
        grown("'x'", "{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}"),
        grown("'xx'", "{% set ns.x = ns.x.replace('x', 'xx') %}"),
        grown("'xx'", "{% set ns.x = ns.x | replace('x', 'xx') %}"),
        grown("[1]", "{% set ns.x = ns.x + ns.x %}"),
        grown("3", "{% set ns.x = ns.x * ns.x %}"),
        "{{ 2 ** 100000000 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ ('\t' * 1000).expandtabs(100000000) }}",
        "{{ ('x' * 100000).join(('y' * 100000) | list) }}",
        "{{ ('y' * 100000) | join('x' * 100000) }}",
        "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
        "{{ lipsum(n=10000000) }}",
        "{% set l = [1] %}{% for a in range(99999) %}{% set _ = l.extend(l) %}{% endfor %}",
        "{% set l = [1] %}{% for a in range(99) %}{% set _ = l.extend(l | reverse) %}{% endfor %}",
        "{% set l = [1] %}{% set _ = l.extend(l | map('upper')) %}",
        "{% set l = [1] %}{% set _ = l.append(l) %}{{ l | tojson }}",
        *(
            "{% set n = namespace(l=[0]) %}{% for a in range(40) %}{% set n.l = [n.l, n.l] %}"
            "{% endfor %}" + use
            for use in (
                "{{ n.l }}",
                "{{ n }}",
                "{{ n.l ~ '' }}",
                "{{ n.l | string | length }}",
                "{{ n.l | tojson | length }}",
                "{{ [n.l] | join('') }}",
                "{{ ('%s' % [n.l]) | length }}",
                "{{ ('%s' | format(n.l)) | length }}",
                "{{ '{}'.format(n.l) | length }}",
                "{% set d = {'a': n} %}{{ d }}",
            )
        ),
        "{{ ([messages] * 1000000) }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ '%10000000000d' | format(1) }}",
    ],
    ids=str,
)
def test_a_template_cannot_use_more_than_it_may(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.text.template_limits.MAX_RENDER_S", 0.5)
    began = time.monotonic()
    with pytest.raises(TemplateFailed):
        render(source)
    assert time.monotonic() - began < 4


def test_a_stopped_template_leaves_its_thread_as_it_was() -> None:
    before = sys.gettrace()
    template = ChatTemplate("{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}")
    with pytest.raises(TemplateFailed):
        template.render({})
    assert sys.gettrace() is before
    assert ChatTemplate("{{ 1 }}").render({}) == "1"


def test_a_template_works_on_any_thread() -> None:
    template = ChatTemplate(CHATML)
    got: list[str] = []

    def run() -> None:
        got.append(template.render(chat_from('[{"role": "user", "content": "x"}]').variables()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    run()
    assert got[0] == got[1]


def test_a_long_conversation_is_rendered_whole() -> None:
    long = "word " * 20_000
    text = render(CHATML, f'[{{"role": "user", "content": "{long}"}}]')
    assert long in text
    assert len(text) > 100_000
