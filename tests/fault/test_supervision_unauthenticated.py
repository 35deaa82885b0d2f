"""Unauthenticated at the door of a real node: they run nothing, stop nothing and cost nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervision.address import Address
from supervision.endpoint import Endpoint
from supervision.link import Outcome
from supervision.messages import Shutdown, new_ref
from supervision.session import Secret
from supervision.spec import ChildSpec, Strategy, SupervisorSpec
from supervision.unauthenticated import MAX_UNAUTHENTICATED
from tests.support.children import Echo, Echoed
from tests.support.nodes import RunningNode, running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

TREE = SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", "tests.support.children.GoodChild"),))


def doors(node: RunningNode) -> list[int]:
    """The ports of the Admin, the root and a worker."""
    a = node.entry("a")
    assert a.address is not None
    return [node.config.port, node.record.root_address.port, a.address.port]


def answers(node: RunningNode, *, within_s: float = 30.0) -> Echoed:
    answer = node.connect().ask("a", Echo(new_ref()), timeout_s=within_s)
    assert isinstance(answer, Echoed)
    return answer


class Bomb:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def attacks(mark: Path) -> dict[str, bytes]:
    bomb = pickle.dumps(("sender", Bomb(f"touch {mark}")))
    hello = b"LA1" + b"n" * 16
    return {
        "a pickle as Thespian frames it": b"%d>" % len(bomb) + bomb,
        "a pickle in a frame": hello + frame(bomb),
        "a pickle behind a false mac": hello + frame(b"m" * 16 + b"\x02" + bomb),
        "an identity without a proof": hello + frame(b"m" * 16 + b"\x01" + b"\x00\x50"),
        "two hellos": hello + hello,
        "a negative length": b"-5>" + b"x" * 50,
        "no length": hello + frame(b""),
        "a huge length": hello + b"\xff" * 4 + b"x" * 4096,
        "a length below the cap": hello + struct.pack(">I", 1 << 20) + b"x" * 4096,
        "a false start": b"LA2" + b"n" * 16,
        "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "noise": os.urandom(5000),
        "half a hello": b"LA",
        "half a frame": hello + frame(b"x" * 40)[:20],
        "Thespian's acknowledgement": pickle.dumps("ACK"),
    }


def test_messages_of_unauthenticated_peers_are_dropped(tmp_path):
    mark = tmp_path / "executed"
    with running_node(TREE, tmp_path) as node:
        before, pid = node.record, answers(node).pid
        for name, attack in attacks(mark).items():
            for port in doors(node):
                with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
                    peer.sendall(attack)
            assert answers(node).pid == pid, name
        assert not mark.exists()
        assert node.record == before
        assert node.process.poll() is None
        eventually(lambda: "refused" in node.log, what="a line in the log")


def test_a_peer_with_another_cookie_cannot_send_requests(tmp_path):
    with running_node(TREE, tmp_path) as node:
        pid = answers(node).pid
        stranger = Endpoint(Secret(b"w" * 32, ("tests",)))
        try:
            for port in doors(node):
                outcomes: list[Outcome] = []
                stranger.send(Address("127.0.0.1", port), Shutdown(), outcomes.append)
                eventually(lambda: stranger.poll(0.01) or outcomes, what="an outcome")  # noqa: B023
                assert outcomes == [Outcome.REFUSED]
        finally:
            stranger.close()
        assert answers(node).pid == pid


@contextlib.contextmanager
def many_descriptors(wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        pytest.skip(f"this machine allows {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0])


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_ten_thousand_connections_cost_a_counter_and_a_line(tmp_path):
    with running_node(TREE, tmp_path) as node, many_descriptors(11_000):
        root = node.record
        port = root.root_address.port
        pid = answers(node).pid
        before_kib, before_fds = resident_kib(root.root_pid), descriptors(root.root_pid)
        held: list[socket.socket] = []
        slowest_s = 0.0
        try:
            for number in range(10_000):
                peer = socket.socket()
                peer.setblocking(False)
                peer.connect_ex(("127.0.0.1", port))
                held.append(peer)
                if number % 500 == 499:  # the root is asked, and must find the time
                    began = time.monotonic()
                    assert node.connect().where("a", timeout_s=30) is not None
                    slowest_s = max(slowest_s, time.monotonic() - began)
            eventually(
                lambda: descriptors(root.root_pid) <= before_fds + MAX_UNAUTHENTICATED + 2,
                what="most of them are refused",
            )
            assert resident_kib(root.root_pid) - before_kib < 8 << 10
        finally:
            for peer in held:
                peer.close()
        assert slowest_s < 10.0
        assert answers(node).pid == pid
        assert node.record == root
        eventually(
            lambda: descriptors(root.root_pid) <= before_fds + 2, what="no descriptor is left open"
        )
        lines = [line for line in node.log.splitlines() if "refused" in line]
        assert 1 <= len(lines) <= 10


def test_a_thousand_half_frames_and_silent_peers_hold_nothing_up(tmp_path):
    with running_node(TREE, tmp_path) as node, many_descriptors(3_000):
        pid = answers(node).pid
        ports = doors(node)
        held = []
        try:
            for number in range(1_000):
                peer = socket.create_connection(("127.0.0.1", ports[number % 3]), timeout=30)
                held.append(peer)
                with contextlib.suppress(OSError):
                    peer.sendall(
                        (b"", b"LA1", b"LA1" + b"n" * 16 + b"\x00\x00\x00\x13m")[number % 3]
                    )
            assert answers(node, within_s=30).pid == pid
        finally:
            for peer in held:
                peer.close()
        assert answers(node).pid == pid
