"""The Responses API as bytes: bodies, items, frames; and where responses are kept."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import CacheReport, HitKind, Timings, Usage
from native.backend import Logprobs
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)
from runtime.gateway.frame_log import FrameLog
from runtime.gateway.keys import Key
from runtime.gateway.response_answers import Follower, Foreground
from runtime.gateway.response_runs import ResponseRun
from runtime.gateway.responses_store import ResponseStore, Stored
from runtime.gateway.service import Service
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.openai_errors import error_object
from runtime.gateway.wire.openai_responses import read_response, wanted_of
from runtime.gateway.wire.responses_answer import ResponseAnswer
from runtime.gateway.wire.responses_diagnosis import Compared, compared, diagnosis
from runtime.gateway.wire.responses_items import items_from, messages_of, response_of
from runtime.gateway.wire.responses_pages import page_of
from runtime.gateway.wire.wanted import Head, Wanted

pytestmark = pytest.mark.pure

REPLY = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
PIECES = {1: b"Hi", 2: b"!"}
HEAD = Head(id=REPLY, created=1_700_000_000, model="demo", explains=False, pieces=PIECES)
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def wanted(**fields: Any) -> Wanted:
    asked = read_response(body(**fields))
    items, remarks = items_from(asked.input, REPLY)
    return wanted_of(asked, items, {}, remarks)


def answer(found: Compared | None = None, **fields: Any) -> ResponseAnswer:
    return ResponseAnswer(HEAD, read_response(body(**fields)), wanted(**fields), found)


def done(text: str = "", finish: str = "stop", cached: int = 3) -> CompletionEvent:
    usage = Usage(prompt_tokens=7, cached_tokens=cached, completion_tokens=2)
    cache = CacheReport(HitKind.COLD, "none", 0.0, None)
    return CompletionEvent(
        Completion(text, (), finish, None, None, usage, cache, Timings(0.0, 0.0, 0.0, 0.0, 0.0))
    )


def text(piece: str, **more: Any) -> TokenEvent:
    return TokenEvent(0, (1,), piece, **more)


def thought(piece: str) -> TokenEvent:
    return TokenEvent(0, (1,), piece, kind="thinking")


def span(kind: str, content: str = "", *, is_closed: bool = True) -> SpanEvent:
    return SpanEvent(kind, content.encode(), content.encode(), (), is_closed, b"")


def call(index: int, arguments: str, *, is_end: bool = False) -> ToolCallEvent:
    return ToolCallEvent(index, f"call{index}", "f", arguments, is_end)


def frames_of(one: ResponseAnswer, *events: Event) -> list[bytes]:
    frames = one.begin()
    for event in events:
        frames += one.event(event)
    return frames + one.end()


def data(frames: list[bytes]) -> list[dict[str, Any]]:
    """The objects, after a check of each frame's form."""
    found = []
    for number, frame in enumerate(frames):
        name, place, line, *rest = frame.decode().split("\n")
        value = json.loads(line.removeprefix("data: "))
        assert (name, rest) == (f"event: {value['type']}", ["", ""])
        assert value["sequence_number"] == number
        assert place == f"id: {number}"
        found.append(value)
    return found


# ── frames ──────────────────────────────────────────────────────────────────────────────────────


def ends_of_frames(stream: bytes) -> list[list[str]]:
    """Lines of each frame as openai-python sees them.

    Once a frame had an id, an empty line ends a frame even where no field came before it.
    """
    found: list[list[str]] = []
    lines: list[str] = []
    has_id = False
    for line in stream.decode().removesuffix("\n").split("\n"):
        if line.startswith(":"):
            continue
        if line:
            lines.append(line)
            has_id = has_id or line.startswith("id:")
        elif lines or has_id:
            found.append(lines)
            lines = []
    return found


def test_a_comment_between_frames_with_ids_is_no_frame() -> None:
    run = ResponseRun(
        cast(Service, None), Key("k"), HEAD, wanted(input="x"), answer(input="x"), [], None
    )
    shown = Foreground(run, lambda: None)
    stream = shown.keepalive() + shown.begin() + shown.keepalive()
    for number, event in enumerate((text("Hi"), text("!"), done("Hi!"))):
        stream += shown.event(number, event) + shown.keepalive()
    stream += shown.end()
    frames = ends_of_frames(stream)
    assert stream.count(b"\n:\n") == 4
    assert all(len(lines) == 3 for lines in frames)
    assert len(frames) == run.log.next > 8
    follower = Follower(run)
    again = follower.keepalive() + run.log.since(0) + follower.keepalive()
    assert ends_of_frames(again) == frames


def test_a_text_is_shown_by_these_frames() -> None:
    frames = frames_of(answer(), PrefillEvent(1, 7, 0), text("Hi"), text(" ⚘\n"), done("Hi ⚘\n"))
    place = f'"item_id":"msg_{REPLY}_0","output_index":0,"content_index":0'
    item = f'"id":"msg_{REPLY}_0","type":"message","status":"%s","role":"assistant","content":[%s]'
    part = '{"type":"output_text","text":"%s","annotations":[],"logprobs":[]}'
    whole = part % "Hi ⚘\\n"
    expected = [
        'output_item.added","sequence_number":2,"output_index":0,"item":{'
        + item % ("in_progress", "")
        + "}}",
        f'content_part.added","sequence_number":3,{place},"part":{part % ""}}}',
        f'output_text.delta","sequence_number":4,{place},"delta":"Hi","logprobs":[]}}',
        f'output_text.delta","sequence_number":5,{place},"delta":" ⚘\\n","logprobs":[]}}',
        f'output_text.done","sequence_number":6,{place},"text":"Hi ⚘\\n","logprobs":[]}}',
        f'content_part.done","sequence_number":7,{place},"part":{whole}}}',
        'output_item.done","sequence_number":8,"output_index":0,"item":{'
        + item % ("completed", whole)
        + "}}",
    ]
    for number, (frame, rest) in enumerate(zip(frames[2:-1], expected, strict=True), start=2):
        name = f"response.{rest.partition(chr(34))[0]}"
        assert frame.decode() == (
            f'event: {name}\nid: {number}\ndata: {{"type":"response.{rest}\n\n'
        )
    first, second, *_, last = data(frames)
    assert (first["type"], second["type"]) == ("response.created", "response.in_progress")
    assert first["response"]["status"] == second["response"]["status"] == "in_progress"
    assert (last["type"], last["response"]["status"]) == ("response.completed", "completed")
    assert last["response"]["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 4},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 9,
    }


def test_thoughts_text_and_calls_are_items_of_their_own() -> None:
    one = answer(tools=[FUNCTION])
    shown = data(
        frames_of(
            one, thought("Hm"), thought("."), span("thinking", "Hm."), text("So"),
            call(0, "{"), call(0, "}"), call(0, "", is_end=True), span("tool_call", "x"),
            call(1, "{}", is_end=True), span("tool_call", "y"), text(""), done("So"),
        )
    )  # fmt: skip
    assert [value["type"].removeprefix("response.") for value in shown] == [
        "created", "in_progress",
        "output_item.added", "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    output = one.response()["output"]
    assert [item["id"] for item in output] == [
        f"rs_{REPLY}_0", f"msg_{REPLY}_1", f"fc_{REPLY}_2", f"fc_{REPLY}_3"
    ]  # fmt: skip
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (output[2]["call_id"], output[2]["arguments"]) == ("call0", "{}")
    assert shown[-1]["response"]["output"] == output
    assert messages_of(output) == [
        {
            "role": "assistant",
            "content": "So",
            "tool_calls": [
                {"id": f"call{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                for n in range(2)
            ],
            "reasoning_content": "Hm.",
        }
    ]


@pytest.mark.parametrize(
    ("events", "asked", "last", "status", "items"),
    [
        ([text("a"), done("a", "length")], {}, "incomplete", "incomplete", ["incomplete"]),
        ([call(0, "{"), done("", "length")], {}, "incomplete", "incomplete", ["incomplete"]),
        ([text("a"), done("a", "cancelled")], {}, "incomplete", "cancelled", ["incomplete"]),
        ([done("")], {}, "completed", "completed", ["completed"]),
        ([thought("a"), done("")], {}, "completed", "completed", ["completed", "completed"]),
        ([done("", "prefilled")], {"max_output_tokens": 0}, "incomplete", "incomplete", []),
        (
            [done("", "prefilled")],
            {"prompt_cache_options": {"prewarm": True}},
            "completed",
            "completed",
            [],
        ),
    ],
)
def test_how_a_reply_ends(
    events: list[Event], asked: dict[str, Any], last: str, status: str, items: list[str]
) -> None:
    end = data(frames_of(answer(**asked), *events))[-1]
    assert end["type"] == f"response.{last}"
    assert end["response"]["status"] == status
    assert [item["status"] for item in end["response"]["output"]] == items
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    assert end["response"]["incomplete_details"] == reason


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.TOO_LONG, "context_length_exceeded"),
        (Fault.OVERLOADED, "server_is_overloaded"),
        (Fault.POISONED, "invalid_prompt"),
        (Fault.INTERNAL, "server_error"),
    ],
)
def test_a_failure_ends_a_stream_with_a_code(fault: Fault, code: str) -> None:
    one = answer()
    frames = [*one.begin(), *one.event(text("a")), *one.failed(Failure(fault, "Why"))]
    end = data(frames)[-1]
    assert end["type"] == "response.failed"
    assert end["response"]["error"] == {"code": code, "message": "Why"}
    assert end["response"]["output"][0]["status"] == "incomplete"


def test_log_probabilities_stand_with_the_text_of_their_tokens() -> None:
    found = (Logprobs(-0.5, ((1, -0.5),)),)
    more = (Logprobs(0.0, ()),)
    shown = data(
        frames_of(
            answer(top_logprobs=1),
            TokenEvent(0, (1,), "", found),
            TokenEvent(1, (2,), "Hi!", more),
            done("Hi!"),
        )
    )
    (delta,) = [one for one in shown if one["type"] == "response.output_text.delta"]
    assert [one["token"] for one in delta["logprobs"]] == ["Hi", "!"]
    assert shown[-1]["response"]["output"][0]["content"][0]["logprobs"] == delta["logprobs"]


PARTS = st.one_of(
    st.text().map(text),
    st.text().map(thought),
    st.builds(span, st.just("thinking"), st.text()),
    st.builds(span, st.just("tool_call"), st.text()),
    st.builds(call, st.integers(0, 2), st.text()),
)


@given(st.lists(PARTS, max_size=20))
def test_deltas_joined_are_the_items_and_one_is_open_at_a_time(events: list[Event]) -> None:
    one = answer(tools=[FUNCTION])
    frames = frames_of(one, *events, done())
    assert frames == frames_of(answer(tools=[FUNCTION]), *events, done()), "bytes are repeatable"
    open_id, joined, whole = None, dict[str, str](), list[dict[str, Any]]()
    for value in data(frames):
        match value["type"].split("."):
            case [_, "output_item", "added"]:
                assert open_id is None
                open_id = value["item"]["id"]
                joined[open_id] = ""
            case [_, _, "delta"]:
                assert value["item_id"] == open_id
                joined[value["item_id"]] += value["delta"]
            case [_, "output_item", "done"]:
                assert value["item"]["id"] == open_id
                assert value["output_index"] == len(whole)
                whole.append(value["item"])
                open_id = None
    assert open_id is None
    assert one.response()["output"] == whole
    for item in whole:
        found = item.get("arguments")
        assert joined[item["id"]] == (item["content"][0]["text"] if found is None else found)


# ── bodies and items ────────────────────────────────────────────────────────────────────────────


def test_a_body_is_read_as_a_chat() -> None:
    found = wanted(
        model="m", input="Hi", instructions="Be short", max_output_tokens=5, temperature=0,
        tools=[FUNCTION, {"type": "web_search"}], tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False, reasoning={"effort": "none"}, stream=True,
        text={"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True},
              "verbosity": "low"},
        include=["message.output_text.logprobs"],
    )  # fmt: skip
    assert found.inputs[0] == [
        {"role": "system", "content": "Be short"},
        {"role": "user", "content": "Hi"},
    ]
    function = {key: value for key, value in FUNCTION.items() if key != "type"}
    assert found.options == {
        "temperature": 0, "seed": -1, "max_tokens": 5, "thinking": "auto", "n_logprobs": 0,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False, "reasoning_effort": "none",
        "response_format": {"type": "json_schema",
                            "json_schema": {"name": "n", "schema": {}, "strict": True}},
    }  # fmt: skip
    assert found.remarks == ("tools: web_search: left out, this node runs none",)
    assert found.is_stream


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_an_empty_input_is_an_empty_message(empty: dict[str, Any]) -> None:
    assert wanted(**empty).inputs[0] == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True, "store": False}, "store"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "local_shell_call"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": ""}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": "c"}]},
         "input[0].arguments"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"max_output_tokens": -3}, "max_output_tokens"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        wanted(**fields)
    assert refused.value.failure.param == param
    assert refused.value.failure.status == 400


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "name": name, "call_id": name, "arguments": "{}", **more}


def result(name: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": "ok"}


def thoughts(content: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [{"type": "text", "text": content}]}


@pytest.mark.parametrize(
    ("items", "shape"),
    [
        ([said("developer", "a"), said("developer", "b"), said("user", "c")],
         ["developer a", "developer b", "user c"]),
        ([said("user", "a"), called("f"), called("g"), result("f"), result("g")],
         ["user a", "assistant - f g", "tool ok", "tool ok"]),
        ([called("f"), result("f"), called("g"), result("g")],
         ["assistant - f", "tool ok", "assistant - g", "tool ok"]),
        ([called("f", id=f"fc_{REPLY}_0"), result("f"), called("g", id=f"fc_{REPLY}_1"),
          result("g")], ["assistant - f g", "tool ok", "tool ok"]),
        ([thoughts("hm"), said("assistant", "a"), called("f")], ["assistant a f (hm)"]),
        ([thoughts("hm"), said("user", "a")], ["user a"]),
        ([said("assistant", "a"), said("assistant", "b")], ["assistant a", "assistant b"]),
        ([said("assistant", "a", type="message", id=f"msg_{REPLY}_0"),
          said("assistant", "b", type="message", id=f"msg_{REPLY}_1")], ["assistant ab"]),
        ([said("assistant", "a", type="message", id=f"msg_{REPLY}_0"),
          called("f", id=f"fc_{OTHER}_0")], ["assistant a", "assistant - f"]),
        ([{"type": "web_search_call", "id": "ws"}, said("user", "a")], ["user a"]),
    ],
)  # fmt: skip
def test_items_become_messages(items: list[dict[str, Any]], shape: list[str]) -> None:
    found, _ = items_from(items, OTHER)
    shapes = []
    for one in messages_of(found):
        words = [one["role"], one["content"] or "-"]
        words += [each["function"]["name"] for each in one.get("tool_calls", ())]
        words += [f"({one['reasoning_content']})"] if "reasoning_content" in one else []
        shapes.append(" ".join(words))
    assert shapes == shape


def test_what_is_left_out_is_remarked() -> None:
    assert items_from([{"type": "mcp_call"}], REPLY)[1] == (
        "input: mcp_call: left out, no model here reads them",
    )


def test_a_reference_is_replaced_by_the_item_that_it_names() -> None:
    (kept,), _ = items_from("Hi", REPLY)
    assert response_of(kept["id"]) == f"resp_{REPLY}"
    found, _ = items_from([{"type": "item_reference", "id": kept["id"]}], OTHER, {kept["id"]: kept})
    assert found == [kept]
    assert response_of("msg_1") is None


def test_pages_of_items() -> None:
    items = [{"id": str(number)} for number in range(5)]
    page = page_of(items, "3", 2)
    assert [one["id"] for one in page["data"]] == ["2", "1"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("2", "1", True)
    assert [one["id"] for one in page_of(items, order="asc")["data"]] == list("01234")
    with pytest.raises(Refused):
        page_of(items, "9")


# ── comparison ──────────────────────────────────────────────────────────────────────────────────


def test_a_response_is_compared_with_an_earlier_one() -> None:
    old = answer(input="Hi")
    frames_of(old, done())
    facts, messages = old.response(), [said("user", "Hi")]
    for fields, reason in (
        ({"input": "Hi"}, None),
        ({"input": "Ho"}, "input_changed"),
        ({"input": "Hi", "tools": [FUNCTION]}, "tools_changed"),
        ({"input": "Hi", "reasoning": {"effort": "low"}}, "reasoning_effort_changed"),
    ):
        new = answer(**fields).response()
        assert compared(facts, messages, new, wanted(**fields).inputs[0]).reason == reason
    missed = done(cached=3).completion
    assert diagnosis(Compared(), missed)["type"] == "comparison_response_not_found"
    assert diagnosis(Compared(True, 3, "input_changed"), missed)["type"] == "cache_hit"
    assert diagnosis(Compared(True, 4), missed)["type"] == "unavailable"
    miss = diagnosis(Compared(True, 4, "input_changed"), missed)
    assert (miss["reason"], miss["cache_missed_tokens"]) == ("input_changed", 4)


# ── what is kept ────────────────────────────────────────────────────────────────────────────────


def kept(name: str, previous: str | None = None, owner: str = "", size: int = 10) -> Stored:
    return Stored(name, owner, previous, b"x" * (size - 2), b"[]")


def test_the_store_drops_what_was_not_used_for_longest() -> None:
    store = ResponseStore(max_bytes=30)
    for one in (kept("a"), kept("b", "a"), kept("c")):
        store.keep(one)
    chain, missing = store.chain("b", "")
    assert ([one.id for one in chain], missing) == (["a", "b"], None)
    store.keep(kept("d"))
    assert store.find("c", "") is None
    store.keep(kept("e"))
    assert store.find("b", "") is None, "what continues another goes before that"
    assert store.chain("b", "") == ([], "b")
    store.keep(kept("f", size=31))
    assert store.n_bytes == 0


def test_the_responses_of_another_key_are_not_there() -> None:
    store = ResponseStore()
    store.keep(kept("a", owner="alice"))
    store.keep(kept("b", "a", owner="bob"))
    assert store.find("a", "bob") is None
    assert not store.forget("a", "bob")
    assert store.chain("b", "bob") == ([], "a")
    assert store.forget("a", "alice")
    assert not store.forget("a", "alice")


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=30), st.integers(1, 40))
def test_a_log_keeps_the_last_frames(frames: list[bytes], most: int) -> None:
    log = FrameLog(most)
    for frame in frames:
        log.add([frame])
    assert log.next == len(frames)
    assert log.n_bytes <= most or log.next - log.first == 1
    assert log.since(log.first) == b"".join(frames[log.first :])
    assert log.since(log.next) == log.since(log.next + 5) == b""


def test_a_failure_has_a_code_of_its_own() -> None:
    failure = Failure(Fault.INVALID, "Why", code="previous_response_not_found")
    assert error_object(failure)["error"]["code"] == "previous_response_not_found"
