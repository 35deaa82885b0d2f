"""The frames of OpenAI's chats, byte for byte, from given events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages.completion import CacheReport, HitKind, Timings, Usage
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)
from runtime.gateway.wire.failure import Failure, Fault
from runtime.gateway.wire.openai_chat import ChatAnswer, read_chat
from runtime.gateway.wire.wanted import Head

pytestmark = pytest.mark.pure

HEAD = Head(id="0" * 32, created=1_764_547_200, model="demo", explains=False)
BASE = (
    b'data: {"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion.chunk",'
    b'"created":1764547200,"model":"demo","system_fingerprint":"llama-actors",'
)
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


def answer(**more: Any) -> ChatAnswer:
    wanted, asked = read_chat(json.dumps({**ASK, **more}).encode(), {})
    return ChatAnswer(HEAD, asked, wanted)


def done(text: str = "", **more: Any) -> CompletionEvent:
    return CompletionEvent(
        Completion(
            text=text,
            tokens=tuple(range(more.pop("n", 3))),
            finish_reason=more.pop("finish_reason", "stop"),
            finish_key=None,
            stop_sequence=None,
            usage=Usage(10, 4, 3),
            cache=CacheReport(HitKind.PARTIAL, "ram", 1.5, None),
            timings=Timings(0.5, 20.0, 12.0, 40.0, 100.0),
            **more,
        )
    )


def choices(part: bytes) -> bytes:
    return BASE + b'"choices":[{"index":0,' + part + b"}]}\n\n"


def test_a_short_stream_byte_for_byte() -> None:
    one = answer(stream_options={"include_usage": True})
    assert one.begin() == choices(
        b'"delta":{"role":"assistant","content":null},"finish_reason":null'
    )
    assert one.event(0, PrefillEvent(4, 10, 4)) == b""
    assert one.event(0, TokenEvent(0, (1,), "Ünï 🦊\n")) == choices(
        '"delta":{"content":"Ünï 🦊\\n"},"finish_reason":null'.encode()
    )
    assert one.event(0, TokenEvent(1, (2,), "hm", kind="thinking")) == choices(
        b'"delta":{"reasoning_content":"hm"},"finish_reason":null'
    )
    assert one.event(0, TokenEvent(2, (3,), "")) == b"", "half a character shows nothing"
    end = one.event(0, done("Ünï 🦊\n"))
    assert end == BASE + (
        b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"timings":{"cache_n":4,'
        b'"prompt_n":6,"prompt_ms":12.0,"prompt_per_token_ms":2.0,"prompt_per_second":500.0,'
        b'"predicted_n":3,"predicted_ms":40.0,"predicted_per_token_ms":20.0,'
        b'"predicted_per_second":50.0}}\n\n'
    )
    assert one.end() == BASE + (
        b'"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13,'
        b'"prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":6,"audio_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":0,"accepted_prediction_tokens":0,'
        b'"rejected_prediction_tokens":0,"audio_tokens":0}},"timings":{"cache_n":4,"prompt_n":6,'
        b'"prompt_ms":12.0,"prompt_per_token_ms":2.0,"prompt_per_second":500.0,"predicted_n":3,'
        b'"predicted_ms":40.0,"predicted_per_token_ms":20.0,"predicted_per_second":50.0}}\n\n'
        b"data: [DONE]\n\n"
    )
    assert one.keepalive() == b":\n\n"


def test_a_tool_call_has_its_name_once_and_then_pieces() -> None:
    one = answer(tools=[{"type": "function", "function": {"name": "f"}}])
    one.begin()
    first = one.event(0, ToolCallEvent(0, "id1", "f", ""))
    assert first == choices(
        b'"delta":{"tool_calls":[{"index":0,"id":"id1","type":"function","function":{"name":"f",'
        b'"arguments":""}}]},"finish_reason":null'
    )
    more = one.event(0, ToolCallEvent(0, "id1", "f", '{"a":'))
    assert more == choices(
        b'"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":"}}]},'
        b'"finish_reason":null'
    )
    assert one.event(0, ToolCallEvent(0, "id1", "f", "", is_end=True)) == b""
    both = one.event(0, ToolCallEvent(1, "id2", "g", "{}", is_end=True))
    assert both.count(b"data: ") == 2
    assert b'"index":1,"id":"id2"' in both
    span = SpanEvent("tool_call", b"<f>", b"f", (1,), is_closed=True, signature=b"")
    assert one.event(0, span) == b""
    calls = (ToolCallEvent(0, "id1", "f", "{}", is_end=True),)
    assert b'"finish_reason":"tool_calls"' in one.event(0, done(spans=(span,), calls=calls))


def test_a_call_that_markers_alone_separate_is_shown_as_text() -> None:
    one = answer()
    one.begin()
    span = SpanEvent("tool_call", b"[x]", b"x", (1,), is_closed=True, signature=b"")
    assert one.event(0, span) == choices(b'"delta":{"content":"x"},"finish_reason":null')
    whole = json.loads(one.whole([done("", spans=(span,)).completion]))
    assert whole["choices"][0]["message"]["content"] == "x"


def test_a_failure_in_a_stream_is_a_frame_and_no_end() -> None:
    frame = answer().failed(Failure(Fault.OVERLOADED, "too many"))
    assert frame == (
        b'data: {"error":{"message":"too many","type":"overloaded_error","param":null,'
        b'"code":"server_is_overloaded"}}\n\n'
    )


def test_progress_only_where_it_is_asked_for() -> None:
    shown = answer(return_progress=True).event(0, PrefillEvent(6, 10, 4))
    assert shown == b"".join(
        BASE + b'"choices":[],"prompt_progress":{"total":10,"cache":4,"processed":%d}}\n\n' % n
        for n in (4, 6)
    )


Pieces = st.lists(st.tuples(st.sampled_from(["text", "thinking"]), st.text(max_size=8)))


@given(Pieces)
def test_a_stream_joined_is_the_whole_answer(pieces: list[tuple[str, str]]) -> None:
    one = answer()
    frames = one.begin()
    events: list[Event] = [
        TokenEvent(at, (at,), text, kind=kind) for at, (kind, text) in enumerate(pieces)
    ]
    text = "".join(text for kind, text in pieces if kind == "text")
    for event in [*events, done(text)]:
        frames += one.event(0, event)
    frames += one.end()
    assert frames.endswith(b"data: [DONE]\n\n")
    deltas = [
        json.loads(frame.removeprefix("data: "))["choices"][0]["delta"]
        for frame in frames.decode().split("\n\n")[:-2]
    ]
    assert "".join(delta.get("content") or "" for delta in deltas) == text
    thought = "".join(text for kind, text in pieces if kind == "thinking")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == thought


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": -1}, {"max_tokens": None}),
        ({"seed": -9007199254740991}, {"seed": 2**64 - 9007199254740991}),
        ({"seed": None}, {"seed": -1}),
        ({"stop": ["", "a"]}, {"stop": ["a"]}),
        ({"tools": [], "tool_choice": "auto"}, {"tools": None, "tool_choice": None}),
        ({"logprobs": True}, {"n_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"n_logprobs": 3}),
        ({"grammar": ""}, {"grammar": None}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"unknown": 1, "user": "x", "store": True}, {}),
    ],
)
def test_what_a_body_asks_for(body: dict[str, Any], options: dict[str, Any]) -> None:
    wanted, _ = read_chat(json.dumps({**ASK, **body}).encode(), {})
    for name, value in options.items():
        assert wanted.options.get(name) == value


def test_defaults_stand_only_where_a_body_is_silent() -> None:
    defaults = {"temperature": 0.8, "top_k": 40.0, "min_p": 0.05}
    wanted, _ = read_chat(json.dumps(ASK).encode(), defaults)
    assert (wanted.options["temperature"], wanted.options["top_k"]) == (0.8, 40)
    wanted, _ = read_chat(json.dumps({**ASK, "temperature": 0.1}).encode(), defaults)
    assert (wanted.options["temperature"], wanted.options["min_p"]) == (0.1, 0.05)
    wanted, _ = read_chat(json.dumps({**ASK, "temperature": 0}).encode(), defaults)
    assert "top_k" not in wanted.options


def test_functions_are_read_as_tools() -> None:
    body = {"functions": [{"name": "f"}], "function_call": {"name": "f"}}
    wanted, _ = read_chat(json.dumps({**ASK, **body}).encode(), {})
    assert wanted.options["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert wanted.options["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert wanted.remarks


# ── times ───────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """Half a second later at each look."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


def timed_frames(**more: Any) -> list[dict[str, Any]]:
    wanted, asked = read_chat(json.dumps({**ASK, **more}).encode(), {})
    made = ChatAnswer(HEAD, asked, wanted, clock=Clock())
    events = [PrefillEvent(6, 10, 4), PrefillEvent(9, 10, 4), TokenEvent(0, (1, 2), "Hi"),
              TokenEvent(2, (3,), "!")]  # fmt: skip
    data = made.begin() + b"".join(made.event(0, one) for one in events)
    return [json.loads(one.removeprefix(b"data: ")) for one in data.split(b"\n\n")[:-1]]


def test_times_are_shown_where_they_are_asked_for() -> None:
    role, *rest = timed_frames(timings_per_token=True, return_progress=True)
    assert "timings" not in role
    figures = [
        (one["timings"]["prompt_n"], one["timings"]["prompt_ms"], one["timings"]["predicted_n"])
        for one in rest
    ]
    assert figures == [
        (0, 0.0, 0), (2, 0.0, 0), (5, 500.0, 0), (6, 1000.0, 2), (6, 1000.0, 2), (6, 1000.0, 3)
    ]  # fmt: skip
    last = rest[-1]["timings"]
    assert (last["cache_n"], last["predicted_ms"], last["predicted_per_second"]) == (4, 500.0, 4.0)
    progress = [one["prompt_progress"] for one in rest if "prompt_progress" in one]
    assert [one["time_ms"] for one in progress] == [0.0, 0.0, 500.0, 1000.0]


def test_times_are_not_shown_otherwise() -> None:
    assert not any("timings" in one for one in timed_frames())
    progress = timed_frames(return_progress=True)[1:5]
    assert all("time_ms" in one["prompt_progress"] for one in progress)
    assert not any("timings" in one for one in progress)
