"""The descriptor shelf: what lies there outlives the process that put it there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervision.errors import NodeNotRunning
from supervision.node_file import RuntimeDir
from supervision.shelf import MAX_PACKET, ShelfClient
from supervision.spec import Strategy, SupervisorSpec
from tests.support.nodes import RunningNode, running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    long = "a folder whose name is longer than the path of a socket may be "
    folder = tmp_path_factory.mktemp(long * 2)
    with running_node(SupervisorSpec(Strategy.ONE_FOR_ONE), folder) as found:
        yield found


@pytest.fixture
def shelf(node: RunningNode) -> Iterator[ShelfClient]:
    client = ShelfClient(node.config.runtime_dir, cookie(node.config.runtime_dir))
    yield client
    for name in client.names():
        client.drop(name)
    client.close()


def cookie(folder: Path) -> bytes:
    found = RuntimeDir(folder).cookie()
    assert found is not None
    return found


def test_there_may_be_more_names_than_a_packet_holds(shelf: ShelfClient) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    wanted = [f"many/{'x' * 200}/{number:04}" for number in range(700)]
    for name in wanted:
        assert shelf.put(name, [reader])
    os.close(reader)
    assert shelf.names("many/") == wanted
    for name in wanted:
        shelf.forget(name)
    shelf.flush()
    eventually(lambda: not shelf.names("many/"), what="all are gone")


def test_a_pipe_stays_open_after_its_owner_has_closed_it(
    shelf: ShelfClient, node: RunningNode
) -> None:
    reader, writer = os.pipe()
    assert shelf.put("pipe", [reader, writer], b"about it")
    os.close(reader)
    os.close(writer)
    other = ShelfClient(node.config.runtime_dir, cookie(node.config.runtime_dir))
    assert other.names("pi") == ["pipe"]
    assert other.names("x") == []
    found = other.get("pipe")
    other.close()
    assert found is not None
    assert found.data == b"about it"
    os.write(found.fds[1], b"hello")
    assert os.read(found.fds[0], 9) == b"hello"
    for fd in found.fds:
        os.close(fd)
    assert shelf.drop("pipe")
    assert shelf.get("pipe") is None
    assert not shelf.drop("pipe")


def test_what_is_replaced_or_dropped_is_closed(shelf: ShelfClient) -> None:
    reader, writer = os.pipe()
    shelf.put("one", [writer])
    os.close(writer)
    other = os.open("/dev/null", os.O_RDONLY)
    assert shelf.keep("one", [other])
    os.close(other)
    assert shelf.names() == ["one"]
    assert os.read(reader, 1) == b"", "the end of the pipe: its last writer is closed"
    os.close(reader)
    assert shelf.forget("one")
    eventually(lambda: shelf.names() == [], what="it is gone")


def test_another_cookie_is_refused(node: RunningNode) -> None:
    with pytest.raises(NodeNotRunning):
        ShelfClient(node.config.runtime_dir, b"x" * 32)


@pytest.mark.parametrize("packet", [b"\xc1", b"\x93\x01", b"x" * MAX_PACKET, b"\x91\xa4nope"])
def test_junk_ends_its_connection_and_nothing_else(
    node: RunningNode, shelf: ShelfClient, packet: bytes
) -> None:
    junk = ShelfClient(node.config.runtime_dir, cookie(node.config.runtime_dir))
    junk._socket.sendmsg([packet])
    assert junk._socket.recv(100) == b""
    junk.close()
    assert shelf.names() == []


def test_a_connection_that_does_not_read_holds_nobody_up(
    node: RunningNode, shelf: ShelfClient
) -> None:
    lazy = ShelfClient(node.config.runtime_dir, cookie(node.config.runtime_dir))
    lazy._socket.setblocking(False)
    sent = 0
    try:
        while sent < 10_000:
            lazy._socket.send(b"\x92\xa5names\xa0")
            sent += 1
    except OSError:
        pass
    assert shelf.names() == []
    lazy.close()


def test_processes_of_the_node_do_not_inherit_what_lies_there(
    shelf: ShelfClient, node: RunningNode
) -> None:
    """Neither those that run, nor those of the next boot."""
    reader, writer = os.pipe()
    shelf.put("pipe", [writer])
    os.close(writer)
    boot = node.record.boot
    os.kill(node.record.root_pid, 9)
    eventually(lambda: node.folder.read() and node.record.boot > boot, what="the next boot")
    found = shelf.get("pipe")
    assert found is not None, "the shelf is the launcher's, and outlives a boot"
    os.close(found.fds[0])
    shelf.drop("pipe")
    assert os.read(reader, 1) == b"", "no process of the node holds the other end"
    os.close(reader)


def test_a_listening_socket_keeps_its_queue(shelf: ShelfClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        shelf.put("listener", [server.fileno()])
    waiting = socket.create_connection(address)
    waiting.sendall(b"hi")
    found = shelf.get("listener")
    assert found is not None
    again = socket.socket(fileno=found.fds[0])
    peer, _ = again.accept()
    assert peer.recv(9) == b"hi"
    for one in (peer, again, waiting):
        one.close()
