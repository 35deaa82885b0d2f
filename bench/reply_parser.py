"""What reading a reply costs: microseconds a token, of replies of 32,000 tokens in the format of a
chat template; and milliseconds until a reader of a request with 80 KB of tools is made.

No model and no node: the parser gets the pieces that a model would generate, four bytes each.
Times are of this thread's own work, which nothing waits in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from actors.text.format_parser import FormatParser
from bench.report import Figure, figure
from bench.stats import summarise
from native.chat_format import ChatFormat
from native.chat_reply import Reader

NAME = "reply_parser"
PIECE_BYTES: Final = 4
TOOL_SET_BYTES: Final = 80 << 10
# As many models have it, in the words of none.
TEMPLATE: Final = """\
{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
{"name": <name>, "arguments": <arguments>} goes between <tool_call> and </tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "assistant" %}<|im_start|>assistant
<think>
{{ message.reasoning_content or "" }}
</think>

{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
USER: Final = [{"role": "user", "content": "Why?"}]
WORDS: Final = "What is 3 < 4, and why does it matter? One line of it:\n"
CODE: Final = 'def f(a, b):\n    return {"a": a < b}  # é\n'


def main(quick: bool, _model: Path | None = None) -> list[Figure]:
    """No model is looked at."""
    n_tokens, rounds = (2_000, 1) if quick else (32_000, 3)
    n_bytes = n_tokens * PIECE_BYTES
    reader = ChatFormat(TEMPLATE).reader(USER, [_tool("write", 1), _tool("add", 1)])
    figures: list[Figure] = []
    for variant, text in (
        ("plain text", _repeated(WORDS, n_bytes)),
        ("a thought", f"<think>\n{_repeated(WORDS, n_bytes)}"),
        ("one tool call with code", f"Here.\n{_call(code=_repeated(CODE, n_bytes))}"),
        ("many small tool calls", _repeated(_call(code="x = 1") + "\n", n_bytes)),
        ("text that leaves the format", f"<tool_call>\n{{]{_repeated(WORDS, n_bytes)}"),
    ):
        pieces = _pieces(text)
        seconds = [_seconds(reader, pieces) for _ in range(rounds)]
        figures.append(_cost(f"{variant}, {len(pieces)} tokens", seconds, len(pieces)))
    return figures + _readers(1 if quick else 5)


def _repeated(text: str, n_bytes: int) -> str:
    return text * (n_bytes // len(text.encode()) + 1)


def _call(**arguments: str) -> str:
    value = {"name": "write", "arguments": arguments}
    return f"<tool_call>\n{json.dumps(value)}\n</tool_call>"


def _pieces(text: str) -> list[bytes]:
    data = text.encode()
    return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]


def _seconds(reader: Reader, pieces: list[bytes]) -> float:
    parser = FormatParser(reader, call_ids=b"bench")
    since = time.thread_time()
    for token, piece in enumerate(pieces):
        parser.feed(token, piece)
    parser.finish()
    return time.thread_time() - since


def _cost(variant: str, seconds: list[float], n_tokens: int) -> Figure:
    each = summarise([1e6 * one / n_tokens for one in seconds])
    return figure(NAME, variant, "parse", "us/tok", each, "goal 20")


def _readers(rounds: int) -> list[Figure]:
    tools = list(_tool_set())
    size = len(json.dumps(tools)) >> 10
    variant = f"{len(tools)} tools of {size} KB together"
    template: list[float] = []
    first: list[float] = []
    later: list[float] = []
    for _ in range(rounds):
        made: list[ChatFormat] = []
        template.append(_milliseconds(lambda made=made: made.append(ChatFormat(TEMPLATE))))
        first.append(_milliseconds(lambda made=made: made[0].reader(USER, tools)))
        later.append(_milliseconds(lambda made=made: made[0].reader(USER, tools)))
    return [
        figure(NAME, variant, "analyse_template", "ms", summarise(template)),
        figure(NAME, variant, "first_reader", "ms", summarise(first)),
        figure(NAME, variant, "later_reader", "ms", summarise(later), "no cache of this library"),
    ]


def _milliseconds(run: Callable[[], object]) -> float:
    since = time.thread_time()
    run()
    return 1e3 * (time.thread_time() - since)


def _tool_set() -> Iterator[dict[str, Any]]:
    size = number = 0
    while size < TOOL_SET_BYTES:
        tool = _tool(f"tool_{number}", 12)
        size, number = size + len(json.dumps(tool)), number + 1
        yield tool


def _tool(name: str, n_properties: int) -> dict[str, Any]:
    properties = {
        f"value_{at}" if at else "code": {"type": "string", "description": "What it is. " * 8}
        for at in range(n_properties)
    }
    schema = {"type": "object", "properties": properties, "required": ["code"]}
    function = {"name": name, "description": "As it is named.", "parameters": schema}
    return {"type": "function", "function": function}
