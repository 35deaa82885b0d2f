"""OpenAI's API over real HTTP, on the embedded model."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator

import pytest

from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, status_of

pytestmark = pytest.mark.system

ASK = {"messages": [{"role": "user", "content": "Tell a story about a fox."}], "max_tokens": 12,
       "temperature": 0}  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("openai")
    with (
        LeakCheck() as leaks,
        gateway_node(folder, aliases=(("gpt-*", "demo"),), keepalive_s=5.0) as found,
    ):
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


def joined(frames: list[object], key: str = "content") -> str:
    deltas = [one["choices"][0]["delta"] for one in frames if one != "[DONE]" and one["choices"]]  # type: ignore[index]
    return "".join(delta.get(key) or "" for delta in deltas)


def test_a_stream_shows_what_the_whole_answer_holds(gateway: Gateway) -> None:
    whole = gateway.post("/v1/chat/completions", ASK)
    assert whole.status == 200
    assert whole.headers["content-type"] == "application/json"
    message = whole.json["choices"][0]["message"]
    asked = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    stream = gateway.post("/v1/chat/completions", asked)
    assert stream.headers["content-type"].startswith("text/event-stream")
    *frames, usage, done = stream.frames
    assert done == "[DONE]"
    assert frames[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert joined(frames) == message["content"]
    assert frames[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    counts = usage["usage"]
    assert counts["completion_tokens"] == 12
    n_prompt = counts["prompt_tokens"]
    assert counts["prompt_tokens_details"]["cached_tokens"] == n_prompt, "the prompt came again"
    assert frames[-1]["cache"]["hit"] == "exact"
    assert len({one["id"] for one in [*frames, usage]}) == 1


def test_usage_comes_only_when_asked_for(gateway: Gateway) -> None:
    frames = gateway.post("/v1/chat/completions", {**ASK, "stream": True}).frames
    assert all(one == "[DONE]" or "usage" not in one for one in frames)


def test_several_replies_are_streamed_together(gateway: Gateway) -> None:
    asked = {**ASK, "stream": True, "n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 20}
    frames = [one for one in gateway.post("/v1/chat/completions", asked).frames if one != "[DONE]"]
    texts = {}
    for number in range(3):
        mine = [one for one in frames if one["choices"][0]["index"] == number]
        assert mine[0]["choices"][0]["delta"]["role"] == "assistant"
        assert mine[-1]["choices"][0]["finish_reason"] == "length"
        texts[number] = joined(mine)
    assert len(set(texts.values())) == 3
    order = [one["choices"][0]["index"] for one in frames]
    assert order != sorted(order), "one after the other"
    again = gateway.post("/v1/chat/completions", {**asked, "stream": False}).json
    assert [one["message"]["content"] for one in again["choices"]] == list(texts.values())


def test_a_required_tool_is_called(gateway: Gateway) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {"messages": question, "tools": [WEATHER], "tool_choice": "required",
             "max_tokens": 100, "temperature": 0}  # fmt: skip
    whole = gateway.post("/v1/chat/completions", asked).json
    choice = whole["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    frames = gateway.post("/v1/chat/completions", {**asked, "stream": True}).frames
    pieces = [
        piece
        for one in frames
        if one != "[DONE]" and one["choices"]
        for piece in one["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert pieces[0]["function"]["name"] == "get_weather"
    assert all("id" not in piece for piece in pieces[1:])
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    assert json.loads(arguments) == {"city": "Paris"}

    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"sky": "clear"}'}
    turn = {**asked, "messages": [*question, choice["message"], result], "tool_choice": "auto"}
    second = gateway.post("/v1/chat/completions", turn).json
    first_prompt = whole["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first_prompt


def test_logprobs_show_tokens_as_text(gateway: Gateway) -> None:
    asked = {**ASK, "logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    choice = gateway.post("/v1/chat/completions", asked).json["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == choice["message"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == choice["message"]["content"]
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 for one in content)
    old = {"prompt": "Once upon", "logprobs": 1, "max_tokens": 3, "temperature": 0, "echo": True}
    found = gateway.post("/v1/completions", old).json["choices"][0]
    assert found["text"].startswith("Once upon")
    assert "".join(found["logprobs"]["tokens"]) == "<|bos|>" + found["text"]


def test_completions_of_several_prompts(gateway: Gateway) -> None:
    asked = {"prompt": ["Once upon", "The fox"], "n": 2, "max_tokens": 5, "temperature": 0}
    found = gateway.post("/v1/completions", asked).json
    assert [one["index"] for one in found["choices"]] == [0, 1, 2, 3]
    assert found["choices"][0]["text"] == found["choices"][1]["text"]
    assert found["usage"]["completion_tokens"] == 20
    ids = gateway.node.tokenize("demo", "Once upon")
    by_ids = gateway.post("/v1/completions", {**asked, "prompt": ids, "n": 1}).json
    assert by_ids["choices"][0]["text"] == found["choices"][0]["text"]
    assert by_ids["usage"]["prompt_tokens"] == len(ids)


def test_zero_tokens_only_read_the_prompt(gateway: Gateway) -> None:
    found = gateway.post("/v1/chat/completions", {**ASK, "max_tokens": 0}).json
    assert found["choices"][0]["message"]["content"] == ""
    assert found["usage"]["completion_tokens"] == 0


def test_embeddings_in_both_forms(gateway: Gateway) -> None:
    asked = {"input": ["a fox", "an owl"], "model": "demo"}
    plain = gateway.post("/v1/embeddings", asked).json
    packed = gateway.post("/v1/embeddings", {**asked, "encoding_format": "base64"}).json
    for one, other in zip(plain["data"], packed["data"], strict=True):
        raw = base64.b64decode(other["embedding"])
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(one["embedding"])
    many = gateway.post("/v1/embeddings", {"input": ["a fox", "an owl"] * 200}).json["data"]
    assert [one["index"] for one in many] == list(range(400))
    assert many[399]["embedding"] == pytest.approx(plain["data"][1]["embedding"], abs=1e-4)
    refused = gateway.post("/v1/embeddings", {**asked, "dimensions": 3})
    assert (refused.status, refused.json["error"]["param"]) == (400, "dimensions")


def test_models_and_names(gateway: Gateway) -> None:
    (one,) = gateway.get("/v1/models").json["data"]
    assert (one["id"], one["object"]) == ("demo", "model")
    assert gateway.get("/v1/models/gpt-6-astra").json["root"] == "demo"
    assert gateway.get("/v1/models/org%2Fname").json["id"] == "org/name"
    answer = gateway.post("/v1/chat/completions", {**ASK, "model": "gpt-4o"}).json
    assert answer["model"] == "demo", "the answer names the model that it is of"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[]", None),
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({**ASK, "max_tokens": "9"}, "max_tokens"),
        ({**ASK, "max_tokens": -7}, "max_tokens"),
        ({**ASK, "temperature": -1}, "temperature"),
        ({**ASK, "n": 99}, "n"),
        ({**ASK, "tool_choice": "required"}, "tool_choice"),
        ({**ASK, "modalities": ["audio"]}, "modalities"),
        ({**ASK, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({**ASK, "messages": [{"role": "user"}]}, None),
    ],
)
def test_a_wrong_body_is_a_clear_error(gateway: Gateway, body: object, param: str | None) -> None:
    answer = gateway.post("/v1/chat/completions", body)
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert error["type"] in ("invalid_request_error", "not_supported_error")
    assert error["param"] == param
    assert len(error["message"]) > 10


def test_a_prompt_that_is_too_long_is_named_so(gateway: Gateway) -> None:
    asked = {**ASK, "messages": [{"role": "user", "content": "A fox and an owl. " * 3000}]}
    for is_stream in (False, True):
        answer = gateway.post("/v1/chat/completions", {**asked, "stream": is_stream})
        assert answer.status == 400
        assert answer.json["error"]["code"] == "context_length_exceeded"


def test_paths_and_methods(gateway: Gateway) -> None:
    missing = gateway.get("/v1/nothing")
    assert (missing.status, missing.json["error"]["code"]) == (404, "not_found")
    wrong = gateway.call("DELETE", "/v1/models")
    assert wrong.status == 405
    assert wrong.headers["allow"] == "GET, HEAD, OPTIONS"
    assert gateway.call("HEAD", "/").status == 200
    assert gateway.call("HEAD", "/v1/models").body == b""
    assert gateway.call("OPTIONS", "/v1/chat/completions").status == 200
    assert gateway.get("/").body == b"Ollama is running"
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert gateway.call("POST", "/chat/completions", ASK, form).status == 200


def test_every_answer_has_an_id(gateway: Gateway) -> None:
    ids = {gateway.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_characters_are_never_cut(gateway: Gateway) -> None:
    asked = {"messages": [{"role": "user", "content": "Füchse 🦊 und Eulen"}], "max_tokens": 30,
             "temperature": 1.9, "seed": 3, "stream": True}  # fmt: skip
    answer = gateway.post("/v1/chat/completions", asked)
    answer.body.decode("utf-8")
    assert "\ufffd" not in joined(answer.frames)


def test_a_title_leaves_the_sequence_of_the_agent_in_the_context(gateway: Gateway) -> None:
    turn = {
        "messages": [{"role": "user", "content": "Tell a long story about a fox. " * 60}],
        "tools": [WEATHER],
        "max_tokens": 8,
        "temperature": 0,
    }
    title = {"messages": [{"role": "user", "content": "A title, please."}], "max_tokens": 8}
    assert gateway.post("/v1/chat/completions", turn).status == 200

    def idle() -> int:
        count: int = status_of(gateway.node, "model:demo")["idle_sequences"]
        return count

    before = idle()
    for number in range(4):
        asked = {**title, "seed": number}
        assert gateway.post("/v1/chat/completions", asked).status == 200
    assert idle() == before
    reply = gateway.post("/v1/chat/completions", turn).json
    assert reply["cache"]["source"] == "live"
    # Without the agent's turn the same request is a conversation of its own, and stays.
    assert gateway.post("/v1/chat/completions", {**ASK, "tools": [WEATHER]}).status == 200
    assert gateway.post("/v1/chat/completions", {**title, "seed": 9}).status == 200
    assert idle() > before
