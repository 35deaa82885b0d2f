"""llama-server's own API over real HTTP, on a node with the embedded model."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.support.gateways import Gateway, gateway_node
from tests.support.waiting import eventually

PROMPT = "Once upon a time there was a girl named"
PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("native")
    with gateway_node(home, slots=True, origins=(PAGE,)) as running:
        yield running


def test_a_stream_and_one_answer_have_the_same_text(gateway: Gateway) -> None:
    body = {"prompt": PROMPT, "n_predict": 8, "temperature": 0, "n_probs": 2}
    status, whole = gateway.json("POST", "/completion", body)
    assert status == 200
    assert (whole["tokens_predicted"], whole["stop_type"]) == (8, "limit")
    assert len(whole["completion_probabilities"]) == 8
    frames = gateway.frames("/completions", body | {"stream": True})
    assert "".join(one["content"] for one in frames) == whole["content"]
    assert all(len(one["tokens"]) == 1 for one in frames[:-1])
    assert frames[-1]["timings"]["cache_n"] > 0


def test_prompts_come_in_each_form(gateway: Gateway) -> None:
    _, found = gateway.json("POST", "/tokenize", {"content": PROMPT, "add_special": True})
    ids = found["tokens"]
    mixed = [*ids, " Ivy", ids[-1]]
    body = {"prompt": [ids, PROMPT, mixed], "n_predict": 4, "temperature": 0}
    status, several = gateway.json("POST", "/completion", body)
    assert status == 200
    assert [one["index"] for one in several] == [0, 1, 2]
    assert several[0]["content"] == several[1]["content"]
    assert several[2]["tokens_evaluated"] > several[0]["tokens_evaluated"]


def test_tokens_are_texts_again(gateway: Gateway) -> None:
    body = {"content": "A fox, 媽!", "with_pieces": True}
    status, found = gateway.json("POST", "/tokenize", body)
    assert status == 200
    ids = [one["id"] for one in found["tokens"]]
    assert gateway.json("POST", "/detokenize", {"tokens": ids}) == (200, {"content": "A fox, 媽!"})
    pieces = [one["piece"] for one in found["tokens"]]
    raw = [piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces]
    assert b"".join(raw).decode() == "A fox, 媽!"


def test_a_template_shows_the_prompt_and_its_length(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    status, shown = gateway.json("POST", "/apply-template", {"messages": messages})
    assert status == 200
    assert "Hello" in shown["prompt"]
    _, count = gateway.json("POST", "/v1/chat/completions/input_tokens", {"messages": messages})
    chat = {"messages": messages, "max_tokens": 1, "verbose": True}
    _, done = gateway.json("POST", "/v1/chat/completions", chat)
    assert done["usage"]["prompt_tokens"] == count["input_tokens"]
    assert done["__verbose"]["prompt"] == shown["prompt"]


def test_vectors_have_two_forms(gateway: Gateway) -> None:
    _, native = gateway.json("POST", "/embedding", {"content": "a fox"})
    _, openai = gateway.json("POST", "/v1/embeddings", {"input": [{"prompt_string": "a fox"}]})
    assert native[0]["embedding"][0] == pytest.approx(openai["data"][0]["embedding"])
    status, refused = gateway.json("POST", "/v1/embeddings", {"input": "a fox " * 4000})
    assert status == 400
    assert "too large" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/completion", {}, 400, "invalid_request_error"),
        ("/completion", {"prompt": "a", "n_predict": "x"}, 400, "invalid_request_error"),
        ("/completion", {"prompt": "a" * 40_000}, 400, "exceed_context_size_error"),
        ("/completion", {"prompt": "a", "post_sampling_probs": True}, 501, "not_supported_error"),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, 501, "not_supported_error"),
        ("/rerank", {"query": "a", "documents": ["b"]}, 501, "not_supported_error"),
    ],
)
def test_refusals_have_llama_servers_form(
    gateway: Gateway, path: str, body: dict[str, object], status: int, kind: str
) -> None:
    found, answer = gateway.json("POST", path, body)
    assert (found, answer["error"]["type"], answer["error"]["code"]) == (status, kind, status)


def test_what_there_is(gateway: Gateway) -> None:
    status, props = gateway.json("GET", "/props")
    assert status == 200
    assert props["model_path"].endswith(".gguf")
    status, slots = gateway.json("GET", "/slots")
    assert (status, len(slots)) == (200, props["total_slots"])
    assert gateway.json("GET", "/lora-adapters") == (200, [])
    assert gateway.json("POST", "/lora-adapters", []) == (200, {"success": True})
    assert gateway.json("POST", "/lora-adapters", [{"id": 7, "scale": 1.0}])[0] == 400
    status, headers, text = gateway.ask("GET", "/metrics")
    assert (status, headers["content-type"][:10]) == (200, "text/plain")
    assert b"\nllamacpp:tokens_predicted_total " in text


def test_a_page_that_may_call_can_read_the_answer(gateway: Gateway) -> None:
    for method, path in (("OPTIONS", "/completion"), ("GET", "/props"), ("GET", "/nothing")):
        _, headers, _ = gateway.ask(method, path, headers={"origin": PAGE})
        assert headers["access-control-allow-origin"] == PAGE
    status, headers, _ = gateway.ask("OPTIONS", "/props", headers={"origin": "https://x.example"})
    assert status == 200
    assert "access-control-allow-origin" not in headers
    assert gateway.ask("GET", "/props", headers={"origin": "https://x.example"})[0] == 403


def test_a_client_that_goes_ends_its_reply(gateway: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    body = json.dumps({"prompt": PROMPT, "stream": True, "ignore_eos": True})
    connection.request("POST", "/completion", body)
    assert connection.getresponse().read(1)
    connection.close()
    queue = gateway.node.client.queue_depth
    eventually(lambda: not queue(), what="the request is cancelled")
