"""``timeout_s`` in every API: text that was sent is a reply, and nothing is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateways import Answered, Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

TALK = [{"role": "user", "content": "Tell a story about a fox."}]
LONG: dict[str, Any] = {"ignore_eos": True, "temperature": 0.9, "seed": 11, "timeout_s": 1.5}
N = 3900
"""Tokens that take longer than the limit, and fit the context."""
APIS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": TALK, "max_tokens": N}),
    "completions": ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": N}),
    "responses": ("/v1/responses", {"input": TALK, "max_output_tokens": N}),
    "anthropic": ("/v1/messages", {"messages": TALK, "max_tokens": N}),
    "ollama": ("/api/chat", {"messages": TALK, "options": {"num_predict": N, **LONG}}),
    "native": ("/completion", {"prompt": "Once upon a time", "n_predict": N}),
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("limits")
    with LeakCheck() as leaks, gateway_node(folder, keepalive_s=0.2) as found:
        leaks.watch(found.node)
        for path, body in APIS.values():  # so that the first token comes in time
            warm = {name: 1 if value == N else value for name, value in body.items()}
            if "options" in body:
                warm["options"] = {"num_predict": 1}
            assert found.post(path, {**warm, "stream": False}).status == 200
        yield found
        leaks.watch(found.node)


def finish(api: str, answered: Answered) -> tuple[str, int, str]:
    """The text of a stream, its number of tokens, and why it ended."""
    if api == "ollama":
        *some, last = answered.lines
        text = "".join(one["message"]["content"] for one in some)
        return text, last["eval_count"], last["done_reason"]
    frames = [one for one in answered.frames if one != "[DONE]"]
    match api:
        case "chat":
            *some, last, usage = (one for one in frames if "choices" in one)
            text = "".join(one["choices"][0]["delta"].get("content") or "" for one in some)
            reason = last["choices"][0]["finish_reason"]
            return text, usage["usage"]["completion_tokens"], reason
        case "completions":
            *some, last, usage = frames
            text = "".join(one["choices"][0]["text"] for one in some)
            reason = last["choices"][0]["finish_reason"]
            return text, usage["usage"]["completion_tokens"], reason
        case "responses":
            text = "".join(o["delta"] for o in frames if o["type"] == "response.output_text.delta")
            last = frames[-1]["response"]
            assert frames[-1]["type"] == "response.incomplete"
            reason = last["incomplete_details"]["reason"]
            return text, last["usage"]["output_tokens"], reason
        case "anthropic":
            deltas = [one["delta"] for one in frames if one["type"] == "content_block_delta"]
            assert frames[-1]["type"] == "message_stop"
            last = frames[-2]
            text = "".join(one["text"] for one in deltas)
            return text, last["usage"]["output_tokens"], last["delta"]["stop_reason"]
        case _:
            *some, last = frames
            text = "".join(one["content"] for one in some)
            return text, last["tokens_predicted"], last["stop_type"]


REASONS = {
    "chat": "length",
    "completions": "length",
    "responses": "max_output_tokens",
    "anthropic": "max_tokens",
    "ollama": "length",
    "native": "limit",
}


def asked(api: str, **more: Any) -> tuple[str, dict[str, Any]]:
    path, body = APIS[api]
    usage = {"stream_options": {"include_usage": True}} if path.endswith("completions") else {}
    own = {} if api == "ollama" else LONG
    return path, {**own, **usage, **body, **more}


@pytest.mark.parametrize("api", APIS)
def test_a_stream_ends_as_one_that_has_reached_its_limit(gateway: Gateway, api: str) -> None:
    path, body = asked(api, stream=True)
    answered = gateway.post(path, body)  # raises where the connection breaks
    assert answered.status == 200
    text, n_tokens, reason = finish(api, answered)
    assert reason == REASONS[api]
    assert len(text) > 20
    assert 10 < n_tokens < N
    assert b"the reply was ended by timeout_s = 1.5" in answered.body
    eventually(lambda: not gateway.node.client.queue_depth(), what="nothing runs")


@pytest.mark.parametrize("api", APIS)
def test_one_object_is_refused_when_it_is_late(gateway: Gateway, api: str) -> None:
    path, body = asked(api, stream=False)
    answered = gateway.post(path, body)
    assert answered.status == 504, answered.body
    assert b"timeout_s" in answered.body
    if api in ("chat", "responses"):
        assert answered.json["error"]["code"] == "deadline_exceeded"
    if api == "anthropic":
        assert answered.json["error"]["type"] == "timeout_error"
    eventually(lambda: not gateway.node.client.queue_depth(), what="nothing runs")


def test_a_stream_that_has_shown_nothing_is_refused(gateway: Gateway) -> None:
    words = "A fox met an owl and asked for the way. " * 60
    body = {"messages": [{"role": "user", "content": words}], "timeout_s": 0.001, "stream": True}
    answered = gateway.post("/v1/chat/completions", body)
    assert (answered.status, answered.json["error"]["code"]) == (504, "deadline_exceeded")
    eventually(lambda: not gateway.node.client.queue_depth(), what="nothing runs")


def test_several_replies_have_ends_of_their_own(gateway: Gateway) -> None:
    path, body = asked("chat", stream=True, n=2)
    frames = [one for one in gateway.post(path, body).frames if one != "[DONE]"]
    ends = [c["finish_reason"] for f in frames for c in f["choices"] if c["finish_reason"]]
    assert ends == ["length", "length"]


def test_a_response_in_the_background_keeps_what_it_has(gateway: Gateway) -> None:
    path, body = asked("responses", background=True)
    name = gateway.post(path, body).json["id"]
    shown = gateway.get(f"{path}/{name}?stream=true")
    text, n_tokens, reason = finish("responses", shown)
    assert reason == "max_output_tokens"
    assert 10 < n_tokens < N
    (message,) = gateway.get(f"{path}/{name}").json["output"]
    assert message["content"][0]["text"] == text


def test_a_limit_that_is_not_reached_changes_nothing(gateway: Gateway) -> None:
    path, body = asked("chat", stream=True, max_tokens=8, timeout_s=60)
    answered = gateway.post(path, body)
    assert finish("chat", answered)[1:] == (8, "length")
    assert b"ended by timeout_s" not in answered.body


@pytest.mark.parametrize("seconds", [-1, "soon"])
def test_a_limit_that_is_no_time_is_refused(gateway: Gateway, seconds: object) -> None:
    for is_stream in (False, True):
        path, body = asked("chat", timeout_s=seconds, stream=is_stream)
        assert gateway.post(path, body).status == 400
