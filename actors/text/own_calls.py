"""Tools and calls for templates that print none: a beginning in Jinja, put before the template.

Models without tools in their template were not trained to call some, but many can. The beginning
writes tools, calls and results into texts, in the form that most models know: JSON between
``<tool_call>`` and ``</tool_call>``, as Hermes and Qwen have it. The template then prints messages
of users and assistants alone. Since all of it is one template, llama.cpp's analysis finds the
format of a reply in it as in any other, and what callers write is no control token.

Where the form of a family's calls is known and its template does not write them, or not whole,
they are written in that form: LFM2's and LFM2.5's as a list of Python's calls, those of DeepSeek R1
between their tokens.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

ORIGIN: Final = "origin"
"""The key of a message that a beginning has made: the number of the one it was made of."""

_FUNCTIONS: Final = """\
{%- set functions = (tools or []) | map(attribute='function') | list | tojson(indent=4) -%}
"""

_LFM2: Final = "List of tools: "
_LFM2_LIST: Final = "'<|tool_call_start|>[' + own.calls + ']<|tool_call_end|>'"
_DEEPSEEK: Final = "<｜tool▁calls▁begin｜>"
_DEEPSEEK_LIST: Final = "'<｜tool▁calls▁begin｜>' + own.calls + '<｜tool▁calls▁end｜>'"

_VALUE: Final = """\
{%- macro own_value(value) -%}
{%- if value is boolean -%}{{- 'True' if value else 'False' -}}
{%- elif value is none -%}{{- 'None' -}}
{%- elif value is mapping -%}
{{- '{' -}}
{%- for key in value -%}
{{- key | tojson + ': ' + own_value(value[key]) -}}{{- '' if loop.last else ', ' -}}
{%- endfor -%}
{{- '}' -}}
{%- elif value is string or value is number -%}{{- value | tojson -}}
{%- else -%}
{{- '[' -}}
{%- for one in value -%}{{- own_value(one) -}}{{- '' if loop.last else ', ' -}}{%- endfor -%}
{{- ']' -}}
{%- endif -%}
{%- endmacro -%}
"""

_PYTHON_CALLS: Final = """\
{%- set own.calls = own.calls + (', ' if own.calls else '') + function.name + '(' -%}
{%- if function.arguments is string -%}
{%- set own.calls = own.calls + function.arguments -%}
{%- endif -%}
{%- for key in function.arguments if function.arguments is mapping -%}
{%- set own.calls = own.calls + key + '=' + own_value(function.arguments[key]) -%}
{%- if not loop.last -%}{%- set own.calls = own.calls + ', ' -%}{%- endif -%}
{%- endfor -%}
{%- set own.calls = own.calls + ')' -%}
"""
_ARGUMENTS: Final = """\
{%- set arguments = function.arguments -%}
{%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
"""
_DEEPSEEK_CALLS: Final = """\
{%- set own.calls = own.calls + ('\\n' if own.calls else '')
    + '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + function.name + '\\n```json\\n' + arguments
    + '\\n```<｜tool▁call▁end｜>' -%}
"""
_JSON_CALLS: Final = """\
{%- set own.calls = own.calls + ('\\n' if own.calls or message.content else '')
    + '<tool_call>\\n{"name": ' + function.name | tojson + ', "arguments": ' + arguments
    + '}\\n</tool_call>' -%}
"""
_RESULTS: Final = """\
{%- elif message.role == 'tool' -%}
{%- set text = '<tool_response>\\n' + (message.content or '') + '\\n</tool_response>' -%}
{%- set made = {'role': 'user', 'origin': loop.index0, 'content': text} -%}
"""
_JOINED: Final = """\
{%- if own.is_result and made.role == 'user' -%}
{%- set last = own.messages[-1] -%}
{%- set made = {'role': 'user', 'origin': last.origin,
    'content': last.content + '\\n' + (made.content or '')} -%}
{%- set own.messages = own.messages[:-1] -%}
{%- endif -%}
{%- set own.is_result = message.role == 'tool' -%}
"""
"""Some templates refuse two messages of a user in a row."""
_THOUGHT_KEY: Final = "reasoning_content"
_THOUGHT: Final = f"'{_THOUGHT_KEY}': message.{_THOUGHT_KEY}, "
"""Only for templates that read it: llama.cpp's analysis looks for the name."""
_MESSAGES: Final = """\
{%- set add_generation_prompt = add_generation_prompt | default(false) -%}
{%- set own = namespace(messages=[], calls='', is_result=false) -%}
{%- for message in messages -%}
{%- set made = message -%}
{%- if message.role == 'assistant' and message.tool_calls -%}
{%- set own.calls = '' -%}
{%- for call in message.tool_calls -%}
{%- set function = call.function -%}
%CALLS%
{%- endfor -%}
{%- set made = {'role': 'assistant', 'content': (message.content or '') + %WHOLE%,
    %THOUGHT%'origin': loop.index0} -%}
%RESULTS%
{%- endif -%}
%JOINED%
{%- set own.messages = own.messages + [made] -%}
{%- endfor -%}
{%- set messages = own.messages -%}
"""

_TOOLS: Final = """\
{%- if tools and messages -%}
{%- set own_tools = namespace(text='You can call these tools:\\n<tools>') -%}
{%- for tool in tools -%}
{%- set own_tools.text = own_tools.text + '\\n' + tool | tojson -%}
{%- endfor -%}
{%- set own_tools.text = own_tools.text + '\\n</tools>%HOW%' -%}
{%- set first = messages[0] -%}
{%- if first.role == 'system' -%}
{%- set changed = {'role': 'system', 'content': first.content + '\\n\\n' + own_tools.text,
    'origin': 0} -%}
{%- set messages = [changed] + messages[1:] -%}
{%- elif first.role == 'user' -%}
{%- set changed = {'role': 'user', 'content': own_tools.text + '\\n\\n' + (first.content or ''),
    'origin': 0} -%}
{%- set messages = [changed] + messages[1:] -%}
{%- else -%}
{%- set messages = [{'role': 'user', 'content': own_tools.text}] + messages -%}
{%- endif -%}
{%- endif -%}
{%- set tools = none -%}
"""
_HOW: Final = (
    "\\nTo call one, write its name and its arguments as JSON between <tool_call> and "
    "</tool_call>, each call between marks of its own:\\n<tool_call>\\n"
    '{"name": "the tool", "arguments": {"its parameter": "a value"}}\\n</tool_call>\\n'
    "What it returns comes between <tool_response> and </tool_response>."
)


def beginning_for(
    source: str, variables: Collection[str], *, tools: bool, calls: bool, ends_calls: bool
) -> str:
    """What is put before a template that does not print ``tools``, or not ``calls``.

    ``variables`` are those that it reads. ``ends_calls``: what it prints after one call is what it
    prints after several.
    """
    thought = _THOUGHT if _THOUGHT_KEY in source else ""
    if "functions" in variables and "tools" not in variables:
        return _FUNCTIONS
    if calls and ends_calls:
        return _TOOLS.replace("%HOW%", "")
    if calls and _DEEPSEEK in source:
        written = _filled(_ARGUMENTS + _DEEPSEEK_CALLS, _DEEPSEEK_LIST, thought)
        return written + _TOOLS.replace("%HOW%", "")
    if tools and _LFM2 in source:
        return _VALUE + _filled(_PYTHON_CALLS, _LFM2_LIST, thought)
    tags = _filled(_ARGUMENTS + _JSON_CALLS, "own.calls", thought, _RESULTS, _JOINED)
    return tags + _TOOLS.replace("%HOW%", _HOW)


def _filled(calls: str, whole: str, thought: str, results: str = "", joined: str = "") -> str:
    """The loop over messages; ``whole`` is an expression of all calls of one."""
    filled = _MESSAGES.replace("%WHOLE%", whole).replace("%THOUGHT%", thought)
    for name, text in (("CALLS", calls), ("RESULTS", results), ("JOINED", joined)):
        filled = filled.replace(f"%{name}%\n", text)
    return filled
