"""Peers of the gateway that are slow, huge or wrong: refused in time, while others are served."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, inflight_status, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

HEAD_S = 0.6
POST = b"POST / HTTP/1.1\r\nhost: localhost\r\n"
LONG = {"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 3000,
        "ignore_eos": True, "temperature": 0}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("hostile")
    with (
        LeakCheck() as leaks,
        gateway_node(
            folder, head_s=HEAD_S, body_s=HEAD_S, idle_s=2.0, stalled_s=1.0, keepalive_s=0.2,
            max_body=1 << 20, max_connections=40,
        ) as found,
    ):  # fmt: skip
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


def answer_to(gateway: Gateway, *parts: bytes, every_s: float = 0.0) -> bytes:
    """All that comes until the gateway closes the connection."""
    with contextlib.closing(gateway.raw()) as sock:
        for part in parts:
            with contextlib.suppress(OSError):
                sock.sendall(part)
            threading.Event().wait(every_s)
        return _rest(sock)


def _rest(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(65536):
            found += more
    return found


def still_serves(gateway: Gateway) -> None:
    assert gateway.get("/health").json == {"status": "ok"}


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_a_silent_connection_is_closed(gateway: Gateway) -> None:
    assert answer_to(gateway) == b""
    still_serves(gateway)


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /health HTTP/1.1\r\nhost: x\r\n", *[b"a: b\r\n"] * 20],
        [b"\r\n"] * 30,
        [b"G"],
    ],
    ids=["header lines", "empty lines", "one byte"],
)
def test_a_dripping_head_ends(gateway: Gateway, parts: list[bytes]) -> None:
    began = time.monotonic()
    answer = answer_to(gateway, *parts, every_s=0.1)
    assert time.monotonic() - began < 20 * HEAD_S
    assert answer == b"" or status_of(answer) == 408
    still_serves(gateway)


def test_a_dripping_body_ends(gateway: Gateway) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n"
    answer = answer_to(gateway, head, *[b"x"] * 15, every_s=0.1)
    assert status_of(answer) == 408
    still_serves(gateway)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 300_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 300_000, 431),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", 400),
        (
            POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1.evil.example\r\n\r\n", 403),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"hello there\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\na : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nhost: localhost\n\n", 400),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked, x\r\n\r\n",
            400,
        ),
    ],
    ids=[
        "path", "header", "unfinished header", "many headers", "length", "negative length",
        "length and chunks", "two lengths", "no host", "empty host", "two hosts", "foreign host",
        "host that begins well", "TLS", "no HTTP", "blank before colon", "LF alone", "bad chunk",
        "unknown encoding",
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(gateway: Gateway, request_bytes: bytes, status: int) -> None:
    answer = answer_to(gateway, request_bytes)
    assert status_of(answer) == status, answer[:300]
    still_serves(gateway)


def test_a_chunked_body_that_grows_too_big_is_refused(gateway: Gateway) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answer = answer_to(gateway, head, *[chunk] * 40)
    assert status_of(answer) == 413
    still_serves(gateway)


@pytest.mark.parametrize("depth", [2_000, 400_000])
def test_deep_json_is_a_clear_error(gateway: Gateway, depth: int) -> None:
    body = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    answer = gateway.post("/v1/chat/completions", body)
    assert answer.status == 400, answer.body[:200]
    still_serves(gateway)


def test_a_page_of_another_origin_may_not_post(gateway: Gateway) -> None:
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{gateway.port + 1}"):
        headers = {"origin": origin, "content-type": "text/plain"}
        answer = gateway.call("POST", "/v1/completions", {"prompt": "x"}, headers)
        assert answer.status == 403
    own = gateway.call("GET", "/v1/models", headers={"origin": gateway.url})
    assert own.status == 200


def test_more_connections_than_there_may_be(gateway: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(contextlib.closing(gateway.raw())) for _ in range(80)]
        refused = [one for one in opened[45:] if b"503" in _rest(one)[:20]]
        assert len(refused) > 20
    eventually(lambda: _serves(gateway), what="others are served again")


def _serves(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError):
        return gateway.get("/health").status == 200
    return False


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_cancels_its_request(gateway: Gateway, is_stream: bool) -> None:
    connection = gateway.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps({**LONG, "stream": is_stream}))
    eventually(lambda: inflight_status(gateway.node)["in_flight"] == 1, what="it runs")
    assert connection.sock is not None
    connection.sock.close()
    connection.close()
    left = time.monotonic()
    eventually(lambda: inflight_status(gateway.node)["in_flight"] == 0, what="it is cancelled")
    assert time.monotonic() - left < 5.0
    still_serves(gateway)


def test_a_client_that_reads_nothing_is_dropped(gateway: Gateway) -> None:
    """Its receive window is small, and it never reads: the kernel's buffers fill up."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", gateway.port))
    with contextlib.closing(sock):
        many = {"prompt": ["Once upon a time"] * 40, "max_tokens": 250, "ignore_eos": True,
                "n": 3, "logprobs": 20, "stream": True}  # fmt: skip
        body = json.dumps(many).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
        sock.sendall(head.encode() + b"\r\n\r\n" + body)
        eventually(lambda: inflight_status(gateway.node)["in_flight"], what="it runs")
        eventually(
            lambda: not inflight_status(gateway.node)["in_flight"], within_s=60, what="dropped"
        )
    still_serves(gateway)


def test_a_reset_in_mid_stream_leaves_nothing(gateway: Gateway) -> None:
    for _ in range(5):
        connection = gateway.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps({**LONG, "stream": True}))
        answer = connection.getresponse()
        assert answer.read(200)
        assert connection.sock is not None or answer.fp is not None
        sock = answer.fp.raw._sock  # type: ignore[union-attr]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answer.close()
        connection.close()
    eventually(lambda: inflight_status(gateway.node)["in_flight"] == 0, what="all are cancelled")
    still_serves(gateway)


def test_while_a_worker_restarts_connections_wait(gateway: Gateway, tmp_path: Path) -> None:
    del tmp_path
    before = pid_of(gateway.node, "http:0")
    os.kill(before, signal.SIGKILL)
    still_serves(gateway)  # accepted by the next incarnation, not refused
    assert pid_of(gateway.node, "http:0") != before
