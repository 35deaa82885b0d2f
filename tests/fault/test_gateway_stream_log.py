"""The log of an answer: what was written is read, a cut log up to its last whole record."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from native.backend import Logprobs
from runtime.client.results import Event, PrefillEvent, TokenEvent, ToolCallEvent
from runtime.gateway.keys import ANYONE
from runtime.gateway.stream_log import (
    HELD,
    MAX_TAKEN,
    MAX_TAKEN_AT_ALL,
    Logged,
    LoggedHead,
    Mark,
    Received,
    ReceivedLog,
    StreamLog,
    accepted,
    content,
    read_log,
    read_received,
)
from supervision.shelf import ShelfClient

pytestmark = pytest.mark.fault

RECORDS: list[tuple[list[tuple[int, Event | Mark]], bytes]] = [
    ([(-1, Mark("begin")), (0, PrefillEvent(3, 9, 0))], b"HTTP/1.1 200 OK\r\n\r\n"),
    ([(0, TokenEvent(0, (7, 1 << 31), "häß ")), (0, TokenEvent(2, (), "x"))], b"data: 1\n\n"),
    ([], b":\n\n"),
    ([(1, TokenEvent(0, (8,), "", (Logprobs(-0.5, ((8, -0.5),)),), "thinking"))], b"data: 2\n\n"),
    ([(0, ToolCallEvent(0, "call_1", "read", '{"a":')), (-1, Mark("end"))], b"data: 3\n\n"),
]


class Shelf:
    """Keeps a copy of the log, as the launcher does."""

    def __init__(self) -> None:
        self.fd = -1

    def keep(self, name: str, fds: list[int]) -> bool:
        assert name in ("gateway/stream/0/req", "gateway/connection/0/c")
        self.fd = os.dup(fds[1])
        return True

    def forget(self, name: str) -> bool:
        assert name == "gateway/stream/0/req"
        return True


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    os.close(shelf.fd)


HEAD = LoggedHead(
    call_id="req", connection_id="c", method="POST", path="/v1/chat/completions", query=b"",
    headers=[(b"host", b"localhost")], body=b"{}", key=ANYONE, answer_id="ab", created=1, seed=2,
    base=0, at=3.0,
)  # fmt: skip


def begun(shelf: Shelf) -> StreamLog:
    kept = cast(ShelfClient, cast(Any, shelf))
    with socket.socket() as sock:
        log = StreamLog.begin(kept, "gateway/stream/0/req", sock, HEAD)
    assert log is not None
    return log


def written(log: StreamLog) -> None:
    for items, data in RECORDS:
        for number, item in items:
            log.note(number, item)
        log.wrote(data)


def found_in(shelf: Shelf) -> Logged:
    found = read_log(shelf.fd)
    assert found is not None
    return found


def test_what_was_written_is_read(shelf: Shelf) -> None:
    log = begun(shelf)
    written(log)
    found = found_in(shelf)
    assert found.head == HEAD
    assert found.items == [one for items, _ in RECORDS for one in items]
    assert found.data == b"".join(data for _, data in RECORDS)
    assert found.marks == {"begin", "end"}
    log.drop()


def test_a_log_that_is_cut_anywhere_has_its_whole_records(shelf: Shelf) -> None:
    log = begun(shelf)
    ends = [os.lseek(shelf.fd, 0, os.SEEK_END)]
    for items, data in RECORDS:
        for number, item in items:
            log.note(number, item)
        log.wrote(data)
        ends.append(os.fstat(shelf.fd).st_size)
    log.drop()
    whole = content(shelf.fd)
    for size in range(len(whole), -1, -1):
        os.ftruncate(shelf.fd, size)
        found = read_log(shelf.fd)
        if size < ends[0]:
            assert found is None
            continue
        n_whole = sum(end <= size for end in ends) - 1
        assert found is not None
        assert found.n_bytes == ends[n_whole]
        assert found.items == [one for items, _ in RECORDS[:n_whole] for one in items]
        assert found.data == b"".join(data for _, data in RECORDS[:n_whole])


def test_short_takeovers_in_a_row_give_an_answer_up(shelf: Shelf) -> None:
    log = begun(shelf)

    def taken(times: int) -> bool:
        for _ in range(times):
            assert not found_in(shelf).is_given_up
            log.take(found_in(shelf).n_bytes)
        return found_in(shelf).is_given_up

    assert taken(MAX_TAKEN)
    log.remember(HELD, "")
    assert not taken(MAX_TAKEN - 1)
    log.wrote(b"data: 1\n\n")
    assert taken(MAX_TAKEN)
    for _ in range(MAX_TAKEN, MAX_TAKEN_AT_ALL):
        log.remember(HELD, "")
        assert not taken(0)
        log.take(found_in(shelf).n_bytes)
    log.remember(HELD, "")
    assert found_in(shelf).is_given_up
    log.drop()


# ── connections between answers ─────────────────────────────────────────────────────────────────


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection's two ends: the server's, and its client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield server, client


def received_log(shelf: Shelf, server: socket.socket) -> ReceivedLog:
    log = ReceivedLog.prepare(cast(ShelfClient, cast(Any, shelf)), "gateway/connection/0/c")
    assert log is not None
    assert log.keep(server)
    return log


Pair = tuple[socket.socket, socket.socket]


def test_what_came_on_a_connection_is_read_again(shelf: Shelf, pair: Pair) -> None:
    log = received_log(shelf, pair[0])
    log.add(b"GET /")
    assert read_received(shelf.fd, pair[0]) == Received(b"GET /")


def test_a_connection_goes_on_after_a_whole_answer(shelf: Shelf, pair: Pair) -> None:
    server, _ = pair
    log = received_log(shelf, server)
    log.add(b"GET /")
    log.answers(accepted(server) + 5)
    assert read_received(shelf.fd, server) is None  # nothing of it is sent
    server.sendall(b"Hel")
    assert read_received(shelf.fd, server) is None
    server.sendall(b"lo")
    assert read_received(shelf.fd, server) == Received()
    log.clear()
    log.add(b"more")
    assert read_received(shelf.fd, server) == Received(b"more")


def test_a_connection_in_an_answer_of_unknown_length_is_closed(shelf: Shelf, pair: Pair) -> None:
    server, _ = pair
    log = received_log(shelf, server)
    log.answers()
    server.sendall(b"Hello")
    assert read_received(shelf.fd, server) is None
