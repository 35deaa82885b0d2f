"""Endpoints over real sockets: order, outcomes, strangers, and nothing left open."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time

import pytest

from supervision import endpoint as endpoint_module
from supervision import unauthenticated as unauthenticated_module
from supervision.address import Address
from supervision.endpoint import LOOPBACK, Endpoint
from supervision.errors import TransportRefused
from supervision.host_context import HostContext
from supervision.host_session import ThreadEndpoint
from supervision.link import Outcome
from supervision.session import Secret
from supervision.unauthenticated import MAX_UNAUTHENTICATED
from tests.support.children import Echo

pytestmark = pytest.mark.system

SECRET = Secret(b"c" * 32, ("tests",))


@contextlib.contextmanager
def endpoints(*secrets: Secret):
    """Endpoints of one test; every descriptor is closed at the end."""
    before = set(os.listdir("/proc/self/fd"))
    made = [Endpoint(one) for one in secrets or (SECRET, SECRET)]
    try:
        yield made
    finally:
        for one in made:
            one.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def pump(until, *running: Endpoint, within_s: float = 30.0) -> None:
    """Let endpoints work, in turns, until something holds."""
    deadline = time.monotonic() + within_s
    while not until():
        assert time.monotonic() < deadline, "did not come about"
        for one in running:
            one.poll(0.005)


def test_messages_arrive_in_order_both_ways_over_one_connection():
    with endpoints() as (a, b):
        outcomes: list[Outcome] = []
        for number in range(500):
            a.send(b.address, Echo("r", number), outcomes.append)
        pump(lambda: len(b.inbox) == 500, a, b)
        assert [message.payload for _, message in b.inbox] == list(range(500))
        assert {sender for sender, _ in b.inbox} == {a.address}
        fds = len(b.filenos())
        for number in range(500):
            b.send(a.address, Echo("r", -number))
        pump(lambda: len(a.inbox) == 500, a, b)
        assert [message.payload for _, message in a.inbox] == [-n for n in range(500)]
        assert len(b.filenos()) == fds, "the answer took another connection"
        pump(lambda: len(outcomes) == 500, a, b)
        assert set(outcomes) == {Outcome.ARRIVED}
        assert a.backlog(b.address) == 0


def test_two_that_connect_to_each_other_at_once_lose_and_reorder_nothing():
    with endpoints() as (a, b):
        for number in range(100):
            a.send(b.address, Echo("r", number))
            b.send(a.address, Echo("r", number))
        pump(lambda: len(a.inbox) == len(b.inbox) == 100, a, b)
        for number in range(100, 200):
            a.send(b.address, Echo("r", number))
            b.send(a.address, Echo("r", number))
        pump(lambda: len(a.inbox) == len(b.inbox) == 200, a, b)
        for one in (a, b):
            assert [message.payload for _, message in one.inbox] == list(range(200))


def test_acknowledgements_without_a_waiter_are_sent_together():
    with endpoints() as (a, b):
        lazy: list[Outcome] = []
        prompt: list[Outcome] = []
        a.send(b.address, Echo("r"), lazy.append)
        pump(lambda: b.inbox, a, b)
        a.poll(0)
        assert not lazy
        a.send(b.address, Echo("r"), prompt.append, prompt=True)
        pump(lambda: prompt, a, b)
        assert lazy == prompt == [Outcome.ARRIVED]
        a.send(b.address, Echo("r"), lazy.append)
        pump(lambda: len(lazy) == 2, a, b)


def test_closing_acknowledges_what_was_received():
    with endpoints() as (a, b):
        outcomes: list[Outcome] = []
        a.send(b.address, Echo("r"), outcomes.append)
        pump(lambda: b.inbox, a, b)
        assert not outcomes
        b.close()
        pump(lambda: outcomes, a)
        assert outcomes == [Outcome.ARRIVED]


def test_undelivered_messages_are_refused():
    with endpoints() as (a, b):
        gone = b.address
        b.close()
        outcomes: list[Outcome] = []
        a.send(gone, Echo("r"), outcomes.append)
        pump(lambda: outcomes, a)
        assert outcomes == [Outcome.REFUSED]
        assert a.filenos() == a.filenos()[:3], "the connection is still open"


def test_what_left_and_was_not_acknowledged_is_unknown():
    with endpoints() as (a, b):
        outcomes: list[Outcome] = []
        a.send(b.address, Echo("r"))
        pump(lambda: b.inbox, a, b)
        a.send(b.address, Echo("r"), outcomes.append)
        a.poll(0)
        b.close()  # it has not read it
        pump(lambda: outcomes, a)
        assert outcomes == [Outcome.UNKNOWN]


def test_what_was_not_read_before_an_orderly_end_is_refused():
    with endpoints() as (a, b):
        outcomes: list[Outcome] = []
        a.send(b.address, Echo("r", "read"), outcomes.append)
        pump(lambda: b.inbox, a, b)
        b.send(a.address, Echo("r", "last words"))
        b.announce_end()
        a.send(b.address, Echo("r", "unread"), outcomes.append)
        b.close()
        pump(lambda: len(outcomes) == 2, a)
        assert outcomes == [Outcome.ARRIVED, Outcome.REFUSED]
        assert [message.payload for _, message in a.inbox] == ["last words"]
        assert not a.is_connected(b.address)


def test_what_was_sent_before_an_orderly_end_is_read_though_writing_fails():
    with endpoints() as (a, b):
        outcomes: list[Outcome] = []
        a.send(b.address, Echo("r"), outcomes.append)
        pump(lambda: b.inbox, a, b)
        b.send(a.address, Echo("r", "last words"))
        b.announce_end()
        a.send(b.address, Echo("r", "unread"), outcomes.append)
        b.close()  # it leaves something unread: the kernel resets the connection
        for _ in range(3):
            a.send(b.address, Echo("r"), outcomes.append)
        pump(lambda: len(outcomes) == 5, a)
        assert outcomes == [Outcome.ARRIVED] + [Outcome.REFUSED] * 4
        assert [message.payload for _, message in a.inbox] == ["last words"]


def test_a_host_reads_everything_that_a_process_sent_before_it_ended():
    with endpoints(SECRET) as (b,), contextlib.closing(HostContext(SECRET)) as host:
        b.send(host.address, Echo("r", "first"))
        pump(lambda: host.receive(0.01), b)
        more_than_one_read = 200
        for _ in range(more_than_one_read):
            b.send(host.address, Echo("r", bytes(2000)))
        b.send(host.address, Echo("r", "last words"))
        ending = threading.Thread(target=lambda: (b.announce_end(), b.close()))
        ending.start()
        received = list(host.receive_until_closed(b.address))
        ending.join()
        assert len(received) == more_than_one_read + 1
        assert received[-1] == Echo("r", "last words")


def test_a_thread_that_is_late_takes_what_was_read_for_it():
    with endpoints(SECRET) as (b,), contextlib.closing(HostContext(SECRET)) as host:
        line = ThreadEndpoint(host, (1, 1), threading.current_thread(), lambda _: None)
        for ref in ("another", "wanted"):
            b.send(host.address, Echo(ref))
        pump(lambda: host._poll(0.01) or len(host._endpoint.inbox) == 2, b)
        assert line.next("wanted", time.monotonic() - 1.0) == Echo("wanted")
        assert line.next("wanted", time.monotonic() - 1.0) is None


def test_an_address_that_another_process_has_now_is_connected_again():
    with endpoints() as (a, b):
        a.send(b.address, Echo("r", "first"))
        pump(lambda: b.inbox, a, b)
        port = b.address.port
        b.close()
        pump(lambda: len(a.filenos()) == 3, a)
        again = Endpoint(SECRET, port=port)
        try:
            a.send(again.address, Echo("r", "second"))
            pump(lambda: again.inbox, a, again)
            assert again.inbox[0][1] == Echo("r", "second")
        finally:
            again.close()


def test_another_nodes_endpoint_gets_nothing():
    with endpoints(SECRET, Secret(b"d" * 32, ("tests",))) as (a, b):
        outcomes: list[Outcome] = []
        a.send(b.address, Echo("r", "secret"), outcomes.append)
        pump(lambda: outcomes, a, b)
        assert outcomes == [Outcome.REFUSED]
        assert not b.inbox


def test_a_process_on_the_port_of_an_ended_one_receives_no_message(monkeypatch):
    monkeypatch.setattr(unauthenticated_module, "AUTHENTICATION_S", 0.2)
    with socket.create_server((LOOPBACK, 0)) as squatter, endpoints(SECRET) as (a,):
        outcomes: list[Outcome] = []
        a.send(Address(LOOPBACK, squatter.getsockname()[1]), Echo("r", "secret"), outcomes.append)
        peer, _ = squatter.accept()
        with peer:
            pump(lambda: outcomes, a)
            assert outcomes == [Outcome.REFUSED]
            heard = peer.recv(1000)
        assert len(heard) == 19
        assert heard.startswith(b"LA1")


def test_the_number_of_unauthenticated_connections_is_bounded():
    with endpoints() as (a, b):
        strangers = []
        try:
            for _ in range(MAX_UNAUTHENTICATED + 100):
                strangers.append(socket.create_connection((LOOPBACK, b.address.port)))
                b.poll(0)
            pump(lambda: b.refused >= 100, b)
            assert len(b.filenos()) <= MAX_UNAUTHENTICATED + 3
            outcomes: list[Outcome] = []
            a.send(b.address, Echo("r"), outcomes.append, prompt=True)
            pump(lambda: outcomes, a, b)
            assert outcomes == [Outcome.ARRIVED]
        finally:
            for one in strangers:
                one.close()


@pytest.mark.parametrize("said", [b"", b"L", b"LA1", b"LA1" + b"n" * 16, b"GET / HTTP/1.1\r\n"])
def test_an_unauthenticated_connection_is_closed_after_its_time(monkeypatch, said):
    monkeypatch.setattr(unauthenticated_module, "AUTHENTICATION_S", 0.1)
    with endpoints(SECRET) as (a,), socket.create_connection((LOOPBACK, a.address.port)) as peer:
        peer.sendall(said)
        pump(lambda: a.refused == 1, a)
        assert len(a.filenos()) == 3
        peer.settimeout(2)
        with contextlib.suppress(ConnectionResetError):
            while peer.recv(100):
                pass


def test_a_target_that_reads_nothing_delays_no_other_and_fills_no_memory(monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_WAITING", 50)
    with endpoints(SECRET, SECRET, SECRET) as (a, stuck, lively):
        outcomes: list[Outcome] = []
        for _ in range(60):
            a.send(stuck.address, Echo("r", b"x" * 1000), outcomes.append)
        a.send(lively.address, Echo("r"))
        pump(lambda: lively.inbox, a, lively)
        assert outcomes == [Outcome.REFUSED] * 10
        assert a.backlog(stuck.address) == 50
        pump(lambda: len(stuck.inbox) == 50, a, stuck)


def test_what_waits_for_a_stuck_target_is_bounded_in_bytes_too(monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_WAITING_BYTES", 8 << 20)
    with endpoints(SECRET, SECRET) as (a, stuck):
        outcomes: list[Outcome] = []
        for _ in range(12):
            a.send(stuck.address, Echo("r", bytes(1 << 20)), outcomes.append)
        a.poll(0)
        refused = len(outcomes)
        assert outcomes == [Outcome.REFUSED] * refused
        assert 3 <= refused <= 4
        pump(lambda: len(stuck.inbox) == 12 - refused, a, stuck)
        a.send(stuck.address, Echo("r", "again"))
        pump(lambda: stuck.inbox[-1][1] == Echo("r", "again"), a, stuck)


def test_large_messages_arrive_whole_and_too_large_ones_are_refused_by_name():
    with endpoints() as (a, b):
        big = os.urandom(8 << 20)
        a.send(b.address, Echo("r", big))
        a.send(b.address, Echo("r", "after"))
        pump(lambda: len(b.inbox) == 2, a, b, within_s=30)
        assert b.inbox[0][1].payload == big
        with pytest.raises(TransportRefused, match="Echo of 1677"):
            a.send(b.address, Echo("r", bytes(16 << 20)))
        a.send(b.address, Echo("r", "still there"))
        pump(lambda: len(b.inbox) == 3, a, b)


def test_a_message_that_waits_can_be_taken_back_and_one_that_left_cannot():
    with endpoints() as (a, b):
        waiting = a.send(b.address, Echo("r", "taken back"))
        assert a.cancel(b.address, waiting)
        sent = a.send(b.address, Echo("r", "kept"))
        pump(lambda: b.inbox, a, b)
        assert not a.cancel(b.address, sent)
        assert [message.payload for _, message in b.inbox] == ["kept"]


def test_it_wakes_up_for_watched_descriptors_and_for_other_threads():
    with endpoints(SECRET) as (a,):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            a.watch([fd, fd])
            assert a.poll(0) == []
            os.eventfd_write(fd, 1)
            assert a.poll(5) == [fd]
            a.watch([])
            assert a.poll(0) == []
        finally:
            os.close(fd)
        waker = threading.Timer(0.05, a.wake)
        waker.start()
        began = time.monotonic()
        a.poll(5)
        assert time.monotonic() - began < 4
        waker.join()


def test_it_reaches_itself():
    with endpoints(SECRET) as (a,):
        outcomes: list[Outcome] = []
        a.send(a.address, Echo("r", 1), outcomes.append)
        a.poll(0)
        assert a.inbox.popleft() == (a.address, Echo("r", 1))
        assert outcomes == [Outcome.ARRIVED]


def test_it_accepts_again_when_descriptors_are_free_again():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with endpoints() as (a, b):
        in_use = max(int(one) for one in os.listdir("/proc/self/fd"))
        peers: list[socket.socket] = []
        try:
            peers = [socket.create_connection((LOOPBACK, b.address.port)) for _ in range(3)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 2, hard))
            for _ in range(20):
                b.poll(0.01)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in peers:
                one.close()
            a.send(b.address, Echo("r"))
            pump(lambda: b.inbox, a, b)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in peers:
                one.close()


def test_the_end_of_a_child_process_is_noticed_once_and_its_descriptor_closed():
    with endpoints(SECRET) as (a,):
        before = len(os.listdir("/proc/self/fd"))
        children = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
        for child in children:
            a.watch_process(child.pid)
        assert set(a.filenos()) >= set(a._pidfds)
        a.poll(0.0)
        assert not a.ended
        for child in children:
            child.kill()
        pump(lambda: len(a.ended) == 3, a)
        assert sorted(a.ended) == sorted(child.pid for child in children)
        a.ended.clear()
        a.poll(0.01)
        assert not a.ended
        for child in children:
            child.wait()
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_endpoint_watches_no_process_any_more():
    before = len(os.listdir("/proc/self/fd"))
    with endpoints(SECRET) as (a,), subprocess.Popen(["sleep", "60"]) as child:
        a.watch_process(child.pid)
        a.close()
        child.kill()
    assert len(os.listdir("/proc/self/fd")) == before
