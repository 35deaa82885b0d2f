"""Anthropic's messages over HTTP, through a whole node with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from runtime.embedded import path as embedded
from tests.support.gateways import Gateway, frames_of, gateway_node
from tests.support.runtime_nodes import inflight_status, one_thread
from tests.support.tool_template import THINKING_TEMPLATE, WEATHER
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

FUNCTION = WEATHER["function"]
TOOL = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}
ASKED = {"role": "user", "content": "What is the weather in Oslo?"}
BASE: dict[str, Any] = {
    "model": "claude-mine", "max_tokens": 64, "temperature": 0, "messages": [ASKED],
}  # fmt: skip
CALLING = {
    **BASE,
    "system": [{"type": "text", "text": "Answer in one sentence."}],
    "tools": [TOOL],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
}
PATH = "/v1/messages?beta=true"
COUNT = "/v1/messages/count_tokens"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    thinker = replace(one_thread(embedded(), n_ctx=1024), chat_template=THINKING_TEMPLATE)
    models = {"demo": one_thread(embedded(), n_ctx=4096), "thinker": thinker}
    home = tmp_path_factory.mktemp("gateway")
    with gateway_node(home, models, aliases=(("claude-*", "demo"),)) as one:
        one.headers = {"anthropic-version": "2099-01-01", "x-api-key": "none"}
        eventually(
            lambda: {"demo", "thinker"} == {m.id for m in one.node.models() if m.state == "up"},
            what="both models are up",
        )
        yield one


def message_of(stream: bytes) -> dict[str, Any]:
    """A streamed message as a client puts it together."""
    message: dict[str, Any] = {}
    pieces = ""
    for name, data in frames_of(stream):
        if name == "message_start":
            message = data["message"]
        elif name == "content_block_start":
            message["content"].append(data["content_block"])
            pieces = ""
        elif name == "content_block_delta":
            delta = data["delta"]
            pieces += delta.get("partial_json", "")
            for key in ("text", "thinking", "signature"):
                if key in delta:
                    message["content"][-1][key] += delta[key]
        elif name == "content_block_stop" and message["content"][-1]["type"] == "tool_use":
            message["content"][-1]["input"] = json.loads(pieces or "{}")
        elif name == "message_delta":
            message |= data["delta"]
            message["usage"] |= data["usage"]
    return message


def sent(gateway: Gateway, body: dict[str, Any], *, is_stream: bool) -> dict[str, Any]:
    answer = gateway.post(PATH, {**body, "stream": is_stream})
    assert answer.status == 200, answer.body
    if not is_stream:
        found: dict[str, Any] = answer.json
        return found
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    names = [name for name, _ in frames_of(answer.body)]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    return message_of(answer.body)


def n_prompt(message: dict[str, Any]) -> int:
    usage = message["usage"]
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(usage[name] for name in names)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_conversation_with_a_tool_only_grows(gateway: Gateway, *, is_stream: bool) -> None:
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.a01;"}
    rule = {"type": "text", "text": f"Rule {int(is_stream)}: answer in one sentence."}
    body = {**CALLING, "system": [billing, rule]}
    first = sent(gateway, body, is_stream=is_stream)
    (call,) = first["content"]
    assert (call["type"], call["name"], call["input"]["town"]) == ("tool_use", "weather", "Oslo")
    assert first["stop_reason"] == "tool_use"
    assert first["model"] == "demo"
    assert first["usage"]["cache"]["rules"] == ["claude-billing"]
    assert gateway.post(COUNT, body).json == {"input_tokens": n_prompt(first)}
    mark = {"type": "ephemeral"}
    asked = {
        "role": "user",
        "content": [{"type": "text", "text": ASKED["content"], "cache_control": mark}],
    }
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "rain"}
    history = [
        asked,
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [{**result, "cache_control": mark}]},
    ]
    second = sent(
        gateway,
        {**body, "messages": history, "diagnostics": {"previous_message_id": first["id"]}},
        is_stream=is_stream,
    )
    assert [one["type"] for one in second["content"]] == ["text"]
    assert second["stop_reason"] == "end_turn"
    usage = second["usage"]
    # All of the first prompt, and the reply as it was generated.
    assert usage["cache_read_input_tokens"] >= n_prompt(first) + first["usage"]["output_tokens"]
    assert usage["input_tokens"] == 0
    assert usage["cache_creation_input_tokens"] > 0
    assert second["diagnostics"] is None


def test_another_list_of_tools_is_the_reason_for_a_miss(gateway: Gateway) -> None:
    first = sent(gateway, CALLING, is_stream=False)
    fields = {"diagnostics": {"previous_message_id": first["id"]}}
    others = [{**TOOL, "description": "Another one"}]
    second = sent(gateway, {**CALLING, **fields, "tools": others}, is_stream=False)
    reason = second["diagnostics"]["cache_miss_reason"]
    assert reason["type"] == "tools_changed"
    n_missed = n_prompt(first) - second["usage"]["cache_read_input_tokens"]
    assert reason["cache_missed_input_tokens"] == n_missed > 0
    unknown = {"diagnostics": {"previous_message_id": "msg_0"}}
    third = sent(gateway, {**BASE, **unknown}, is_stream=False)
    reason = third["diagnostics"]["cache_miss_reason"]
    assert reason == {"type": "previous_message_not_found"}


@pytest.mark.parametrize("is_stream", [False, True])
def test_thoughts_come_apart_signed_and_come_back(gateway: Gateway, *, is_stream: bool) -> None:
    body = {
        **BASE, "model": "thinker", "max_tokens": 40,
        "thinking": {"type": "enabled", "budget_tokens": 8},
    }  # fmt: skip
    first = sent(gateway, body, is_stream=is_stream)
    thinking = first["content"][0]
    assert [one["type"] for one in first["content"]] == ["thinking", "text"]
    assert thinking["thinking"].strip()
    assert thinking["signature"]
    assert 0 < first["usage"]["output_tokens_details"]["thinking_tokens"] < 20

    def back(*blocks: dict[str, Any]) -> Any:
        history = [ASKED, {"role": "assistant", "content": [*blocks]}, ASKED]
        message = sent(gateway, {**body, "messages": history}, is_stream=False)
        return message["usage"]["cache"]["note"]

    assert back(*first["content"]) is None
    forged = {**thinking, "thinking": "Something else"}
    assert "signed by another" in back(forged, first["content"][1])


def test_a_model_that_cannot_think_is_asked_all_the_same(gateway: Gateway) -> None:
    body = {
        **BASE, "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "high"},
    }  # fmt: skip
    message = sent(gateway, body, is_stream=False)
    assert message["content"][0]["type"] == "text"
    assert "enable_thinking=True has no effect" in message["usage"]["cache"]["note"]
    assert gateway.post(COUNT, body).json == {"input_tokens": n_prompt(message)}


def test_the_end_of_a_reply_has_its_reason(gateway: Gateway) -> None:
    short = sent(gateway, {**BASE, "max_tokens": 3}, is_stream=True)
    assert short["stop_reason"] == "max_tokens"
    text = sent(gateway, BASE, is_stream=False)["content"][0]["text"]
    word = text.split()[2]
    stopped = sent(gateway, {**BASE, "stop_sequences": [word]}, is_stream=True)
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", word)
    assert stopped["content"][0]["text"] == text.partition(word)[0]
    begun = {"role": "assistant", "content": text.partition(word)[0].strip()}
    more = sent(gateway, {**BASE, "messages": [ASKED, begun]}, is_stream=False)
    assert not more["content"][0]["text"].startswith(begun["content"])


def test_every_field_that_clients_send_is_taken(gateway: Gateway) -> None:
    body = {
        "model": "claude-mine", "max_tokens": 8, "cache_control": {"type": "ephemeral"},
        "messages": [ASKED, {"role": "system", "content": "Be brief."}],
        "container": {"id": "c", "skills": []}, "diagnostics": {"previous_message_id": None},
        "inference_geo": "x", "metadata": {"user_id": "u"}, "service_tier": "auto",
        "output_config": {
            "effort": "low", "format": {"type": "json_schema", "schema": {"foo": "bar"}},
        },
        "stop_sequences": ["string"], "thinking": {"type": "adaptive", "display": "summarized"},
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "tools": [{
            "name": "name", "type": "custom", "description": "d", "strict": True,
            "input_schema": {"type": "object", "properties": {"a": "b"}, "required": ["a"]},
            "cache_control": {"type": "ephemeral"}, "input_examples": [{"foo": "bar"}],
        }],
        "temperature": 1, "top_k": 5, "top_p": 0.7, "context_management": {"edits": []},
    }  # fmt: skip
    message = sent(gateway, body, is_stream=False)
    assert message["usage"]["input_tokens"] == 0
    assert message["diagnostics"] is None


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({**BASE, "messages": []}, 400, "invalid_request_error", "messages"),
        (b"{", 400, "invalid_request_error", "no JSON"),
        ({**BASE, "model": "none"}, 404, "not_found_error", "no model 'none'"),
        ({**BASE, "tools": [{"type": "web_search_20260209", "name": "web_search"}]}, 400,
         "invalid_request_error", "web_search_20260209"),
        ({**BASE, "messages": [{"role": "user", "content": "word " * 6000}]}, 400,
         "invalid_request_error", "4096"),
    ],
)  # fmt: skip
def test_errors_are_in_anthropics_words(
    gateway: Gateway, body: object, status: int, kind: str, words: str
) -> None:
    answer = gateway.post("/messages", body)
    assert answer.status == status, answer.body
    found = answer.json
    assert found["type"] == "error"
    assert found["error"]["type"] == kind
    assert words in found["error"]["message"]
    assert found["request_id"] == answer.headers["request-id"]


def test_many_counts_at_once_are_all_answered(gateway: Gateway) -> None:
    from concurrent.futures import ThreadPoolExecutor

    bodies = [{**BASE, "system": f"Number {number % 5}."} for number in range(40)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda body: gateway.post(COUNT, body), bodies))
    counts = [answer.json["input_tokens"] for answer in answers]
    assert counts == counts[:5] * 8


def test_a_client_that_leaves_cancels_its_request(gateway: Gateway) -> None:
    body = {**BASE, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with gateway.opened("POST", PATH, body) as response:
        assert response.readline() == b"event: message_start\n"
        assert inflight_status(gateway.node)["in_flight"] == 1
    eventually(
        lambda: inflight_status(gateway.node)["in_flight"] == 0, what="the request is cancelled"
    )


def test_the_address_answers_before_anything_is_asked(gateway: Gateway) -> None:
    assert gateway.ask("HEAD", "/").status == 200
