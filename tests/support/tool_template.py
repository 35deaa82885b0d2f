"""A chat template with tools and thinking, and two tools, for tests. Written for this project."""

from __future__ import annotations

from typing import Any

TEMPLATE = """\
{%- if tools %}{{ '<|system|>\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}
{{- '<tools>\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- '</tools>\\nWrite calls as <tool_call>{"name": ..., "arguments": ...}</tool_call>.' }}
{{- '<|end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|system|>\\n' + messages[0].content + '<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|user|>\\n' + message.content + '<|end|>\\n' }}
{%- elif message.role == 'assistant' %}{{ '<|assistant|>\\n' }}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- if not loop.first or message.content %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '<|end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|user|>\\n<tool_response>\\n' + message.content + '\\n</tool_response><|end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

THINKING_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ '<|assistant|>\\n' }}
{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content }}
{{- '\\n</think>\\n\\n' }}{% endif %}{{ message.content + '<|end|>\\n' }}
{%- else %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- else %}{{ '<think>\\n' }}{% endif %}{% endif %}"""
"""Opens a thought in the prompt, unless thinking is off."""


def tool(name: str, required: list[str], **properties: Any) -> dict[str, Any]:
    """A tool in OpenAI's form; ``properties`` are its parameters' schemas."""
    parameters = {"type": "object", "properties": properties, "required": required}
    about = {"name": name, "description": f"The tool {name}", "parameters": parameters}
    return {"type": "function", "function": about}


WEATHER = tool(
    "weather", ["town", "days"],
    town={"type": "string", "enum": ["Oslo", "Rome"]}, days={"type": "integer", "enum": [1, 2, 3]},
)  # fmt: skip
ADD = tool("add", ["a", "b"], a={"enum": [1, 2]}, b={"enum": [3, 4]})
TOOLS = [WEATHER, ADD]
ASKED = [{"role": "user", "content": "What is the weather in Oslo?"}]
