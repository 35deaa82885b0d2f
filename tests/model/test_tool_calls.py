"""Tool calls as values, on the embedded model: forced by a grammar, streamed, and coming back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runtime import CompletionEvent, Node, SpanEvent, TokenEvent, ToolCallEvent, errors
from tests.support.runtime_nodes import started
from tests.support.tool_template import ADD, ASKED, TEMPLATE, TOOLS, WEATHER

pytestmark = pytest.mark.model

MODEL = "demo"
OPTIONS: dict[str, Any] = {
    "tools": TOOLS,
    "chat_template": TEMPLATE,
    "max_tokens": 160,
    "parallel_tool_calls": False,
}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with started(tmp_path_factory.mktemp("tools")) as node:
        yield node


def check(name: str, arguments: str) -> None:
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}
    jsonschema.validate(json.loads(arguments), schemas[name])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_required_call_is_made_and_follows_its_schema(node: Node, temperature: float) -> None:
    done = node.chat(
        MODEL, ASKED, tool_choice="required", temperature=temperature, seed=5, **OPTIONS
    )
    (call,) = done.tool_calls
    assert call.is_closed
    check(call.name, call.arguments)
    assert done.note is None
    assert not done.text.strip()
    assert len(call.id) == 9


def test_a_named_tool_is_the_one_that_is_called(node: Node) -> None:
    for name, tool in (("weather", WEATHER), ("add", ADD)):
        choice = {"type": "function", "function": {"name": name}}
        done = node.chat(MODEL, ASKED, tool_choice=choice, **OPTIONS)
        assert [one.name for one in done.tool_calls] == [name]
        jsonschema.validate(
            json.loads(done.tool_calls[0].arguments), tool["function"]["parameters"]
        )


def test_a_deferred_tool_is_called_and_its_prompt_is_that_without_it(node: Node) -> None:
    options = {**OPTIONS, "tools": [ADD], "max_tokens": 160}
    without = node.chat(MODEL, ASKED, **{**options, "max_tokens": 1})
    done = node.chat(MODEL, ASKED, deferred_tools=[WEATHER], tool_choice=NAMED, **options)
    (call,) = done.tool_calls
    assert call.name == "weather"
    check(call.name, call.arguments)
    assert done.usage.prompt_tokens == without.usage.prompt_tokens
    assert done.usage.cached_tokens >= without.usage.prompt_tokens - 1


def test_a_template_without_tools_calls_them_too(node: Node) -> None:
    """And the call that comes back is the tokens that were sampled."""
    plain = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    )
    options = {**OPTIONS, "chat_template": plain}
    done = node.chat(MODEL, ASKED, tool_choice=NAMED, **options)
    (call,) = done.tool_calls
    assert call.name == "weather"
    check(call.name, call.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    talk = [*ASKED, done.to_message(), result]
    later = node.chat(MODEL, talk, **{**options, "max_tokens": 1})
    assert later.usage.cached_tokens >= done.usage.prompt_tokens + len(done.tokens) - 1


def test_the_prompt_is_the_same_whatever_is_chosen(node: Node) -> None:
    """So that a forced call hits the rows of the conversation."""
    choices: list[Any] = ["auto", "none", "required", NAMED]
    done = [node.chat(MODEL, ASKED, tool_choice=choice, **OPTIONS) for choice in choices]
    assert len({one.usage.prompt_tokens for one in done}) == 1
    assert done[-1].usage.cached_tokens == done[-1].usage.prompt_tokens


def test_pieces_of_a_stream_are_the_call(node: Node) -> None:
    pieces: list[ToolCallEvent] = []
    spans: list[SpanEvent] = []
    tokens: list[int] = []
    for event in node.stream_chat(MODEL, ASKED, tool_choice=NAMED, **OPTIONS):
        match event:
            case ToolCallEvent():
                pieces.append(event)
            case SpanEvent():
                spans.append(event)
            case TokenEvent():
                assert event.index == len(tokens)
                tokens += event.tokens
            case CompletionEvent(done):
                break
    (call,) = done.tool_calls
    assert len(pieces) > 3
    assert {(one.id, one.name) for one in pieces} == {(call.id, "weather")}
    assert "".join(one.arguments for one in pieces) == call.arguments
    assert [one.is_end for one in pieces] == [False] * (len(pieces) - 1) + [True]
    assert tuple(tokens) == done.tokens
    (span,) = spans
    assert span.kind == "tool_call"
    assert span.is_closed
    written = node.detokenize(MODEL, done.tokens)
    assert span.text in written


def test_a_call_comes_back_as_the_tokens_that_were_sampled(node: Node) -> None:
    """Whatever blanks its arguments have in the history."""
    compact = TEMPLATE.replace(
        "call.function.arguments | tojson",
        "call.function.arguments | tojson(separators=(',', ':'))",
    )
    options = {**OPTIONS, "chat_template": compact}
    done = node.chat(MODEL, ASKED, tool_choice="required", **options)
    message = done.to_message()
    function = message["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(json.loads(function["arguments"]), indent=3)
    result = {"role": "tool", "tool_call_id": done.tool_calls[0].id, "content": "rain"}
    history = [*ASKED, message, result]
    plain = node.apply_chat_template(MODEL, history, tools=TOOLS, chat_template=compact)
    after = node.chat(MODEL, history, **options)
    said = done.usage.prompt_tokens + done.usage.completion_tokens
    assert after.usage.cached_tokens >= said - 1
    assert node.detokenize(MODEL, done.tokens) not in plain.text  # as text it would have missed


def test_another_value_in_the_history_is_another_text(node: Node) -> None:
    done = node.chat(MODEL, ASKED, tool_choice=NAMED, seed=4, **OPTIONS)
    message = done.to_message()
    arguments = json.loads(done.tool_calls[0].arguments)
    other = {**arguments, "town": "Rome" if arguments["town"] == "Oslo" else "Oslo"}
    message["tool_calls"][0]["function"]["arguments"] = json.dumps(other)
    after = node.chat(MODEL, [*ASKED, message, {"role": "user", "content": "And now?"}], **OPTIONS)
    assert after.usage.cached_tokens < done.usage.prompt_tokens + done.usage.completion_tokens - 1
    assert after.usage.cached_tokens >= done.usage.prompt_tokens - 64


def test_without_a_choice_the_model_answers_as_it_likes(node: Node) -> None:
    greeted = [{"role": "user", "content": "Hello!"}]
    for choice in (None, "auto", "none"):
        done = node.chat(MODEL, greeted, tool_choice=choice, **{**OPTIONS, "max_tokens": 24})
        assert done.text
        assert not done.tool_calls


def test_a_call_that_is_cut_is_not_closed(node: Node) -> None:
    """What it has of its arguments is there; before its name it is text, for it may be none."""
    whole = node.chat(MODEL, ASKED, tool_choice=NAMED, **OPTIONS)
    n_tokens = len(whole.tokens)
    cuts = ({**OPTIONS, "max_tokens": n} for n in range(n_tokens - 14, n_tokens - 40, -5))
    replies = (node.chat(MODEL, ASKED, tool_choice=NAMED, **cut) for cut in cuts)
    done = next(one for one in replies if not one.tool_calls[0].is_closed)
    (call,) = done.tool_calls
    assert whole.tool_calls[0].arguments.startswith(call.arguments)
    assert done.note == "the last tool call is not complete"
    for n in (4, 8):
        done = node.chat(MODEL, ASKED, tool_choice=NAMED, **{**OPTIONS, "max_tokens": n})
        assert not done.tool_calls
        assert done.text.strip()
        assert done.text.strip() in node.detokenize(MODEL, whole.tokens)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tool_choice": "perhaps"}, "tool_choice must be auto, none, required"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "fly"}}},
            "'fly'; the tools are",
        ),
        ({"tool_choice": "required", "tools": None}, "has no tools"),
        ({"parallel_tool_calls": 3}, "parallel_tool_calls must be true or false"),
        ({"tool_choice": "required", "grammar": 'root ::= "a"'}, "has a grammar of its own"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    node: Node, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(errors.InvalidRequest, match=expected):
        node.chat(MODEL, ASKED, **{**OPTIONS, **options})


def test_a_template_without_a_form_for_calls_cannot_be_made_to_call(node: Node) -> None:
    template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{{ messages[-1].content }}"
    )
    with pytest.raises(errors.NotSupported, match="no known form for one"):
        node.chat(MODEL, ASKED, **{**OPTIONS, "tool_choice": "required", "chat_template": template})


def test_the_path_of_a_node_that_restarts_keeps_calls_warm(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        done = node.chat(MODEL, ASKED, tool_choice="required", **OPTIONS)
    result = {"role": "tool", "tool_call_id": done.tool_calls[0].id, "content": "rain"}
    with started(tmp_path) as node:
        after = node.chat(MODEL, [*ASKED, done.to_message(), result], **OPTIONS)
    said = done.usage.prompt_tokens + done.usage.completion_tokens
    assert after.usage.cached_tokens >= said - 1
    assert after.cache.source == "disk"
