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


CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
AMBIGUOUS = {
    "two encodings": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n",
    "chunked twice": POST + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "encoding like chunked": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"transfer-encoding: identity\r\n\r\n",
    "tabulator before chunked": POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "blank before colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded encoding": POST + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "folded line": POST + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "length with a sign": POST + b"content-length: +3\r\n\r\nabc",
    "list of lengths": POST + b"content-length: 3, 3\r\n\r\nabc",
    "length in hex": POST + b"content-length: 0x3\r\n\r\nabc",
    "length with a blank": POST + b"content-length: 3 3\r\n\r\nabc",
    "no length": POST + b"content-length:\r\n\r\nabc",
    "length of 23 digits": POST + b"content-length: 99999999999999999999999\r\n\r\nabc",
    "length under another name": POST + b"content_length: 3\r\n\r\nabc",
    "chunk with a sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "negative chunk": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk with 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk of 19 digits": CHUNKED + b"fffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "chunk that is longer": CHUNKED + b"3\r\nabcd0\r\n\r\n",
    "chunk with LF alone": CHUNKED + b"3\nabc\n0\n\n",
    "extension with LF": CHUNKED + b"3;\n\r\nabc\r\n0\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nhost: localhost\r\na: b\0c\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nhost: localhost\r\na\0: b\r\n\r\n",
    "CR alone": b"GET / HTTP/1.1\r\nhost: localhost\r\na: b\rc: d\r\n\r\n",
    "CONNECT": b"CONNECT evil.example:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
    "blank in the path": b"GET /a b HTTP/1.1\r\nhost: localhost\r\n\r\n",
}
"""Requests that a proxy in front may read in another way, and so another number of them."""


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(gateway: Gateway, name: str) -> None:
    answer = answer_to(gateway, AMBIGUOUS[name] + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert status_of(answer) == 400, answer[:300]
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is no request"
    still_serves(gateway)


def test_a_request_in_a_body_is_no_request(gateway: Gateway) -> None:
    inner = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    for whole in (
        head + b"content-length: %d\r\n\r\n" % len(inner) + inner,
        head + b"transfer-encoding: chunked\r\n\r\n" + chunk,
    ):
        answer = answer_to(gateway, whole)
        assert status_of(answer) == 200
        assert answer.count(b"HTTP/1.1 ") == 1, answer


@pytest.mark.parametrize("kind", [b"h2c\r\nhttp2-settings: AAMAAABkAAQAAP__", b"websocket"])
def test_an_upgrade_is_not_made(gateway: Gateway, kind: bytes) -> None:
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: "
    answer = answer_to(gateway, head + kind + b"\r\n\r\n")
    assert status_of(answer) == 200
    assert b'{"status":"ok"}' in answer


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
