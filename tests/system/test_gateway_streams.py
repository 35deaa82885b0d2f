"""llama-server's resumable streams over real HTTP: a lost connection loses nothing."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, inflight_status, one_thread
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

NAME = "conv-1::org/model:Q8_0"
QUERY = f"conv_id={quote(NAME, safe='')}"
CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell a long story about a fox and an owl."}],
    "max_tokens": 60, "ignore_eos": True, "temperature": 0.9, "seed": 11, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip
SOME = {**ASK, "max_tokens": 250}
LONG = {**ASK, "max_tokens": 3500}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("streams")
    with LeakCheck() as leaks, gateway_node(folder, keepalive_s=5.0) as found:
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


def is_idle(gateway: Gateway) -> bool:
    return not inflight_status(gateway.node)["in_flight"]


def leave_after(gateway: Gateway, body: dict[str, Any], n_bytes: int, path: str = CHAT) -> bytes:
    """The first bytes of a stream, whose connection is closed then."""
    named = {"X-Conversation-Id": NAME}
    with gateway.opened("POST", path, body, named) as answer:
        assert answer.status == 200
        return answer.read(n_bytes)


def read_from(gateway: Gateway, place: int) -> bytes:
    answer = gateway.get(f"/v1/stream?{QUERY}&from={place}")
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (
        200, "text/event-stream"
    )  # fmt: skip
    return answer.body


def content(stream: bytes) -> str:
    found = []
    for line in stream.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                found.append(choice["delta"].get("content") or "")
    return "".join(found)


def test_a_stream_is_read_again_from_any_byte(gateway: Gateway) -> None:
    whole = gateway.post(CHAT, ASK, **{"X-Conversation-Id": NAME})
    assert whole.body.endswith(b"data: [DONE]\n\n")
    for place in (0, 1, 500, len(whole.body) - 3, len(whole.body)):
        assert read_from(gateway, place) == whole.body[place:]
    assert read_from(gateway, len(whole.body) + 100) == b""
    found = gateway.post("/v1/streams/lookup", {"conversation_ids": ["conv-1", "other", 5, ""]})
    (one,) = found.json
    assert one["completed_at"] >= one["started_at"] > 1_700_000_000
    del one["started_at"], one["completed_at"]
    assert one == {"conversation_id": NAME, "is_done": True, "total_bytes": len(whole.body)}
    for _ in range(2):
        stopped = gateway.call("DELETE", f"/v1/stream?{QUERY}")
        assert (stopped.status, stopped.body) == (204, b"")
    missing = gateway.get(f"/v1/stream?{QUERY}&from=0")
    error = missing.json["error"]
    assert (missing.status, error["code"], error["type"]) == (404, 404, "not_found_error")
    assert gateway.post("/v1/streams/lookup", {"conversation_ids": [NAME]}).json == []
    assert gateway.post("/v1/streams/lookup", {}).json == []


def test_a_client_that_lost_its_connection_goes_on_where_it_was(gateway: Gateway) -> None:
    whole = gateway.post(CHAT, SOME)
    first = leave_after(gateway, SOME, 5000)
    (one,) = gateway.post("/v1/streams/lookup", {"conversation_ids": [NAME]}).json
    assert (one["is_done"], one["completed_at"]) == (False, 0)
    second = b""
    with gateway.opened("GET", f"/v1/stream?{QUERY}&from={len(first)}") as answer:
        second = answer.read(20_000)  # and loses that one too
    third = read_from(gateway, len(first + second))
    found = first + second + third
    assert found.endswith(b"data: [DONE]\n\n")
    assert content(found) == content(whole.body)
    assert len(set(re.findall(rb"chatcmpl-\w+", found))) == 1
    assert read_from(gateway, 0) == found
    assert is_idle(gateway)


def test_without_the_header_a_client_that_leaves_ends_its_request(gateway: Gateway) -> None:
    gateway.call("DELETE", f"/v1/stream?{QUERY}")
    with gateway.opened("POST", CHAT, LONG) as answer:
        assert answer.read(100)
    eventually(lambda: is_idle(gateway), what="it is cancelled")
    assert gateway.get(f"/v1/stream?{QUERY}").status == 404


def test_one_that_leaves_before_the_first_byte_finds_its_stream(gateway: Gateway) -> None:
    body = json.dumps(ASK).encode()
    with gateway.raw() as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Conversation-Id: {NAME}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        eventually(lambda: not is_idle(gateway) or has_stream(gateway), what="it has begun")
        connection.shutdown(socket.SHUT_RDWR)
    eventually(lambda: has_stream(gateway), what="its stream is there")
    assert read_from(gateway, 0).endswith(b"data: [DONE]\n\n")


def has_stream(gateway: Gateway) -> bool:
    return bool(gateway.post("/v1/streams/lookup", {"conversation_ids": [NAME]}).json)


def test_a_stop_ends_the_reply_and_its_streams(gateway: Gateway) -> None:
    named = {"X-Conversation-Id": NAME}
    with gateway.opened("POST", CHAT, LONG, named) as answer:
        first = answer.read(3000)
        with gateway.opened("GET", f"/v1/stream?{QUERY}") as reader:
            assert reader.read(3000) == first
            assert gateway.call("DELETE", f"/v1/stream?{QUERY}").status == 204
            for rest in (answer.read(), reader.read()):
                assert b'"finish_reason":"stop"' in rest
                assert rest.endswith(b"data: [DONE]\n\n")
    eventually(lambda: is_idle(gateway), what="nothing runs")
    assert gateway.get(f"/v1/stream?{QUERY}").status == 404


def test_the_next_request_of_a_conversation_ends_the_one_before(gateway: Gateway) -> None:
    leave_after(gateway, LONG, 1000)
    whole = gateway.post(CHAT, ASK, **{"X-Conversation-Id": NAME})
    eventually(lambda: is_idle(gateway), what="the one before has ended")
    assert read_from(gateway, 0) == whole.body


def test_a_refused_request_leaves_nothing(gateway: Gateway) -> None:
    gateway.call("DELETE", f"/v1/stream?{QUERY}")
    too_long = {**ASK, "messages": [{"role": "user", "content": "A fox and an owl. " * 3000}]}
    assert gateway.post(CHAT, too_long, **{"X-Conversation-Id": NAME}).status == 400
    assert gateway.get(f"/v1/stream?{QUERY}").status == 404


def test_a_stream_that_fails_is_shown_as_it_was(gateway: Gateway, slow_gguf: Path) -> None:
    """The error event, and then a broken connection."""
    gateway.node.load("second", one_thread(slow_gguf))
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True,
            "model": "second"}  # fmt: skip
    first = leave_after(gateway, body, 200, "/v1/completions")
    gateway.node.unload("second")
    with gateway.opened("GET", f"/v1/stream?{QUERY}") as answer:
        data = b""
        with pytest.raises((http.client.IncompleteRead, ConnectionError)) as broken:
            data = answer.read()
    rest = broken.value.partial if isinstance(broken.value, http.client.IncompleteRead) else data
    assert rest.startswith(first)
    assert b'"code":"model_not_found"' in rest[-600:]
    assert b"[DONE]" not in rest


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/completion", {"prompt": "Once", "n_predict": 40}, b'"stop":true'),
        ("/v1/completions", {"prompt": "Once", "max_tokens": 40}, b"[DONE]"),
        ("/v1/messages", {"messages": ASK["messages"], "max_tokens": 40}, b"message_stop"),
        ("/v1/responses", {"input": "Once", "max_output_tokens": 40}, b"response.incomplete"),
    ],
)
def test_every_api_with_events_has_it(
    gateway: Gateway, path: str, body: dict[str, Any], end: bytes
) -> None:
    asked = {**body, "stream": True, "ignore_eos": True}
    first = leave_after(gateway, asked, 200, path)
    rest = read_from(gateway, len(first))
    assert end in rest
    assert read_from(gateway, 0) == first + rest


def test_events_have_numbers_by_the_id_of_the_request(gateway: Gateway) -> None:
    whole = gateway.post(CHAT, ASK, **{"X-Conversation-Id": NAME})
    path = f"/llama/v1/streams/{whole.headers['x-request-id']}"
    events = [one for one in whole.body.split(b"\n\n") if one.startswith(b"data: ")]
    numbered = [b"id: %d\n%b" % (at, one) for at, one in enumerate(events)]
    assert gateway.get(path).body.split(b"\n\n")[:-1] == numbered
    for last in ("3", f"{whole.headers['x-request-id']}:3"):
        again = gateway.get(path, **{"Last-Event-ID": last})
        assert again.body.split(b"\n\n")[:-1] == numbered[4:]
    assert gateway.get(path, **{"Last-Event-ID": str(len(events))}).status == 400
    assert gateway.get(path, **{"Last-Event-ID": "x"}).status == 400
    assert gateway.get("/llama/v1/streams/req_0").status == 404


@pytest.mark.parametrize("query", ["", "from=0", "conv_id=", f"{QUERY}&from=x", f"{QUERY}&from=-1"])
def test_a_wrong_question_is_a_clear_error(gateway: Gateway, query: str) -> None:
    gateway.post(CHAT, {**ASK, "max_tokens": 1}, **{"X-Conversation-Id": NAME})
    answer = gateway.get(f"/v1/stream?{query}")
    assert (answer.status, answer.json["error"]["code"]) == (400, 400)
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_no_json_is_refused(gateway: Gateway) -> None:
    for body in (b"{", b"[]", b'{"conversation_ids": "x"}'):
        assert gateway.call("POST", "/v1/streams/lookup", body).status == 400
    assert gateway.call("DELETE", "/v1/stream").status == 400


def test_a_key_finds_its_own_streams_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    tables = [
        f'[keys.{name}]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
        for name in ("alice", "bob")
    ]
    keys.write_text("".join(tables), encoding="utf-8")
    keys.chmod(0o600)
    with contextlib.ExitStack() as stack:
        leaks = stack.enter_context(LeakCheck())
        gateway = stack.enter_context(
            gateway_node(tmp_path, keys_file=str(keys), log_ttl_s=0.5, log_bytes=1 << 20)
        )
        leaks.watch(gateway.node)
        alice, bob = ({"authorization": f"Bearer {name}"} for name in ("alice", "bob"))
        whole = gateway.post(CHAT, ASK, **{"X-Conversation-Id": NAME}, **alice)
        assert gateway.get(f"/v1/stream?{QUERY}", **alice).body == whole.body
        request_path = f"/llama/v1/streams/{whole.headers['x-request-id']}"
        assert gateway.get(request_path, **alice).status == 200
        named = {"conversation_ids": [NAME]}
        assert len(gateway.post("/v1/streams/lookup", named, **alice).json) == 1
        assert gateway.post("/v1/streams/lookup", named, **bob).json == []
        assert gateway.get(request_path, **bob).status == 404
        assert gateway.get(f"/v1/stream?{QUERY}", **bob).status == 404
        assert gateway.call("DELETE", f"/v1/stream?{QUERY}", headers=bob).status == 204
        assert gateway.get(f"/v1/stream?{QUERY}").status == 401
        eventually(
            lambda: gateway.get(f"/v1/stream?{QUERY}", **alice).status == 404,
            what="it is kept no more",
        )
