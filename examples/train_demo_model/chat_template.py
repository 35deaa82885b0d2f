"""The chat template of the file: turns as they were trained, in the notation of Jinja.

Tools stand as JSON lines in the first system turn, after the caller's own instruction. A call is
JSON between ``<tool_call>`` and ``</tool_call>``; the results of a turn's calls share one turn.
"""

from __future__ import annotations

import json

TOOLS_BEFORE = "You can call these tools:\n<tools>"
TOOLS_AFTER = (
    '\n</tools>\nWrite a call as:\n<tool_call>\n{"name": tool, "arguments": {...}}\n</tool_call>'
)
_TOOLS_TURN = (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + '\\n\\n' }}"
    "{% endif %}"
    f"{{{{ {json.dumps(TOOLS_BEFORE)} }}}}"
    "{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}"
    f"{{{{ {json.dumps(TOOLS_AFTER)} }}}}"
)
_CALLS = (
    "{% for one in message['tool_calls'] or [] %}"
    "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<tool_call>\\n{\"name\": \"' + one['function']['name'] + '\", \"arguments\": ' }}"
    "{% if one['function']['arguments'] is string %}"
    "{{ one['function']['arguments'] }}"
    "{% else %}"
    "{{ one['function']['arguments'] | tojson }}"
    "{% endif %}"
    "{{ '}\\n</tool_call>' }}"
    "{% endfor %}"
)
_RESULT = (
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|user|>' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|end|>\\n' }}{% endif %}"
)
#: The tokenizer adds BOS, not the template.
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|system|>\\n' }}" + _TOOLS_TURN + "{{ '<|end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}" + _RESULT + ""
    "{% elif not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|' + message['role'] + '|>\\n' + (message['content'] or '') }}" + _CALLS + ""
    "{{ '<|end|>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
