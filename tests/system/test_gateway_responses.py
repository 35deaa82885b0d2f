"""OpenAI's Responses API over real HTTP, on the embedded model."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateways import Answered, Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "/v1/responses"
STORY = {"input": "Tell a story about a fox.", "max_output_tokens": 12, "temperature": 0}
LONG = {**STORY, "max_output_tokens": 3000, "ignore_eos": True}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("responses")
    with LeakCheck() as leaks, gateway_node(folder, keepalive_s=5.0) as found:
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


def text_of(response: dict[str, Any]) -> str:
    (message,) = response["output"]
    return str(message["content"][0]["text"])


def n_running(gateway: Gateway) -> int:
    (model,) = gateway.node.models()
    return model.running + model.waiting + model.aside


def is_idle(gateway: Gateway) -> bool:
    return n_running(gateway) == 0


def events(answered: Answered) -> list[str]:
    return [one["type"].removeprefix("response.") for one in answered.frames]


def test_a_stream_shows_what_the_whole_answer_holds(gateway: Gateway) -> None:
    whole = gateway.post(PATH, STORY)
    assert (whole.status, whole.headers["content-type"]) == (200, "application/json")
    stream = gateway.post("/responses", {**STORY, "stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert events(stream)[:4] == [
        "created", "in_progress", "output_item.added", "content_part.added"
    ]  # fmt: skip
    assert events(stream)[-4:] == [
        "output_text.done", "content_part.done", "output_item.done", "incomplete"
    ]  # fmt: skip
    last = stream.frames[-1]["response"]
    deltas = [one["delta"] for one in stream.frames if one["type"].endswith("text.delta")]
    assert "".join(deltas) == text_of(last) == text_of(whole.json)
    details = last["usage"]["input_tokens_details"]
    assert details["cached_tokens"] == last["usage"]["input_tokens"]
    assert details["cache"]["hit"] == "exact"
    assert gateway.get(f"{PATH}/{last['id']}").json == last
    again = gateway.get(f"{PATH}/{last['id']}?stream=true&starting_after=3")
    assert again.frames == stream.frames[4:]
    place = {"last-event-id": re.findall(rb"^id: (\d+)$", stream.body, re.M)[3].decode()}
    assert gateway.get(f"{PATH}/{last['id']}?stream=true", **place).body == again.body


def test_both_ways_to_continue_read_nothing_again(gateway: Gateway) -> None:
    asked = {"temperature": 0, "tools": [WEATHER, {"type": "web_search"}], "max_output_tokens": 100}
    question = {"role": "user", "content": "What is the weather in Paris?"}
    first = gateway.post(PATH, {**asked, "input": [question], "tool_choice": "required"}).json
    (call,) = first["output"]
    assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"city": "Paris"})
    n_first = first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "clear"}
    kept = gateway.post(PATH, {**asked, "input": [result], "previous_response_id": first["id"]})
    sent = gateway.post(PATH, {**asked, "input": [question, call, result], "store": False})
    named = {"type": "item_reference", "id": call["id"]}
    by_name = gateway.post(PATH, {**asked, "input": [question, named, result]})
    for one in (kept.json, sent.json, by_name.json):
        usage = one["usage"]
        assert usage["input_tokens_details"]["cached_tokens"] >= n_first
        assert usage["input_tokens"] == kept.json["usage"]["input_tokens"]
        assert text_of(one) == text_of(kept.json)
    third = {**asked, "input": "And in Rome?", "previous_response_id": kept.json["id"]}
    usage = gateway.post(PATH, third).json["usage"]
    before = kept.json["usage"]
    n_before = before["input_tokens"] + before["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] >= n_before
    counted = gateway.post(f"{PATH}/input_tokens", {**asked, "input": [question]}).json
    assert counted == {
        "object": "response.input_tokens",
        "input_tokens": first["usage"]["input_tokens"],
    }
    longer = gateway.post(f"{PATH}/input_tokens", third).json
    assert longer["input_tokens"] > before["input_tokens"]


def test_a_response_that_was_not_stored_cannot_be_continued(gateway: Gateway) -> None:
    found = gateway.post(PATH, {**STORY, "store": False}).json
    for name in (found["id"], "resp_0"):
        answer = gateway.post(PATH, {**STORY, "previous_response_id": name})
        assert answer.status == 400
        assert answer.json["error"]["code"] == "previous_response_not_found"
        missing = gateway.get(f"{PATH}/{name}")
        assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")


def test_items_are_listed_and_a_response_is_deleted(gateway: Gateway) -> None:
    inputs = [{"role": "user", "content": text} for text in ("One", "Two", "Three")]
    name = gateway.post(PATH, {**STORY, "input": inputs}).json["id"]
    page = gateway.get(f"{PATH}/{name}/input_items?limit=2").json
    assert [one["content"][0]["text"] for one in page["data"]] == ["Three", "Two"]
    rest = gateway.get(f"{PATH}/{name}/input_items?after={page['last_id']}").json
    assert [one["content"][0]["text"] for one in rest["data"]] == ["One"]
    assert not rest["has_more"]
    assert gateway.call("DELETE", f"{PATH}/{name}").json["deleted"]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        assert gateway.call(method, f"{PATH}/{name}{path}").status == 404


def test_a_background_response_goes_on_by_itself(gateway: Gateway) -> None:
    begun = gateway.post(PATH, {**STORY, "background": True, "max_output_tokens": 60}).json
    assert begun["status"] == "queued"
    shown = gateway.get(f"{PATH}/{begun['id']}?stream=true&starting_after=1")
    assert shown.frames[0]["sequence_number"] == 2
    last = shown.frames[-1]["response"]
    assert last["status"] == "incomplete"
    assert gateway.get(f"{PATH}/{begun['id']}").json == last
    assert gateway.post(f"{PATH}/{begun['id']}/cancel", {}).json["status"] == "incomplete"


def first_delta(gateway: Gateway, asked: dict[str, Any]) -> str:
    """Begin a stream, read it up to its first text, and leave; the id of the response."""
    with contextlib.closing(gateway.connect()) as connection:
        connection.request("POST", PATH, json.dumps(asked).encode())
        answer = connection.getresponse()
        name = ""
        for line in answer:
            if line.startswith(b"data: "):
                value = json.loads(line.removeprefix(b"data: "))
                name = value["response"]["id"] if "response" in value else name
                if value["type"].endswith(".delta"):
                    return name
    raise AssertionError("no text came")


def test_a_client_that_leaves_ends_its_response(gateway: Gateway) -> None:
    name = first_delta(gateway, {**LONG, "stream": True})
    eventually(lambda: is_idle(gateway), what="the request is cancelled")
    assert gateway.get(f"{PATH}/{name}").status == 404


def test_a_background_stream_goes_on_until_it_is_cancelled(gateway: Gateway) -> None:
    name = first_delta(gateway, {**LONG, "stream": True, "background": True})
    assert gateway.get(f"{PATH}/{name}").json["status"] == "in_progress"
    assert gateway.post(PATH, {**STORY, "previous_response_id": name}).status == 409
    assert n_running(gateway) == 1
    ended = gateway.post(f"{PATH}/{name}/cancel", {}).json
    assert (ended["status"], ended["output"][0]["status"]) == ("cancelled", "incomplete")
    eventually(lambda: is_idle(gateway))
    shown = gateway.get(f"{PATH}/{name}?stream=true")
    assert shown.frames[-1]["response"]["status"] == "cancelled"
    assert gateway.get(f"{PATH}/{name}").json == ended
    whole = gateway.post(PATH, STORY).json
    assert gateway.post(f"{PATH}/{whole['id']}/cancel", {}).status == 400


def test_a_prompt_is_read_before_it_is_used(gateway: Gateway) -> None:
    asked = {"input": "An owl has a plan that no fox sees.", "temperature": 0}
    warm = gateway.post(PATH, {**asked, "prompt_cache_options": {"prewarm": True}}).json
    assert (warm["status"], warm["output"]) == ("completed", [])
    compare = {"prompt_cache_options": {"comparison_response_id": warm["id"]}}
    used = gateway.post(PATH, {**asked, **compare, "max_output_tokens": 2}).json
    assert used["prompt_cache_diagnostics"] == {"type": "cache_hit"}
    other = gateway.post(PATH, {**STORY, **compare}).json["prompt_cache_diagnostics"]
    assert (other["type"], other["reason"]) == ("cache_miss", "input_changed")


@pytest.mark.parametrize("body", [{}, {"input": "", "max_output_tokens": 1}])
def test_probes_are_answered(gateway: Gateway, body: dict[str, Any]) -> None:
    assert gateway.post(PATH, body).status == 200
    assert gateway.post(f"{PATH}/input_tokens", body).json["input_tokens"] > 0


@pytest.mark.parametrize("way", [{}, {"stream": True}])
def test_what_cannot_be_answered_has_a_status(gateway: Gateway, way: dict[str, Any]) -> None:
    long = gateway.post(PATH, {**STORY, "input": "A fox and an owl. " * 3000, **way})
    assert (long.status, long.json["error"]["code"]) == (400, "context_length_exceeded")
    wrong = gateway.post(PATH, {**STORY, "temperature": -1, **way})
    assert (wrong.status, wrong.json["error"]["param"]) == (400, "temperature")
    assert is_idle(gateway)


def test_a_background_response_that_fails_holds_the_reason(gateway: Gateway) -> None:
    asked = {**STORY, "input": "A fox and an owl. " * 3000, "background": True}
    name = gateway.post(PATH, asked).json["id"]
    frames = gateway.get(f"{PATH}/{name}?stream=true").frames
    assert [one["type"] for one in frames][-1] == "response.failed"
    found = gateway.get(f"{PATH}/{name}").json
    assert (found["status"], found["error"]["code"]) == ("failed", "context_length_exceeded")
