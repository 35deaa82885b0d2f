"""Many peers of the gateway at once: the memory stays bounded, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervision.process import memory
from tests.support import gateway_crowd
from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

MIB = 1 << 20
MAX_BODIES = 64 * MIB
BODY = 30 * MIB
PIECE = b" " * MIB
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
CROWD = 10_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("crowds")
    with (
        LeakCheck() as leaks,
        gateway_node(folder, max_bodies=MAX_BODIES, idle_s=15.0, body_s=60.0) as found,
    ):
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


class Watched:
    """The memory of the HTTP worker, and of the logs that it keeps in memory files; in bytes."""

    def __init__(self, gateway: Gateway) -> None:
        self.pid = pid_of(gateway.node, "http:0")
        self.before = self.now()

    def now(self) -> int:
        found = memory(self.pid)
        assert found is not None
        return found[0] + self._logs()

    def _logs(self) -> int:
        sizes = 0
        for one in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "memfd:llama-actors" in os.readlink(one):
                    sizes += one.stat().st_size
        return sizes

    @property
    def grown(self) -> int:
        return self.now() - self.before


def status_of(sock: socket.socket) -> int:
    """The status of the answer that has come, 0: none has."""
    sock.settimeout(0.01)
    with contextlib.suppress(OSError):
        got = sock.recv(4096)
        return int(got.split(b" ", 2)[1]) if got else 0
    return 0


def served(gateway: Gateway) -> float:
    """Seconds that a small request takes."""
    began = time.monotonic()
    body = {"prompt": "Once", "max_tokens": 1, "temperature": 0}
    assert gateway.post("/v1/completions", body).status == 200
    return time.monotonic() - began


def test_many_big_bodies_at_once_have_one_bound(gateway: Gateway) -> None:
    watched = Watched(gateway)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(contextlib.closing(gateway.raw())) for _ in range(16)]
        for sock in peers:
            sock.sendall(HEAD % BODY)
        refused: dict[socket.socket, int] = {}
        most = 0
        for number in range(28):  # less than their length, so none is answered
            for sock in peers:
                if sock not in refused:
                    with contextlib.suppress(OSError):
                        sock.settimeout(10.0)
                        sock.sendall(PIECE)
                    if status := status_of(sock):
                        refused[sock] = status
            if number % 7 == 0:
                most = max(most, watched.grown)
                assert served(gateway) < 10.0
        most = max(most, watched.grown)
        assert set(refused.values()) == {503}
        assert 1 <= len(peers) - len(refused) <= MAX_BODIES // (28 * MIB)
        # The pieces as they come, and the logs from which a next worker would read them.
        print(f"{most / MIB:.0f} MiB at most")
        assert most < 2 * MAX_BODIES + 48 * MIB, f"{most / MIB:.0f} MiB"
        answer = gateway.call("POST", "/v1/completions", b" " * (30 * MIB))
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
    eventually(
        lambda: gateway.call("POST", "/v1/completions", b" " * (30 * MIB)).status == 400,
        what="there is room again: the body is read, and it is no JSON",
    )


def test_the_room_of_an_answered_body_is_free_again(gateway: Gateway) -> None:
    """On one connection, more than the bound together."""
    connection = gateway.connect()
    for _ in range(6):
        connection.request("POST", "/v1/completions", b" " * (20 * MIB))
        answer = connection.getresponse()
        assert answer.status == 400, answer.read()
        answer.read()
    connection.close()


def test_two_requests_at_once_give_their_room_back(gateway: Gateway) -> None:
    """The second comes in the same packet, and is counted on the same connection."""
    body = b" " * (100 << 10)
    one = HEAD % len(body) + body
    last = one.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    for _ in range(MAX_BODIES // (2 * len(body)) + 20):
        with contextlib.closing(gateway.raw()) as sock:
            sock.sendall(one + last)
            got = b""
            with contextlib.suppress(ConnectionResetError):
                while more := sock.recv(65536):
                    got += more
        assert got.startswith(b"HTTP/1.1 400 "), got[:200]
        assert b" 503 " not in got
    for _ in range(2):
        whole = gateway.call("POST", "/v1/completions", b" " * (30 * MIB))
        assert whole.status == 400


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_of_100_mib_is_refused_while_it_comes(gateway: Gateway, is_chunked: bool) -> None:
    watched = Watched(gateway)
    began = time.monotonic()
    chunked = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    piece = b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if is_chunked else PIECE
    with contextlib.closing(gateway.raw()) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(chunked if is_chunked else HEAD % (100 * MIB))
            for _ in range(100):
                sock.sendall(piece)
        got = b""
        with contextlib.suppress(OSError):
            while more := sock.recv(65536):
                got += more
    assert b" 413 " in got[:20]
    assert time.monotonic() - began < 20.0
    assert watched.grown < 100 * MIB
    assert served(gateway) < 10.0


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"{}," * (10 * MIB) + b"{}]}",
        b'{"messages": [' + b"[]," * (10 * MIB) + b"{}]}",
        b'{"prompt": [' + b"300," * (7 * MIB) + b"300]}",
        b'{"prompt": "x", "logit_bias": {' + b",".join(b'"%d":0' % n for n in range(10**6)) + b"}}",
        b'{"messages": [' + b'{"role":"user","content":"x"},' * 900_000 + b"{}]}",
        b'{"messages": [{"role": "user", "content": "' + b"x" * (30 * MIB) + b'"}]}',
        b'{"prompt": [' + b"1," * (14 * MIB) + b"1]}",
        b'{"prompt": "x", "metadata": {' + b",".join(b'"%d":0' % n for n in range(10**6)) + b"}}",
    ],
    ids=[
        "empty objects",
        "empty lists",
        "bigger numbers",
        "biases",
        "messages",
        "text",
        "numbers",
        "names",
    ],
)
def test_giant_json_is_refused_and_others_are_served(gateway: Gateway, body: bytes) -> None:
    path = "/v1/chat/completions" if b"messages" in body[:20] else "/v1/completions"
    watched = Watched(gateway)
    found: list[int] = []
    sender = threading.Thread(target=lambda: found.append(gateway.call("POST", path, body).status))
    sender.start()
    slowest, most = 0.0, 0
    while sender.is_alive():
        slowest = max(slowest, served(gateway))
        most = max(most, watched.grown)
    sender.join()
    print(found, f"{slowest:.2f} s, {most / MIB:.0f} MiB")
    assert found in ([400], [413], [200])
    assert slowest < 5.0
    assert most < 320 * MIB


def test_ten_thousand_connections_at_once(gateway: Gateway) -> None:
    """As many as the gateway takes are held until they are idle for too long; the others get 503.

    One that was there before is served all the time, and afterwards new ones are.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    number = min(CROWD, hard - gateway_crowd.SPARE_FDS) if hard > 0 else CROWD
    assert number >= 5_000, f"a limit of {hard} descriptors is too low for this test"
    watched = Watched(gateway)
    there = gateway.connect()
    with subprocess.Popen(
        [sys.executable, gateway_crowd.__file__, str(gateway.port), str(number)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        slowest, most = 0.0, 0
        while process.poll() is None:
            began = time.monotonic()
            there.request("GET", "/v1/models")
            answer = there.getresponse()
            assert answer.status == 200
            answer.read()
            slowest = max(slowest, time.monotonic() - began)
            most = max(most, watched.grown)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert process.returncode == 0
    there.close()
    found = json.loads(lines[-1])
    assert found["opened"] == number
    assert found["left"] == 0
    assert found["refused"] + found["closed"] == number
    assert found["refused"] > 500
    assert slowest < 10.0
    print(found, f"{most / MIB:.0f} MiB, {slowest:.2f} s")
    assert most < 160 * MIB, f"{most / MIB:.0f} MiB"
    assert pid_of(gateway.node, "http:0") == watched.pid, "its worker has not ended"
    assert served(gateway) < 10.0
