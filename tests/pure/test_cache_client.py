"""Waiting for a save in flight: bounded, and only for rows that are really being saved."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from actors import messages as m
from actors.engine.request_builder import open_request
from actors.engine.room_policy import admit
from actors.kv.cache_client import ASK_AGAIN_S, PARENT_UNKNOWN, CacheClient
from actors.kv.deferred_tails import DeferredTails
from actors.kv.open_store import open_store
from actors.kv.request_cache import RequestCache
from cache import tokens
from cache.answers import RAM, Miss, MissReason, RowRequest
from cache.index import CacheIndex
from cache.keys import child_key
from cache.policy import SavePolicy
from cache.rows import RowIdentity
from native.params import ModelParams
from native.stub import StubBackend
from supervision import Address

pytestmark = pytest.mark.pure

IDS = list(range(10, 90))
BEING_WRITTEN = Miss(MissReason.BEING_WRITTEN, 0)


@dataclass
class Talk:
    """A client of a cache with the answers and the time that the test sets."""

    request: RequestCache
    sent: list[object] = field(default_factory=list)
    settled: list[RequestCache] = field(default_factory=list)
    wait_ms: int = 500
    now: float = 1000.0

    def __post_init__(self) -> None:
        backend = StubBackend.load("stub", ModelParams(n_ctx=512))
        store = open_store(
            backend,
            root=b"r" * 32,
            holder="model#1",
            label="model",
            arena_path="/nowhere",
            tier_dirs={},
            granted_by=lambda: 1,
            policy=SavePolicy(session_resume_wait_ms=self.wait_ms),
        )

        def send(_: object, message: object) -> None:
            self.sent.append(message)

        tails = DeferredTails(store, send, [], list)
        self.client = CacheClient(store, send, self.settled.append, tails)

    def look_up(self) -> None:
        self.client.look_up(self.request, self.now)

    def answer(self, miss: Miss | None, lease: int = 0) -> None:
        ref = self.request.awaited_ref
        assert ref is not None
        found = m.PrefixResolved(ref, 0, b"\0\0\0\0\0\0", lease, miss)
        self.client.resolved(found, [self.request], self.now)

    def wait(self) -> None:
        """Let the time come that the request waits for."""
        assert self.request.wait_until is not None
        self.now = self.request.wait_until
        self.client.time_is_up(self.request, self.now)

    def asked(self, kind: type) -> int:
        return sum(isinstance(message, kind) for message in self.sent)


def request(parent_key: bytes | None = None) -> RequestCache:
    backend = StubBackend.load("stub", ModelParams(n_ctx=512))
    complete = m.Complete("ref", "m", m.TokenPrompt(tokens.pack(IDS)), parent_key=parent_key)
    opened = open_request(m.Run("id", Address("127.0.0.1", 1), complete), backend, now=0.0)
    if parent_key is None:
        admission = admit(len(IDS), 8, 512)
        opened.line.placed(0, (), admission.n_most)
        opened.start(admission, backend, 0.0)
    return opened.cache


def test_a_lookup_asks_again_while_the_rows_are_being_saved() -> None:
    talk = Talk(request())
    talk.look_up()
    for _ in range(3):
        talk.answer(BEING_WRITTEN, lease=9)
        assert talk.request.wait_until == pytest.approx(talk.now + ASK_AGAIN_S)
        talk.wait()
    assert not talk.settled
    assert talk.asked(m.LookupPrefix) == 4
    assert talk.asked(m.ReleaseLease) == 3  # nothing stays leased while it waits
    talk.answer(Miss(MissReason.NOT_STORED, 0))
    assert talk.settled == [talk.request]
    assert talk.request.lookup_ms == pytest.approx(3e3 * ASK_AGAIN_S)
    assert talk.request.wait_until is None


def test_the_wait_is_bounded_and_then_it_runs_without() -> None:
    talk = Talk(request(), wait_ms=100)
    began = talk.now
    talk.look_up()
    while not talk.settled:
        talk.answer(BEING_WRITTEN)
        if not talk.settled:
            talk.wait()
    assert talk.now - began == pytest.approx(0.1)
    assert talk.request.miss == BEING_WRITTEN


@pytest.mark.parametrize(
    ("miss", "wait_ms"), [(Miss(MissReason.DIVERGES, 3), 500), (BEING_WRITTEN, 0)]
)
def test_other_misses_and_a_wait_of_zero_do_not_wait(miss: Miss, wait_ms: int) -> None:
    talk = Talk(request(), wait_ms=wait_ms)
    talk.look_up()
    talk.answer(miss)
    assert talk.settled == [talk.request]
    assert talk.asked(m.LookupPrefix) == 1


def test_a_parent_that_is_being_saved_is_waited_for_and_an_unknown_one_is_not() -> None:
    talk = Talk(request(b"p" * 32))
    talk.client.resolve_parent(talk.request, talk.now)
    talk.answer(BEING_WRITTEN)
    assert talk.request.note is None
    talk.wait()
    assert talk.asked(m.ResolveParent) == 2
    talk.answer(Miss(MissReason.PARENT_UNKNOWN))
    assert talk.request.wait_until is None
    assert talk.request.note == PARENT_UNKNOWN


def test_a_cache_that_exits_meanwhile_ends_the_wait() -> None:
    talk = Talk(request())
    talk.look_up()
    talk.answer(BEING_WRITTEN)
    talk.client.gone(talk.request)
    assert talk.settled == [talk.request]
    assert talk.request.miss == Miss(MissReason.CACHE_DOWN)
    assert not talk.request.asks_again


def test_the_index_reports_rows_that_are_being_written() -> None:
    index, root = CacheIndex(budgets={RAM: 1 << 20}), b"r" * 32
    packed = tokens.pack(IDS[:64])
    key = child_key(root, packed)
    assert not index.is_being_written(key)
    index.reserve(0.0, "model#1", [RowRequest(RowIdentity(key, root, root, 0, packed), 4096)])
    assert index.is_being_written(key)
    index.publish(0.0, "model#1", key)
    assert not index.is_being_written(key)
