"""Ollama's API over real HTTP, with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.keys import new_key
from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, inflight_status
from tests.support.waiting import eventually

ADMIN, ADMIN_HASH = new_key()
GUEST, GUEST_HASH = new_key()
KEYS = f'''
[keys.admin]
sha256 = "{ADMIN_HASH}"
admin = true
namespace = "shared"

[keys.guest]
sha256 = "{GUEST_HASH}"
namespace = "shared"
'''
OPTIONS = {"temperature": 0, "num_predict": 12, "top_k": None, "seed": None}
STORY = [{"role": "user", "content": "Once upon a time"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Get the weather.",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string", "description": "the city"}},
        },
    },
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home: Path = tmp_path_factory.mktemp("ollama")
    keys = home / "keys.toml"
    keys.write_text(KEYS)
    keys.chmod(0o600)
    with (
        LeakCheck() as leaks,
        gateway_node(
            home, keys_file=str(keys), unknown_model="reject", aliases=(("gpt*", "demo"),)
        ) as running,
    ):
        running.headers["authorization"] = f"Bearer {ADMIN}"
        leaks.watch(running.node)
        yield running
        leaks.watch(running.node)


def chat(gateway: Gateway, **body: Any) -> Any:
    given = {"model": "demo", "messages": STORY, "options": OPTIONS, "stream": False, **body}
    answer = gateway.ask("POST", "/api/chat", given)
    assert answer.status == 200, answer.body
    return answer.json


def test_a_chat_streams_what_it_answers_whole(gateway: Gateway) -> None:
    whole = chat(gateway)
    assert whole["message"]["role"] == "assistant"
    assert (whole["model"], whole["done"], whole["done_reason"]) == ("demo", True, "length")
    assert whole["eval_count"] == 12
    assert whole["created_at"].endswith("Z")
    streamed = gateway.ask(
        "POST", "/api/chat", {"model": "demo:latest", "messages": STORY, "options": OPTIONS}
    )
    assert streamed.headers["content-type"] == "application/x-ndjson"
    *lines, last = streamed.lines
    assert {(one["model"], one["done"]) for one in lines} == {("demo:latest", False)}
    text = "".join(one["message"]["content"] for one in lines)
    assert text == whole["message"]["content"]
    assert (last["done"], last["message"]["content"], last["done_reason"]) == (True, "", "length")
    assert last["prompt_eval_count"] == whole["prompt_eval_count"]
    assert last["cache"]["reused_tokens"] == last["prompt_eval_cached_count"] > 0


def test_options_of_the_other_apis_are_taken(gateway: Gateway) -> None:
    more = {**OPTIONS, "exact": "always", "session": "tale", "xtc_probability": 0.0}
    assert chat(gateway, options=more)["done"]
    wrong = {"messages": STORY, "options": {**OPTIONS, "dry_base": "x"}, "stream": False}
    answer = gateway.ask("POST", "/api/chat", wrong)
    assert answer.status == 400
    assert "dry_base" in answer.json["error"]
    assert chat(gateway, think=False)["message"]["content"]


def test_a_call_has_its_arguments_as_an_object_and_its_result_is_read(gateway: Gateway) -> None:
    options = {"temperature": 0}
    whole = chat(gateway, messages=WEATHER, tools=[TOOL], options=options)["message"]
    (call,) = whole["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert call["function"]["arguments"] == {"city": "Paris"}
    body = {"model": "demo", "messages": WEATHER, "tools": [TOOL], "options": options}
    *lines, last = gateway.ask("POST", "/api/chat", body).lines
    (shown,) = [one["message"] for one in lines if "tool_calls" in one["message"]]
    assert shown["tool_calls"][0]["function"] == call["function"]
    assert last["done_reason"] == "stop"
    result = {"role": "tool", "tool_name": "weather", "content": "sunny"}
    after = chat(gateway, messages=[*WEATHER, whole, result], tools=[TOOL], options=options)
    assert "sunny" in after["message"]["content"]


def test_a_reply_follows_a_schema_and_shows_log_probabilities(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    found = chat(gateway, format=schema, think=False, logprobs=True, top_logprobs=2)
    assert isinstance(json.loads(found["message"]["content"])["a"], int)
    assert len(found["logprobs"]) == found["eval_count"]
    assert all(len(one["top_logprobs"]) == 2 for one in found["logprobs"])


def test_a_context_that_is_longer_than_the_loaded_one_is_remarked(gateway: Gateway) -> None:
    fits = chat(gateway, options={**OPTIONS, "num_ctx": 4096})
    assert "num_ctx" not in (fits["cache"]["note"] or "")
    longer = chat(gateway, options={**OPTIONS, "num_ctx": 8192})
    assert "num_ctx is 8192" in longer["cache"]["note"]


def test_a_prompt_is_a_chat_or_raw(gateway: Gateway) -> None:
    body = {"model": "demo", "prompt": "Once upon a time", "options": OPTIONS, "stream": False}
    as_chat = gateway.ask("POST", "/api/generate", body).json
    assert as_chat["response"] == chat(gateway)["message"]["content"]
    raw = gateway.ask("POST", "/api/generate", {**body, "raw": True, "stream": True}).lines
    assert raw[-1]["prompt_eval_count"] < as_chat["prompt_eval_count"]
    assert "".join(one["response"] for one in raw)
    infill = gateway.ask("POST", "/api/generate", {**body, "suffix": "the end"})
    assert (infill.status, "middle" in infill.json["error"]) == (400, True)


def test_texts_are_embedded(gateway: Gateway) -> None:
    body = {"model": "demo", "input": ["a fox", "an owl"]}
    both = gateway.ask("POST", "/api/embed", body).json
    assert [len(one) for one in both["embeddings"]] == [192, 192]
    short = gateway.ask("POST", "/api/embed", {**body, "input": "a fox", "dimensions": 3}).json
    assert [len(one) for one in short["embeddings"]] == [3]
    long = gateway.ask("POST", "/api/embed", {**body, "input": "fox " * 5000})
    assert (long.status, len(long.json["embeddings"])) == (200, 1)
    assert long.json["prompt_eval_count"] == 2048
    whole = gateway.ask("POST", "/api/embed", {**body, "input": "fox " * 5000, "truncate": False})
    assert whole.status == 400
    old = gateway.ask("POST", "/api/embeddings", {"model": "demo", "prompt": "a fox"}).json
    assert len(old["embedding"]) == 192


def test_models_are_listed_shown_and_pulled(gateway: Gateway) -> None:
    assert gateway.ask("POST", "/api/generate", {"model": "demo"}).json["done_reason"] == "load"
    (listed,) = gateway.ask("GET", "/api/tags").json["models"]
    (running,) = gateway.ask("GET", "/api/ps").json["models"]
    assert listed["name"] == running["model"] == "demo:latest"
    assert running["context_length"] == 4096
    for body in ({"model": "demo:latest"}, {"name": "demo"}, {"model": "gpt-9"}):
        shown = gateway.ask("POST", "/api/show", body).json
        assert shown["capabilities"] == ["completion", "tools"]
        assert shown["details"] == listed["details"]
        family = shown["model_info"]["general.architecture"]
        assert shown["model_info"][f"{family}.context_length"] == 4096
    pulled = gateway.ask("POST", "/api/pull", {"model": "demo"})
    assert [pulled.lines[0]["status"], pulled.lines[-1]["status"]] == [
        "pulling manifest",
        "success",
    ]
    whole = gateway.ask("POST", "/api/pull", {"model": "demo", "stream": False})
    assert whole.json == {"status": "success"}
    version = gateway.ask("GET", "/api/version").json["version"]
    assert tuple(map(int, version.split("."))) >= (0, 30, 0)
    for path in ("/api/tags", "/api/ps", "/api/version"):
        head = gateway.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/api/chat", {"model": "x", "messages": STORY}, 404, "model 'x' not found"),
        ("POST", "/api/show", {"model": "x:latest"}, 404, "model 'x:latest' not found"),
        ("POST", "/api/generate", {"model": "x", "keep_alive": 0}, 404, "model 'x' not found"),
        (
            "POST", "/api/pull", {"model": "x"}, 404,
            "model 'x' not found, this node does not download",
        ),
        ("POST", "/api/generate", {"model": "demo", "prompt": "a", "context": [1]}, 400, "context"),
        ("POST", "/api/chat", {"model": "demo", "messages": 1}, 400, "messages"),
        ("DELETE", "/api/delete", {"model": "demo"}, 501, "unload"),
        ("POST", "/api/create", {"model": "y", "from": "demo"}, 501, "load"),
        ("POST", "/api/copy", {"source": "demo", "destination": "y"}, 501, "aliases"),
        ("POST", "/api/push", {"model": "demo"}, 501, "file"),
        ("POST", "/api/blobs/sha256:00", b"GGUF", 501, "file"),
        ("GET", "/api/chat", None, 405, "POST"),
    ],
)  # fmt: skip
def test_failures_have_a_status_and_a_sentence(
    gateway: Gateway, method: str, path: str, body: Any, status: int, error: str
) -> None:
    answer = gateway.ask(method, path, body)
    assert answer.status == status
    assert list(answer.json) == ["error"]
    assert error in answer.json["error"]
    if status == 404:
        assert answer.json["error"] == error


def test_a_stream_that_is_left_is_cancelled(gateway: Gateway) -> None:
    # So many numbers take far longer than the test waits.
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 2000}
    body = {"model": "demo", "messages": STORY, "format": numbers, "options": {"temperature": 0}}
    with gateway.opened("POST", "/api/chat", body) as answer:
        assert json.loads(answer.readline())["done"] is False
        assert inflight_status(gateway.node)["in_flight"] == 1
    eventually(
        lambda: inflight_status(gateway.node)["in_flight"] == 0,
        within_s=5,
        what="the request of a client that has left is cancelled",
    )


def test_only_an_administrator_unloads_a_model(gateway: Gateway) -> None:
    body = {"model": "demo", "keep_alive": 0}
    assert gateway.ask("POST", "/api/chat", {"model": "demo"}).json["done_reason"] == "load"
    guest = {"authorization": f"Bearer {GUEST}"}
    assert gateway.ask("POST", "/api/chat", body, guest).status == 403
    assert len(gateway.ask("GET", "/api/tags").json["models"]) == 1
    unloaded = gateway.ask("POST", "/api/chat", body)
    assert (unloaded.status, unloaded.json["done_reason"]) == (200, "unload")
    eventually(lambda: gateway.ask("GET", "/api/tags").json == {"models": []})
    again = gateway.ask("POST", "/api/generate", {**body, "prompt": ""})
    assert again.json["done_reason"] == "unload"


@pytest.mark.parametrize("given", [1e9, 1e12, 1e300, 9e15, "99999999h"])
def test_a_model_that_stays_for_ages_ends_nothing(gateway: Gateway, given: float | str) -> None:
    body = {"model": "demo", "prompt": "x", "stream": False, "keep_alive": given,
            "options": {"num_predict": 1}}  # fmt: skip
    assert gateway.post("/api/generate", body).status == 200
    assert gateway.get("/api/ps").status == 200
    gateway.node.set_keep_alive("demo", 1e300)
    assert gateway.node.known_models()[0].expires_at is None
    residency = gateway.node.tree().find("residency")
    assert residency is not None
    assert residency.restarts == 0
