"""Anthropic's messages as bytes: bodies that are read and refused, frames, whole answers."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Usage
from runtime.client.results import (
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)
from runtime.gateway.wire.anthropic import Asked, prompt_options, read_messages
from runtime.gateway.wire.anthropic_answer import (
    PING,
    Diagnosis,
    MessagesAnswer,
    content_of,
    diagnosis,
    stop_reason_of,
)
from runtime.gateway.wire.anthropic_errors import error_object
from runtime.gateway.wire.anthropic_messages import Breakpoint
from runtime.gateway.wire.diagnose import parts_of
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.wanted import Head, Wanted
from tests.support.completions import call_span, completion, thought
from tests.support.examples import examples
from tests.support.gateways import frames_of

pytestmark = pytest.mark.pure

HEAD = Head(id="0123", created=1, model="demo", explains=False)
WANTED = Wanted(model="demo", kind="chat", inputs=([],), is_stream=True)
HELLO = {"role": "user", "content": "Hello"}
TOOL = {"name": "weather", "description": "d", "input_schema": {"type": "object"}}
SIGNED = base64.b64encode(b"signed").decode()


def read(**fields: Any) -> tuple[Wanted, Asked]:
    body = {"model": "m", "max_tokens": 7, "messages": [HELLO]} | fields
    return read_messages(json.dumps(body).encode(), {})


def messages(*given: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(messages=list(given), **fields)[0].inputs[0]
    return found


def refusal(**fields: Any) -> Failure:
    with pytest.raises(Refused) as caught:
        read(**fields)
    return caught.value.failure


def answer(asked: Asked | None = None, found: Diagnosis | None = None) -> MessagesAnswer:
    return MessagesAnswer(HEAD, WANTED, asked or Asked(), found)


def streamed(events: Sequence[Event]) -> bytes:
    one = answer()
    return one.begin() + b"".join(one.event(0, event) for event in events) + one.end()


def blocks(*given: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(given)}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_request_is_a_chat_with_its_settings() -> None:
    wanted, asked = read(stop_sequences=["x", ""], temperature=0.5, top_k=3, stream=True)
    assert (wanted.kind, wanted.model, wanted.is_stream) == ("chat", "m", True)
    assert wanted.inputs == ([HELLO],)
    assert wanted.options == {
        "max_tokens": 7, "stop": ["x"], "temperature": 0.5, "top_k": 3, "seed": -1,
        "thinking": "auto",
    }  # fmt: skip
    assert asked == Asked()


def test_without_max_tokens_the_usual_number_counts() -> None:
    assert read(max_tokens=None)[0].options["max_tokens"] == 4096


def test_what_has_no_meaning_here_is_ignored() -> None:
    wanted, _ = read(
        metadata={"user_id": "u"}, context_management={"edits": []}, service_tier="auto",
        container={"id": "c"}, betas=["x"], mcp_servers=None, thinking={"type": "adaptive"},
    )  # fmt: skip
    assert wanted.options == read()[0].options


def test_system_text_and_blocks_come_first_and_marks_of_the_cache_change_nothing() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    plain = messages(HELLO, system=[text("a"), text("b")])
    marked = {"role": "user", "content": [text("Hello", cache_control=mark)]}
    assert messages(marked, system=[text("a"), text("b", cache_control=mark)]) == plain
    assert plain == [{"role": "system", "content": [text("a"), text("b")]}, HELLO]
    assert messages(HELLO, system="a")[0] == messages(HELLO, system=[text("a")])[0]
    assert messages(HELLO, system="") == messages(HELLO, system=[]) == [HELLO]


def test_a_system_message_in_the_middle_stays_there() -> None:
    middle = {"role": "system", "content": "Now be brief."}
    assert messages(HELLO, middle, HELLO) == [HELLO, middle, HELLO]


def test_a_turn_with_thoughts_text_and_calls_is_one_message_of_the_runtime() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"town": "Oslo"}}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    expected = {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "t1",
                "type": "function",
                "function": {"name": "weather", "arguments": {"town": "Oslo"}},
            }
        ],
    }
    wanted, asked = read(messages=[HELLO, blocks(thinking, hidden, text("I look."), call), HELLO])
    assert wanted.inputs[0][1] == expected
    assert asked.signed == (("hm", "c2ln"),)
    apart = messages(HELLO, blocks(thinking), blocks(text("I look.")), blocks(call), HELLO)
    assert apart[1] == expected  # several in a row are one turn


def test_results_of_tools_come_before_the_text_beside_them() -> None:
    results = [
        text("before"),
        {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
        {"type": "tool_result", "tool_use_id": "t2", "content": [text("a"), text("b")]},
        {"type": "tool_result", "tool_use_id": "t3"},
        text("after"),
    ]
    assert messages({"role": "user", "content": results}) == [
        {"role": "tool", "content": "rain", "tool_call_id": "t1"},
        {"role": "tool", "content": [text("a"), text("b")], "tool_call_id": "t2"},
        {"role": "tool", "content": "", "tool_call_id": "t3"},
        {"role": "user", "content": [text("before"), text("after")]},
    ]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("no such file", "Error: no such file"),
        ("<tool_use_error>no</tool_use_error>", "<tool_use_error>no</tool_use_error>"),
        (None, "Error: the tool failed"),
    ],
)
def test_a_failed_tool_shows_that_it_failed(content: str | None, shown: str) -> None:
    one = {"type": "tool_result", "tool_use_id": "t", "content": content, "is_error": True}
    assert messages({"role": "user", "content": [one]})[0]["content"] == shown


def test_a_last_message_of_the_assistant_is_continued() -> None:
    begun = {"role": "assistant", "content": "The best"}
    assert read(messages=[HELLO, begun])[0].options["continue_final_message"] is True
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    for last in (blocks(call), blocks(), HELLO):
        assert "continue_final_message" not in read(messages=[HELLO, last])[0].options


def searched(*names: str) -> list[dict[str, Any]]:
    """A search for tools, and a result that refers to what was found."""
    call = {"type": "tool_use", "id": "s1", "name": "search", "input": {}}
    found: list[dict[str, Any]] = [{"type": "tool_reference", "tool_name": one} for one in names]
    result = {"type": "tool_result", "tool_use_id": "s1", "content": found}
    return [HELLO, blocks(call), {"role": "user", "content": [result, text("Loaded.")]}]


def test_a_deferred_tool_is_described_where_a_result_refers_to_it() -> None:
    search = {"name": "search", "input_schema": {}}
    deferred = {**TOOL, "defer_loading": True}
    other = {**TOOL, "name": "other", "defer_loading": True}
    before, _ = read(tools=[search, deferred, other])
    after, _ = read(tools=[deferred, search, other], messages=searched("weather"))
    assert [one["function"]["name"] for one in before.options["tools"]] == ["search"]
    assert "deferred_tools" not in before.options
    assert after.options["tools"] == before.options["tools"], "the beginning stays as it was"
    (function,) = (one["function"] for one in after.options["deferred_tools"])
    assert function["name"] == "weather"
    _, _, result, said = after.inputs[0]
    definition = '{"description": "d", "name": "weather", "parameters": {"type": "object"}}'
    assert result == {
        "role": "tool",
        "tool_call_id": "s1",
        "content": f"<functions>\n<function>{definition}</function>\n</functions>",
    }
    assert said == {"role": "user", "content": "Loaded."}


def test_a_reference_to_a_tool_that_is_gone_shows_that() -> None:
    wanted, _ = read(tools=[{**TOOL, "defer_loading": True}], messages=searched("gone", "weather"))
    lines = wanted.inputs[0][2]["content"].splitlines()
    assert lines[1] == "(the tool gone is there no more)"
    assert "weather" in lines[2]
    assert len(wanted.options["deferred_tools"]) == 1


def test_tools_come_in_openais_form_without_what_only_a_provider_reads() -> None:
    given_tool = {
        **TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True,
        "defer_loading": False, "input_examples": [{}],
    }  # fmt: skip
    wanted, asked = read(tools=[given_tool])
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert wanted.options["tools"] == [
        {"type": "function", "function": {**function, "strict": True}}
    ]
    assert asked.breakpoint is not None
    odd = {**given_tool, "input_schema": {"type": "object", "properties": {"a": "text"}}}
    wanted, _ = read(tools=[odd])
    assert "strict" not in wanted.options["tools"][0]["function"]
    assert wanted.remarks == ("tools[0].strict: its input_schema is no JSON Schema",)


@pytest.mark.parametrize(
    ("choice", "options"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            {
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False,
            },
        ),
    ],
)
def test_each_tool_choice_has_its_word_in_the_runtime(
    choice: dict[str, Any], options: dict[str, Any]
) -> None:
    found = read(tools=[TOOL], tool_choice=choice)[0].options
    names = ("tool_choice", "parallel_tool_calls")
    assert {name: found[name] for name in names if name in found} == options
    if choice["type"] in ("auto", "none"):
        assert "tool_choice" not in read(tool_choice=choice)[0].options


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {"enable_thinking": True, "thinking_budget_tokens": 2048},
        ),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
            {"enable_thinking": False},
        ),
        ({"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}),
        ({"output_config": {"effort": "heroic"}}, {}),
    ],
)
def test_thinking_and_effort(fields: dict[str, Any], options: dict[str, Any]) -> None:
    found, usual = read(**fields)[0], read()[0].options
    assert {name: one for name, one in found.options.items() if name not in usual} == options
    is_unknown = fields.get("output_config") == {"effort": "heroic"}
    assert bool(found.remarks) == is_unknown


def test_a_format_is_a_schema_and_one_without_keywords_is_any_json() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "schema": schema}
    assert read(output_config={"format": form})[0].options["json_schema"] == schema
    assert read(output_format=form)[0].options["json_schema"] == schema
    odd = {"type": "json_schema", "schema": {"foo": "bar"}}
    assert read(output_config={"format": odd})[0].options["json_schema"] == {}


def test_a_conversation_that_the_server_should_hold_is_not_found() -> None:
    """Else the later turns of anthropic-python's tool runner would be without the earlier ones."""
    begun, _ = read(thread={"type": "create"})
    assert begun.inputs == read()[0].inputs
    (remark,) = begun.remarks
    assert remark.startswith("thread: conversations are not held here")
    failure = refusal(thread={"type": "continue", "previous_message_id": "msg_1"})
    assert (failure.status, failure.param) == (404, "thread")
    error = error_object(failure)["error"]
    assert error["type"] == "not_found_error"
    assert error["details"] == {"error_code": "thread_not_found"}
    assert "details" not in error_object(refusal(messages=[]))["error"]


def test_a_prompt_is_counted_with_the_options_that_change_it() -> None:
    wanted, _ = read(
        tools=[TOOL], thinking={"type": "disabled"}, tool_choice={"type": "none"}, top_k=3
    )
    assert prompt_options(wanted) == {
        "tools": wanted.options["tools"], "enable_thinking": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         "messages[0].content[0]", "is of type image, and this node reads text only"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
          "content": [{"type": "document"}]}]}]},
         "messages[0].content[0].content[0]", "of type document"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]", "'robot'"),
        ({"messages": [blocks({"type": "server_tool_use", "id": "s"})]},
         "messages[0].content[0]", "of type server_tool_use"),
        ({"messages": [blocks({"type": "tool_use", "id": "s", "input": {}})]},
         "messages[0].content[0].name", 'no "name"'),
        ({"tools": [{"type": "web_search_20260209", "name": "web_search"}]}, "tools[0]",
         "web_search_20260209"),
        ({"tools": [{"name": "x", "input_schema": []}, {"name": 1}]}, "tools[1].name", "name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"type": "some"}, "tools": [TOOL]}, "tool_choice.type", "'some'"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "tool_choice.name", "missing"),
        ({"max_tokens": -5}, "max_tokens", "-5"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format", "json_schema"),
        ({"temperature": "hot"}, "temperature", "temperature"),
        ({"system": [{"type": "image"}]}, "system[0]", "type image"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_its_place(
    fields: dict[str, Any], param: str, words: str
) -> None:
    failure = refusal(**fields)
    assert failure.status == 400
    assert failure.param == param
    assert words in failure.message


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({"cache_control": {"type": "ephemeral"}}, 1.0),
        ({"messages": [HELLO, {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [
                text("x", cache_control={"type": "ephemeral"})]}]}]}, 1.0),
        ({"system": [text("x" * 1000, cache_control={"type": "ephemeral", "ttl": "1h"})]}, 0.97),
        ({"system": "x"}, None),
    ],
)  # fmt: skip
def test_the_last_mark_of_the_cache_shares_the_prompt(
    fields: dict[str, Any], share: float | None
) -> None:
    found = read(**fields)[1].breakpoint
    assert (found and round(found.share, 2)) == share
    assert (found is not None and found.is_long) == ("1h" in json.dumps(fields))


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_is_these_bytes() -> None:
    done = completion(
        "Hi",
        spans=(thought("hm"), call_span("x")),
        calls=(ToolCallEvent(0, "t1", "f", '{"a":1}', True),),
    )
    events: list[Event] = [
        PrefillEvent(12, 20, 12),
        PrefillEvent(20, 20, 12),
        TokenEvent(0, (1,), "h", kind="thinking"),
        TokenEvent(1, (2,), "m", kind="thinking"),
        thought("hm"),
        TokenEvent(2, (3,), "\n\n"),
        TokenEvent(3, (4,), "Hi"),
        ToolCallEvent(0, "t1", "f", ""),
        ToolCallEvent(0, "t1", "f", '{"a":'),
        ToolCallEvent(0, "t1", "f", "1}"),
        ToolCallEvent(0, "t1", "f", "", True),
        call_span("x"),
        CompletionEvent(done),
    ]
    assert streamed(events).decode() == (
        'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_0123",'
        '"type":"message","role":"assistant","model":"demo","content":[],"stop_reason":null,'
        '"stop_sequence":null,"stop_details":null,"container":null,"usage":{"input_tokens":8,'
        '"cache_creation_input_tokens":0,"cache_read_input_tokens":12,"cache_creation":'
        '{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":0,'
        '"server_tool_use":null,"service_tier":"standard","inference_geo":null},'
        '"diagnostics":null}}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"thinking","thinking":"","signature":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"thinking_delta","thinking":"h"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"thinking_delta","thinking":"m"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        f'"delta":{{"type":"signature_delta","signature":"{SIGNED}"}}}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":1,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,'
        '"delta":{"type":"text_delta","text":"\\n\\nHi"}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":1}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":2,'
        '"content_block":{"type":"tool_use","id":"t1","name":"f","input":{}}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":2,'
        '"delta":{"type":"input_json_delta","partial_json":"{\\"a\\":"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":2,'
        '"delta":{"type":"input_json_delta","partial_json":"1}"}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":2}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use",'
        '"stop_sequence":null,"stop_details":null,"container":null},"usage":{"input_tokens":8,'
        '"cache_creation_input_tokens":0,"cache_read_input_tokens":12,"cache_creation":'
        '{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":5,'
        '"server_tool_use":null,"service_tier":"standard","inference_geo":null,'
        '"output_tokens_details":{"thinking_tokens":2}}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


def test_a_whole_answer_is_this_object() -> None:
    done = completion(
        "Hi",
        spans=(thought("hm"), call_span("x")),
        calls=(ToolCallEvent(0, "t1", "f", '{"a": 1.0}', True),),
    )
    mark = Asked(breakpoint=Breakpoint(1.0, is_long=True))
    body = MessagesAnswer(HEAD, WANTED, mark).whole([done])
    assert b'"input":{"a": 1.0}' in body  # as the model wrote it
    assert json.loads(body) == {
        "id": "msg_0123",
        "type": "message",
        "role": "assistant",
        "model": "demo",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": SIGNED},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1.0}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 8,
            "cache_read_input_tokens": 12,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 8},
            "output_tokens": 5,
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
            "output_tokens_details": {"thinking_tokens": 2},
        },
        "diagnostics": None,
    }


def test_the_cache_object_has_remarks_and_rules_where_answers_explain() -> None:
    head = Head(id="1", created=1, model="demo")
    wanted = Wanted(model="", kind="chat", inputs=([],), remarks=("odd",), rules=("sort-tools",))
    whole = json.loads(MessagesAnswer(head, wanted, Asked()).whole([completion("x")]))
    assert whole["usage"]["cache"]["note"] == "odd"
    assert whole["usage"]["cache"]["rules"] == ["sort-tools"]
    one = MessagesAnswer(head, wanted, Asked())
    (_, delta) = frames_of(one.event(0, CompletionEvent(completion("x"))))[1]
    assert delta["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "end_turn"),
        ({"finish_reason": "length", "limit": "max_tokens"}, "max_tokens"),
        ({"finish_reason": "length", "limit": "context"}, "model_context_window_exceeded"),
        ({"finish_reason": "prefilled"}, "max_tokens"),
        ({"stop_sequence": "x"}, "stop_sequence"),
        ({"calls": (ToolCallEvent(0, "i", "f", "{}", True),)}, "tool_use"),
        ({"spans": (call_span("unread"),)}, "end_turn"),
    ],
)
def test_why_a_reply_ended(fields: dict[str, Any], reason: str) -> None:
    assert stop_reason_of(completion("x", **fields)) == reason


def test_arguments_that_are_no_object_are_shown_as_they_are() -> None:
    calls = (ToolCallEvent(0, "i", "f", '{"a": ', True), ToolCallEvent(1, "j", "g", "", True))
    body = answer().whole([completion("", calls=calls)])
    inputs = [one["input"] for one in json.loads(body)["content"]]
    assert inputs == [{"INVALID_JSON": '{"a": '}, {}]


def test_a_call_without_a_value_is_text() -> None:
    done = completion("", spans=(call_span("f(1)"),))
    assert content_of(done) == [{"type": "text", "text": "f(1)"}]
    stream = streamed([call_span("f(1)"), CompletionEvent(done)])
    assert content_streamed(stream) == [{"type": "text", "text": "f(1)"}]


def test_signs_of_life_are_comments_until_the_message_has_begun() -> None:
    one = answer()
    assert one.keepalive() == b":\n\n"
    one.event(0, PrefillEvent(0, 20, 0))
    assert one.keepalive() == PING == b'event: ping\ndata: {"type":"ping"}\n\n'


def test_a_stream_that_fails_ends_with_an_error() -> None:
    (name, value) = frames_of(answer().failed(Failure(Fault.INTERNAL, "it broke")))[0]
    assert name == "error"
    assert value == {"type": "error", "error": {"type": "api_error", "message": "it broke"}}


def test_an_answer_is_diagnosed_when_the_reused_tokens_are_known() -> None:
    earlier = parts_of("demo", [HELLO], [TOOL])
    found = diagnosis(None, earlier)
    assert found.value(None) == {"cache_miss_reason": {"type": "previous_message_not_found"}}
    assert diagnosis(earlier, parts_of("demo", [HELLO, HELLO], [TOOL])).value(3) is None
    other = Diagnosis("tools_changed", 20)
    assert other.value(None) == {"cache_miss_reason": None}
    reason = {"type": "tools_changed", "cache_missed_input_tokens": 8}
    assert other.value(12) == {"cache_miss_reason": reason}
    assert Diagnosis("tools_changed").value(12) == {"cache_miss_reason": {"type": "unavailable"}}
    settings = diagnosis(earlier, parts_of("demo", [HELLO], [TOOL], {"enable_thinking": True}))
    assert settings == Diagnosis("settings")
    assert Diagnosis("settings", 20).value(20) is None
    whole = json.loads(answer(found=other).whole([completion("x")]))
    assert whole["diagnostics"] == {"cache_miss_reason": reason}


# ── laws ────────────────────────────────────────────────────────────────────────────────────────

WORDS = st.sampled_from(["", " ", "\n", "a", "b c", " ü\n"])
KINDS = st.sampled_from(["text", "thinking", "tool_call", "prompt"])
EVENTS = st.one_of(
    st.builds(PrefillEvent, st.integers(0, 9), st.just(9), st.integers(0, 9)),
    st.builds(lambda text, kind: TokenEvent(0, (1,), text, kind=kind), WORDS, KINDS),
    st.builds(
        lambda index, text, is_end: ToolCallEvent(index, f"t{index}", "f", text, is_end),
        st.integers(0, 3), st.sampled_from(["", "{", '"a":1}']), st.booleans(),
    ),
    st.builds(thought, WORDS),
    st.builds(call_span, WORDS),
)  # fmt: skip
DELTAS = {
    "text": {"text_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
}


def check_order(frames: list[tuple[str, Any]]) -> None:
    """The order of events that every client relies on."""
    names = [name for name, _ in frames]
    assert all(name == data["type"] for name, data in frames)
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    kind, index, is_signed = "", -1, False
    for name, data in frames[1:-2]:
        if name == "content_block_start":
            assert not kind
            assert data["index"] == index + 1
            kind, index, is_signed = data["content_block"]["type"], index + 1, False
        elif name == "content_block_delta":
            assert data["index"] == index
            assert data["delta"]["type"] in DELTAS[kind]
            assert not is_signed
            is_signed = data["delta"]["type"] == "signature_delta"
        else:
            assert name == "content_block_stop"
            assert data["index"] == index
            assert kind
            assert is_signed == (kind == "thinking")
            kind = ""
    assert not kind


@given(st.lists(EVENTS, max_size=30))
def test_whatever_a_reply_consists_of_its_blocks_are_in_order(events: list[Event]) -> None:
    check_order(frames_of(streamed([*events, CompletionEvent(completion("x"))])))


def content_streamed(stream: bytes) -> list[dict[str, Any]]:
    """The blocks as a client puts them together."""
    found: list[dict[str, Any]] = []
    pieces: list[str] = []
    for name, data in frames_of(stream):
        if name == "content_block_start":
            found.append(dict(data["content_block"]))
            pieces = []
        elif name == "content_block_delta":
            delta = dict(data["delta"])
            kind = delta.pop("type")
            ((key, value),) = delta.items()
            if kind == "input_json_delta":
                pieces.append(value)
            else:
                found[-1][key] += value
        elif name == "content_block_stop" and pieces:
            found[-1]["input"] = json.loads("".join(pieces))
    return found


def cut(value: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(value), *(at % (len(value) + 1) for at in places)})
    return [value[start:end] for start, end in itertools.pairwise(ends)] or [""]


OBJECTS = st.dictionaries(st.sampled_from("abc"), st.integers(-5, 5) | st.text(max_size=5))


@examples(30)
@given(st.text(max_size=8), st.text(max_size=8), st.lists(OBJECTS, max_size=3), st.data())
def test_a_stream_holds_what_a_whole_answer_does(
    thinking: str, said: str, arguments: list[dict[str, Any]], data: st.DataObject
) -> None:
    places = st.lists(st.integers(0, 60), max_size=4)
    spans: list[SpanEvent] = []
    calls: list[ToolCallEvent] = []
    events: list[Event] = []
    for kind, value in (("thinking", thinking), ("text", said)):
        pieces = cut(value, data.draw(places))
        events += [TokenEvent(0, (1,), piece, kind=kind) for piece in pieces]
        if kind == "thinking" and value:
            spans.append(thought(value))
            events.append(spans[-1])
    for index, one in enumerate(arguments):
        raw = json.dumps(one)
        calls.append(ToolCallEvent(index, f"t{index}", "f", raw, True))
        spans.append(call_span(raw))
        pieces = cut(raw, data.draw(places))
        events += [ToolCallEvent(index, f"t{index}", "f", piece) for piece in pieces]
        events += [ToolCallEvent(index, f"t{index}", "f", "", True), spans[-1]]
    done = completion(said, spans=tuple(spans), calls=tuple(calls))
    stream = streamed([*events, CompletionEvent(done)])
    whole = json.loads(answer().whole([done]))
    assert content_streamed(stream) == whole["content"]
    delta = next(one for name, one in frames_of(stream) if name == "message_delta")
    assert delta["delta"]["stop_reason"] == whole["stop_reason"]
    assert delta["usage"] == whole["usage"]


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0, 1))
def test_the_three_counts_of_a_prompt_are_its_tokens(a: int, b: int, share: float) -> None:
    n_prompt, n_cached = max(a, b), min(a, b)
    done = completion("x", usage=Usage(n_prompt, n_cached, 1))
    asked = Asked(breakpoint=Breakpoint(share))
    usage = json.loads(answer(asked).whole([done]))["usage"]
    counts = [
        usage[name]
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    ]
    assert sum(counts) == n_prompt
    assert min(counts) >= 0
