"""Resumable streams through kill -9 of their worker: with their client, and without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from runtime import CompletionEvent, TokenEvent
from runtime.remote.address import parse_address
from runtime.remote.node import RemoteNode
from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, inflight_status, kill, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

CHAT = "/v1/chat/completions"
NAMED = {"X-Conversation-Id": "conv"}
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell a long story about a fox and an owl."}],
    "max_tokens": 400, "ignore_eos": True, "temperature": 0.9, "seed": 11, "stream": True,
    "exact": "always",
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("kills")
    with LeakCheck() as leaks, gateway_node(folder, keepalive_s=0.1) as found:
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


@pytest.fixture(scope="module")
def unbroken(gateway: Gateway) -> str:
    return content(gateway.post(CHAT, ASK).body)


def content(stream: bytes) -> str:
    text = stream.decode()
    assert text.endswith("data: [DONE]\n\n")
    found = []
    for frame in text.split("\n\n")[:-2]:
        assert frame == ":" or frame.startswith("data: {"), frame
        if frame.startswith("data: {"):
            (choice,) = json.loads(frame.removeprefix("data: "))["choices"]
            found.append(choice["delta"].get("content") or "")
    return "".join(found)


def again(gateway: Gateway, place: int) -> bytes:
    answer = gateway.get(f"/v1/stream?conv_id=conv&from={place}")
    assert answer.status == 200, answer.body
    return answer.body


def test_without_its_client_a_stream_goes_on_in_the_next_worker(
    gateway: Gateway, unbroken: str
) -> None:
    with gateway.opened("POST", CHAT, ASK, NAMED) as answer:
        first = answer.read(3000)
    for n in (1, 2):  # without a client from here on
        eventually(lambda n=n: total(gateway) > n * 20_000, what="it runs")
        kill(pid_of(gateway.node, "http:0"))
    rest = again(gateway, len(first))
    assert content(first + rest) == unbroken
    assert again(gateway, 0) == first + rest
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_with_its_client_it_can_be_read_again_too(gateway: Gateway, unbroken: str) -> None:
    with gateway.opened("POST", CHAT, ASK, NAMED) as answer:
        whole = answer.read(3000)
        kill(pid_of(gateway.node, "http:0"))
        whole += answer.read()
    assert content(whole) == unbroken
    assert again(gateway, 0) == whole


def test_one_that_is_stopped_after_a_kill_stops(gateway: Gateway) -> None:
    with gateway.opened("POST", CHAT, {**ASK, "max_tokens": 3500}, NAMED) as answer:
        answer.read(3000)
    kill(pid_of(gateway.node, "http:0"))
    assert total(gateway) >= 3000
    assert gateway.call("DELETE", "/v1/stream?conv_id=conv").status == 204
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_a_completion_of_the_command_line_elsewhere_goes_on(gateway: Gateway) -> None:
    options: dict[str, Any] = {
        "max_tokens": 400, "ignore_eos": True, "temperature": 0.9, "seed": 5, "exact": "always",
    }  # fmt: skip
    whole = gateway.node.complete("demo", "Once upon a time", **options)
    node = RemoteNode(parse_address(gateway.url))
    texts, n_killed = [], 0
    with node.stream("demo", "Once upon a time", **options) as events:
        for event in events:
            if isinstance(event, TokenEvent):
                texts.append(event.text)
                if len(texts) in (10, 120):
                    kill(pid_of(gateway.node, "http:0"))
                    n_killed += 1
            if isinstance(event, CompletionEvent):
                done = event.completion
    assert n_killed == 2
    assert "".join(texts) == done.text == whole.text
    assert done.tokens == whole.tokens


def total(gateway: Gateway) -> int:
    """Bytes of the stream so far."""
    found = gateway.post("/v1/streams/lookup", {"conversation_ids": ["conv"]}).json
    return int(found[0]["total_bytes"]) if found else 0
