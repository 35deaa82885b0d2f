"""Published formats of replies: a tool call in a template's words is read as it was sent."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from actors.messages.errors import UnsupportedRequest
from actors.text.chat_prompt import ControlTokens, render_chat
from actors.text.chat_request import chat_from
from actors.text.chat_shape import completed, fitted
from actors.text.chat_template import ChatTemplate, TemplateFailed
from actors.text.reply_format import ReplyFormat, ReplyFormats, variables_of
from actors.text.tool_schemas import BadToolSchema, with_own_schemas
from native.chat_format import ChatFormat, ChatFormatError, ReplyReader
from native.chat_reply import FormatFacts
from native.errors import InvalidParam
from native.llama import LlamaBackend
from native.params import ModelParams, SamplingParams
from native.sampling_params import ReplyGrammar
from runtime.embedded import path as embedded_path
from tests.support.format_exceptions import EXCEPTIONS
from tests.support.format_literals import LITERALS
from tests.support.reply_play import (
    Played,
    bytewise,
    first_missing,
    markers_of,
    play,
    split_at_random,
)
from tests.support.template_outcomes import OUTCOMES

pytestmark = pytest.mark.model

BOS, EOS = "<s>", "</s>"
USER: Final = {"role": "user", "content": "Why?"}
THOUGHT: Final = "I think."
NUMBER: Final = {"type": "integer", "description": "A number."}
STRING: Final = {"type": "string", "description": "A text."}
NO_TOKENS = ControlTokens({})


def tool(name: str, required: tuple[str, ...], **properties: object) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    function = {"name": name, "description": "As its name says.", "parameters": schema}
    return {"type": "function", "function": function}


WORDS: Final = {"type": "array", "items": STRING, "description": "Words."}
PLACE: Final = {
    "type": "object",
    "description": "Where.",
    "properties": {
        "at": {
            "type": "object",
            "description": "Exactly.",
            "properties": {"points": {"type": "array", "items": NUMBER, "description": "Two."}},
        },
        "is_far": {"type": "boolean", "description": "Or near."},
    },
}
TOOLS: Final = [
    tool("weather", ("town",), town=STRING, days=NUMBER),
    tool("add", ("a", "b"), a=NUMBER, b=NUMBER),
    tool("note", ("text",), text=STRING, tags=WORDS, place=PLACE),
    tool("now", ()),
]
PLAIN_TOOLS: Final = TOOLS[:2]
Call = tuple[str, dict[str, Any]]
# Case → the text beside the calls, and the calls.
CASES: Final[dict[str, tuple[str, list[Call]]]] = {
    "one": ("", [("weather", {"town": "Oslo", "days": 3})]),
    "text": ("I look.", [("weather", {"town": "Oslo"})]),
    "two": ("", [("weather", {"town": "Oslo"}), ("add", {"a": 1, "b": 2})]),
    "empty": ("", [("now", {})]),
    "quotes": ("", [("weather", {"town": 'Os"lo" {x} [y], é 鷺'})]),
    "escapes": ("", [("weather", {"town": "a\\b\nc\td\\"})]),
    "markers": ("", [("weather", {"town": "<think>[TOOL_CALLS]<tool_call>{"})]),
    "nested": (
        "",
        [("note", {"text": "a", "tags": ["x", "y z"], "place": {"at": {"points": [1, 20]}}})],
    ),
    "words": ("", [("note", {"text": "true", "place": {"is_far": True}})]),
}
ENDS: Final = (
    "<|im_end|>", "<|eom_id|>", "<|call|>", "<|eot_id|>", "<|calls|>", "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>", "<SPECIAL_12>", EOS, "<seed:eos>", "<｜hy_eos:opensource｜>",
    "<|end|>", "</assistant>", "<end_of_sentence>", "<|message_sep|>", "[e~[", "<sep>",
    "<｜end▁of▁sentence｜>", "<|role_end|>", "<|eot|>", "<turn|>", "<|tool_response>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<｜Assistant｜>", "<end_of_turn>",
    "<|START_THINKING|><|END_THINKING|>", "<|close|>message<|sep|>", "<|end_of_msg|>",
    "<|start_header_id|>assistant<|end_header_id|>",
)  # fmt: skip
INSTRUCTION: Final = "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write 'Action:'"
"""What templates write behind a reply; a model that wrote it would be stopped there."""


class NotSent(Exception):
    """The template refuses such a conversation; the text has its reason."""


@pytest.fixture(scope="module")
def sources(published: Path) -> dict[str, str]:
    paths = sorted((published / "templates").glob("*.jinja"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def test_all_published_templates_are_tried(sources: dict[str, str]) -> None:
    assert set(sources) == set(OUTCOMES)
    assert len(sources) >= 70
    assert set(EXCEPTIONS) <= set(sources)
    assert all(set(cases) <= {*CASES, "all"} for cases in EXCEPTIONS.values())


@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_a_template_is_analysed_with_and_without_tools(name: str, sources: dict[str, str]) -> None:
    chat_format = ChatFormat(sources[name])
    for tools in ((), PLAIN_TOOLS):
        facts = chat_format.reader([USER], tools).facts
        assert facts.prompt
        assert facts.prompt.endswith(facts.generation_prompt)
    plain = chat_format.reader([USER])
    closed = plain.facts.thinking_ends[0] if plain.facts.thinking_ends else ""
    played = play(plain, bytewise(f"{closed}Hence. é {{}}".encode()))
    assert "Hence. é {}" in (played.text or played.thinking)


@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_a_call_in_a_templates_words_is_read_as_it_was_sent(
    name: str, sources: dict[str, str]
) -> None:
    template, chat_format = opened(sources[name])
    wrong = {case: trial(template, chat_format, case) for case in CASES}
    expected = EXCEPTIONS.get(name, {})
    for case, found in wrong.items():
        reason = expected.get(case, expected.get("all"))
        if reason is None:
            assert found == "", f"{case}: {found}"
        else:
            assert found != "", f"{case} is read now: take it out of the table"


@functools.cache
def opened(source: str) -> tuple[ChatTemplate, ChatFormat]:
    template = completed(ChatTemplate(source, bos_token=BOS, eos_token=EOS))
    return template, ChatFormat(template.source)


def trial(template: ChatTemplate, chat_format: ChatFormat, case: str) -> str:
    """Empty, or what is not as it was sent. However it is read: no byte may be missing."""
    text, calls = CASES[case]
    try:
        reader, data = reply_of(template, chat_format, text, calls)
    except (NotSent, TemplateFailed, ChatFormatError) as error:
        return str(error)
    whole = play(reader, [data])
    chance = random.Random(case)
    for pieces in (bytewise(data), *(split_at_random(data, chance) for _ in range(3))):
        assert play(reader, pieces).values == whole.values, (data, pieces)
    missing = first_missing(data, whole, markers_of(reader.facts, *LITERALS, *ENDS))
    assert missing is None, (missing, data)
    return difference(whole, text, calls)


def difference(played: Played, text: str, calls: list[Call]) -> str:
    if played.note is not None:
        return played.note
    if not all(call.is_end and call.is_whole and call.id for call in played.calls):
        return f"calls are not complete: {played.calls}"
    found = [(call.name, call.value) for call in played.calls]
    if found != calls:
        return f"calls: {found}"
    return "" if played.text.strip() == text else f"text: {played.text!r}"


def reply_of(
    template: ChatTemplate, chat_format: ChatFormat, text: str, calls: list[Call]
) -> tuple[ReplyReader, bytes]:
    """What reads the reply, and the reply as the template writes it in a conversation."""
    names = [name for name, _ in calls]
    tools = PLAIN_TOOLS + [one for one in TOOLS[2:] if one["function"]["name"] in names]
    asked = {"messages": [USER], "tools": tools, "enable_thinking": True}
    variables = variables_of(fitted(template, chat_from(json.dumps(asked))))
    reader = chat_format.reader([USER], tools, kwargs=variables)
    prompt = rendered(template, [USER], tools, add_generation_prompt=True)
    sent = [
        {"id": f"call{at:05d}", "type": "function",
         "function": {"name": name, "arguments": json.dumps(arguments)}}
        for at, (name, arguments) in enumerate(calls, start=1)
    ]  # fmt: skip
    answer = {"role": "assistant", "content": text, "tool_calls": sent}
    whole = rendered(template, [USER, answer], tools, add_generation_prompt=False)
    return reader, without_end(after_prompt(prompt, whole, reader.facts)).encode()


Messages = list[dict[str, Any]]


def rendered(template: ChatTemplate, messages: Messages, tools: Messages, **more: object) -> str:
    request = {"messages": messages, "tools": tools, "enable_thinking": True, **more}
    chat = fitted(template, chat_from(json.dumps(request)))
    return render_chat(template, chat, NO_TOKENS).text


def after_prompt(prompt: str, whole: str, facts: FormatFacts) -> str:
    """The reply. Templates leave thoughts out of a conversation that the prompt has opened."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    before, last, after = prompt.removesuffix(facts.generation_prompt).rpartition(INSTRUCTION)
    if last and whole.endswith(last + after):  # of one template, which writes it behind all
        begun = before + facts.generation_prompt
        return whole.removesuffix(last + after).removeprefix(begun)
    start = facts.thinking_start
    at = prompt.rfind(start) if start else -1
    head = (prompt[:at] if at > 0 else prompt).rstrip()
    if not whole.startswith(head):
        raise NotSent("the conversation does not begin with the prompt")
    rest = whole[len(head) :].lstrip()
    if start and rest.startswith(start):
        rest = rest.removeprefix(start)
    is_ended = any(rest.lstrip().startswith(end.strip()) for end in facts.thinking_ends)
    return THOUGHT + ("" if is_ended else facts.thinking_ends[0]) + rest


def without_end(text: str) -> str:
    while True:
        shown = text.rstrip()
        end = next((one for one in ENDS if shown.endswith(one)), None)
        if end is None:
            return text
        text = shown.removesuffix(end)


# ── grammars ────────────────────────────────────────────────────────────────────────────────────

WITHOUT = {
    "llama-cpp-rwkv-world": "thinking neither on nor off is a third end of its prompt",
    "openbmb-MiniCPM5-1B": "its prompt ends in another way than the analysis expects",
}
"""Templates for which no call can be required."""


@pytest.fixture(scope="module")
def backend() -> Iterator[LlamaBackend]:
    backend = LlamaBackend.load(embedded_path(), ModelParams(n_ctx=256, n_threads=1))
    yield backend
    backend.close()


def format_of(
    source: str, backend: LlamaBackend, choice: str, parallel: bool | None = None
) -> ReplyFormat | None:
    template, _ = opened(source)
    asked = {
        "messages": [USER], "tools": PLAIN_TOOLS, "tool_choice": choice,
        "parallel_tool_calls": parallel,
    }  # fmt: skip
    chat = fitted(template, chat_from(json.dumps(asked)))
    text = render_chat(template, chat, NO_TOKENS).text
    return ReplyFormats(backend).of(template.source, chat, text, NO_TOKENS)


@pytest.mark.parametrize("name", sorted(set(OUTCOMES) - set(WITHOUT)))
def test_a_call_can_be_required_and_its_grammar_is_used(
    name: str, backend: LlamaBackend, sources: dict[str, str]
) -> None:
    found = format_of(sources[name], backend, "required")
    assert found is not None
    assert found.grammar is not None
    assert backend.new_sampler(SamplingParams(), (), found.grammar)
    auto = format_of(sources[name], backend, "auto")
    assert auto is not None
    assert (
        auto.lazy is not None
        or not auto.reader.facts.grammar_is_lazy
        or not any(kind == "word" for kind, _ in auto.reader.facts.triggers)
    )


def test_the_grammars_permit_calls_as_templates_write_them(
    backend: LlamaBackend, sources: dict[str, str]
) -> None:
    permitted = [one for one in OUTCOMES if is_permitted(sources[one], backend, "one")]
    assert len(permitted) >= 55, permitted


def test_the_grammars_permit_one_call_where_only_one_is_asked_for(
    backend: LlamaBackend, sources: dict[str, str]
) -> None:
    several = [one for one in OUTCOMES if is_permitted(sources[one], backend, "two")]
    assert len(several) >= 40, several
    still = [one for one in several if is_permitted(sources[one], backend, "two", parallel=False)]
    assert still == ["inclusionai-ling-3.0-flash"], "text may follow a call there, of any kind"
    ones = [one for one in several if is_permitted(sources[one], backend, "one", parallel=False)]
    assert ones == several


OWN_FORMS: Final = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "Kimi-K3", "LFM2-8B-A1B", "LFM2.5-8B-A1B",
    "LFM2.5-Instruct", "MiniMax-M3", "google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved",
    "inclusionai-ling-3.0-flash", "muse-glimmer", "openbmb-MiniCPM5-1B",
}  # fmt: skip
"""Templates in whose forms of calls not all of such a schema is held."""


@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_the_schema_of_a_strict_tool_is_held_or_refused(
    name: str, backend: LlamaBackend, sources: dict[str, str]
) -> None:
    town = {**STRING, "enum": ["Oslo", "Rome"]}
    days = {**NUMBER, "minimum": 1, "maximum": 9}
    tools = [tool("weather", ("town", "days"), town=town, days=days, words=WORDS)]
    try:
        reader = opened(sources[name])[1].reader([USER], tools, tool_choice="required")
        text = with_own_schemas(reader.facts.grammar, tools, {"weather"})
    except (ChatFormatError, BadToolSchema):
        assert name in OWN_FORMS
        return
    assert name not in OWN_FORMS
    assert text.count("Oslo") >= 1
    assert "[1-9]" in text or "[123456789]" in text
    assert backend.new_sampler(SamplingParams(), (), ReplyGrammar(text, b"", ()))


def is_permitted(
    source: str, backend: LlamaBackend, case: str, *, parallel: bool | None = None
) -> bool:
    """Whether the grammar permits the calls of a case; not where none can be required."""
    template, chat_format = opened(source)
    try:
        found = format_of(source, backend, "required", parallel)
    except UnsupportedRequest:
        return False
    assert found is not None
    try:
        _, data = reply_of(template, chat_format, *CASES[case])
        sampler = backend.new_sampler(SamplingParams(), (), found.grammar)
        for token in backend.tokenize(data.decode(), add_special=False):
            sampler.accept(token)
    except (InvalidParam, NotSent, TemplateFailed):
        return False  # mostly: the conversation has a thought where the grammar has none
    return True
