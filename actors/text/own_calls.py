"""Tools and calls for templates that print none: a beginning in Jinja, put before the template.

Models without tools in their template were not trained to call some, but many can. The beginning
writes tools, calls and results into texts, in the form that most models know: JSON between
``<tool_call>`` and ``</tool_call>``, as Hermes and Qwen have it. The template then prints messages
of users and assistants alone. Since all of it is one template, llama.cpp's analysis finds the
format of a reply in it as in any other, and what callers write is no control token.

Two families print tools, and calls only as a client writes them: LFM2 and LFM2.5. Their calls are
written as their models write them, as a list of Python's calls.

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
{%- for key in function.arguments -%}
{%- set own.calls = own.calls + key + '=' + own_value(function.arguments[key]) -%}
{%- if not loop.last -%}{%- set own.calls = own.calls + ', ' -%}{%- endif -%}
{%- endfor -%}
{%- set own.calls = own.calls + ')' -%}
"""
_JSON_CALLS: Final = """\
{%- set arguments = function.arguments -%}
{%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
{%- set own.calls = own.calls + ('\\n' if own.calls or message.content else '')
    + '<tool_call>\\n{"name": ' + function.name | tojson + ', "arguments": ' + arguments
    + '}\\n</tool_call>' -%}
"""
_RESULTS: Final = """\
{%- elif message.role == 'tool' -%}
{%- set made = {'role': 'user', 'origin': loop.index0,
    'content': '<tool_response>\\n' + (message.content or '') + '\\n</tool_response>'} -%}
"""
_MESSAGES: Final = """\
{%- set own = namespace(messages=[], calls='') -%}
{%- for message in messages -%}
{%- set made = message -%}
{%- if message.role == 'assistant' and message.tool_calls -%}
{%- set own.calls = '' -%}
{%- for call in message.tool_calls -%}
{%- set function = call.function -%}
%CALLS%
{%- endfor -%}
{%- set made = {'role': 'assistant', 'content': (message.content or '') + %WHOLE%,
    'reasoning_content': message.reasoning_content, 'origin': loop.index0} -%}
%RESULTS%
{%- endif -%}
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
    "\\nTo call one, write its name and its arguments as JSON between <tool_call> and </tool_call>, "
    "each call between marks of its own:\\n<tool_call>\\n"
    '{"name": "the tool", "arguments": {"its parameter": "a value"}}\\n</tool_call>\\n'
    "What it returns comes between <tool_response> and </tool_response>."
)


def beginning_for(
    constants: Collection[str], variables: Collection[str], *, calls: bool, tools: bool
) -> str:
    """What is put before a template that does not print ``calls``, or not ``tools``.

    ``constants`` and ``variables`` are the template's, see ``ChatTemplate``.
    """
    if "functions" in variables and "tools" not in variables:
        return _FUNCTIONS
    if tools and any(one.startswith(_LFM2) for one in constants):
        python = _MESSAGES.replace("%CALLS%\n", _PYTHON_CALLS).replace("%WHOLE%", _LFM2_LIST)
        return _VALUE + python.replace("%RESULTS%\n", "")
    if calls:
        return _TOOLS.replace("%HOW%", "")
    tags = _MESSAGES.replace("%CALLS%\n", _JSON_CALLS).replace("%WHOLE%", "own.calls")
    return tags.replace("%RESULTS%\n", _RESULTS) + _TOOLS.replace("%HOW%", _HOW)
