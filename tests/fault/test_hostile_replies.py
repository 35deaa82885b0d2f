"""Replies that are in no format: nothing of them is lost, and nothing takes long.

``REPLIES=10000 pytest tests/fault/test_hostile_replies.py`` tries as many; a few hundred otherwise.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from native.chat_format import ChatFormat, ReplyReader
from tests.support.format_literals import LITERALS
from tests.support.reply_play import (
    bytewise,
    first_missing,
    markers_of,
    play,
    split_at_random,
)

pytestmark = pytest.mark.fault

N_REPLIES: Final = int(os.environ.get("REPLIES", "480"))
REPLY_SECONDS: Final = 5.0
"""For a reply of some hundred bytes, byte by byte, on a busy machine."""
AMBIGUOUS_SHARE: Final = 0.01
"""Of replies that begin as a call and turn out to be none: what was delivered is not taken back."""
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "description": "A text."},
        "number": {"type": "integer", "description": "A number."},
        "list": {"type": "array", "items": {"type": "string"}, "description": "Words."},
    },
    "required": ["text"],
}
TOOLS: Final = [
    {"type": "function", "function": {"name": name, "description": "Does.", "parameters": SCHEMA}}
    for name in ("weather", "add")
]
JSON_ARGUMENTS: Final = '{"text": "a \\"b\\" é 鷺\\n{", "number": 3, "list": ["x", "y"]}'
# Template → replies as its models write them.
FORMATS: Final = {
    "Qwen-Qwen3-0.6B": (
        f'<think>\nHm.\n</think>\n\nSo.\n<tool_call>\n{{"name": "weather", "arguments": '
        f"{JSON_ARGUMENTS}}}\n</tool_call>\n<tool_call>\n"
        f'{{"name": "add", "arguments": {{"text": ""}}}}\n</tool_call>'
    ),
    "Qwen3-Coder": (
        "So.\n<tool_call>\n<function=weather>\n<parameter=text>\na < b && c\n</parameter>\n"
        "<parameter=number>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n"
        "<function=add>\n<parameter=text>\n\n</parameter>\n</function>\n</tool_call>"
    ),
    "Qwen3.5-4B": (
        "Hm.\n</think>\n\nSo.\n<tool_call>\n<function=weather>\n<parameter=text>\nx\n"
        "</parameter>\n</function>\n</tool_call>"
    ),
    "GLM-4.6": (
        "\n<think>Hm.</think>\nSo.\n<tool_call>weather\n<arg_key>text</arg_key>\n"
        "<arg_value>é</arg_value>\n<arg_key>number</arg_key>\n<arg_value>3</arg_value>\n"
        "</tool_call>\n<tool_call>add\n<arg_key>text</arg_key>\n<arg_value></arg_value>\n</tool_call>"
    ),
    "openai-gpt-oss-120b": (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>So."
        "<|end|><|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"
        f"{JSON_ARGUMENTS}"
    ),
    "meta-llama-Llama-3.1-8B-Instruct": f'{{"name": "weather", "parameters": {JSON_ARGUMENTS}}}',
    "mistralai-Mistral-Nemo-Instruct-2407": (
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON_ARGUMENTS}, "id": "abcdefghi"}}, '
        '{"name": "add", "arguments": {"text": ""}, "id": "123456789"}]'
    ),
    "deepseek-ai-DeepSeek-V3.1": (
        "Hm.</think>So.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        f"{JSON_ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek-ai-DeepSeek-V3.2": (
        'Hm.</think>So.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="text" string="true">x</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="number" string="false">3</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    ),
    "Kimi-K2-Instruct": (
        "So.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        f"<|tool_call_argument_begin|>{JSON_ARGUMENTS}<|tool_call_end|>"
        "<|tool_calls_section_end|>"
    ),
    "google-gemma-4-31B-it": (
        '<|channel>thought\nHm.<channel|>So.<|tool_call>call:weather{text:<|"|>é {<|"|>,number:3}'
        "<tool_call|>"
    ),
    "LFM2.5-8B-A1B": (
        "<think>Hm.</think>So.<|tool_call_start|>[weather(text='x', number=3), add(text='')]"
        "<|tool_call_end|>"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def readers(published: Path) -> dict[str, ReplyReader]:
    return {
        name: ChatFormat((published / "templates" / f"{name}.jinja").read_text("utf-8")).reader(
            [{"role": "user", "content": "Why?"}], TOOLS
        )
        for name in FORMATS
    }


# ── how replies go wrong ────────────────────────────────────────────────────────────────────────

Change = Callable[[bytes, random.Random, list[bytes]], bytes]


def _cut_off(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _hole(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.randrange(1, 24) :]


def _twice(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    start = chance.randrange(len(data) + 1)
    end = start + chance.randrange(1, 40)
    return data[:end] + data[start:]


def _marker(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(markers) * chance.choice((1, 1, 2)) + data[at:]


def _noise(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.randrange(1, 6)) + data[at:]


def _half_character(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(("é", "鷺", "🦩")).encode()[:-1] + data[at:]


def _nested(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    at = data.find(b'"', chance.randrange(len(data) + 1)) + 1
    n = chance.choice((3, 40, 600))
    return data[:at] + chance.choice((b"[", b'{"a":', b"(", b"<a>")) * n + data[at:]


def _wrong_json(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    old = chance.choice((b'"', b"{", b"}", b":", b",", b"\\", b"3"))
    new = chance.choice((b"", b"'", b"}}", b"::", b",,", b"\\u12", b"NaN", b"3.e", b"\x00"))
    places = [at for at in range(len(data)) if data.startswith(old, at)]
    at = chance.choice(places) if places else 0
    return data[:at] + new + data[at + len(old) :]


def _shuffled(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    pieces = split_at_random(data, chance, 30)
    chance.shuffle(pieces)
    return b"".join(pieces)


def _only_markers(data: bytes, chance: random.Random, markers: list[bytes]) -> bytes:
    return b"".join(chance.choices([*markers, b" ", b"\n", b"x", b"{", b'"'], k=12))


CHANGES: Final[tuple[Change, ...]] = (
    _cut_off, _hole, _twice, _marker, _noise, _half_character, _nested, _wrong_json, _shuffled,
    _only_markers,
)  # fmt: skip


def hostile(name: str, number: int, reader: ReplyReader) -> bytes:
    """The same reply for the same number."""
    chance = random.Random(f"{name} {number}")
    markers = markers_of(reader.facts) or [b"<|python_tag|>"]
    data = FORMATS[name].encode()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(CHANGES)(data, chance, markers)
    return data


@pytest.mark.parametrize("name", FORMATS)
def test_a_reply_as_its_model_writes_it_is_in_its_format(
    name: str, readers: dict[str, ReplyReader]
) -> None:
    played = play(readers[name], bytewise(FORMATS[name].encode()))
    assert played.note is None
    assert [call.name for call in played.calls][:1] == ["weather"]
    assert all(call.is_whole for call in played.calls)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_of_a_hostile_reply_is_lost(name: str, readers: dict[str, ReplyReader]) -> None:
    reader = readers[name]
    markers = markers_of(reader.facts, *LITERALS)
    n_ambiguous = 0
    n_replies = N_REPLIES // len(FORMATS)
    for number in range(n_replies):
        data = hostile(name, number, reader)
        since = time.thread_time()
        by_byte = play(reader, bytewise(data))
        assert time.thread_time() - since < REPLY_SECONDS, (number, data)
        whole = play(reader, [data] if data else [])
        in_pieces = play(reader, split_at_random(data, random.Random(number)))
        n_ambiguous += not by_byte.values == whole.values == in_pieces.values
        for played in (by_byte, whole, in_pieces):
            missing = first_missing(data, played, markers)
            assert missing is None, (number, missing, data)
    assert n_ambiguous <= n_replies * AMBIGUOUS_SHARE
