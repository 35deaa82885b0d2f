"""A port of a node is one that the kernel does not hand out by itself."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from supervision import ports

pytestmark = pytest.mark.pure


def test_a_port_lies_outside_of_the_ephemeral_range_of_the_kernel():
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(20):
        port = ports.free_port()
        assert port >= 10_000
        assert not low <= port <= high


def test_a_port_that_is_taken_is_not_given(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)):
        taken = one.getsockname()[1]
        (tmp_path / "range").write_text(f"10000 {taken - 1}\n")
        monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
        monkeypatch.setattr(random, "sample", lambda every, _n: [every[0], every[0]])
        port = ports.free_port()
        assert port not in (0, taken)


@pytest.mark.parametrize("text", ["1024 65535\n", "", "nonsense"])
def test_without_room_or_a_readable_range_there_is_a_port_all_the_same(tmp_path, monkeypatch, text):
    (tmp_path / "range").write_text(text)
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    assert 1024 <= ports.free_port() <= 65535
