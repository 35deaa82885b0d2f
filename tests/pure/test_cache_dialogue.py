"""Waiting for a save in flight: bounded, and only for rows that are really being saved."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from actors import messages as m
from actors.engine.batch_plan import admit
from actors.engine.request import Request
from actors.engine.request_builder import open_request
from actors.kv.cache_client import ASK_AGAIN_S, PARENT_UNKNOWN, CacheDialogue
from actors.kv.store import KvStore
from cache import tokens
from cache.answers import RAM, RowRequest
from cache.index import CacheIndex
from cache.keys import child_key
from cache.policy import SavePolicy
from native.params import ModelParams
from native.stub import StubBackend
from supervision import Address

pytestmark = pytest.mark.pure

IDS = list(range(10, 90))


class Clock:
    """Time that passes when the test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Talk:
    """A dialogue whose cache gives the answers of the test."""

    clock: Clock
    request: Request
    sent: list[object] = field(default_factory=list)
    settled: list[Request] = field(default_factory=list)
    wait_ms: int = 500

    def __post_init__(self) -> None:
        backend = StubBackend.load("stub", ModelParams(n_ctx=512))
        store = KvStore(
            backend,
            root=b"r" * 32,
            holder="model#1",
            label="model",
            arena_path="/nowhere",
            tier_dirs={},
            granted_by=lambda: 1,
            policy=SavePolicy(session_resume_wait_ms=self.wait_ms),
        )
        self.dialogue = CacheDialogue(
            store, lambda _, message: self.sent.append(message), self.settled.append
        )

    def answer(self, miss: str | None, lease: int = 0) -> None:
        ref = self.request.awaited_ref
        assert ref is not None
        found = m.PrefixResolved(ref, 0, b"\0\0\0\0\0\0", lease, miss)
        self.dialogue.resolved(found, [self.request])

    def wait(self) -> None:
        """Let the time come that the request waits for."""
        assert self.request.wait_until is not None
        self.clock.now = self.request.wait_until
        self.dialogue.time_is_up(self.request)

    def asked(self, kind: type) -> int:
        return sum(isinstance(message, kind) for message in self.sent)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


def request(parent_key: bytes | None = None) -> Request:
    backend = StubBackend.load("stub", ModelParams(n_ctx=512))
    complete = m.Complete("ref", "m", tokens.pack(IDS), tokens=True, parent_key=parent_key)
    opened = open_request(m.Run("id", Address("127.0.0.1", 1), complete), backend, now=0.0)
    if parent_key is None:
        opened.start(0, admit(len(IDS), 8, 512), backend, 0.0)
    return opened


def test_a_lookup_asks_again_while_the_rows_are_being_saved(clock: Clock) -> None:
    talk = Talk(clock, request())
    talk.dialogue.look_up(talk.request)
    for _ in range(3):
        talk.answer("being_written:0", lease=9)
        assert talk.request.wait_until == pytest.approx(clock.now + ASK_AGAIN_S)
        talk.wait()
    assert not talk.settled
    assert talk.asked(m.LookupPrefix) == 4
    assert talk.asked(m.ReleaseLease) == 3  # nothing stays leased while it waits
    talk.answer("not_stored:0")
    assert talk.settled == [talk.request]
    assert talk.request.lookup_ms == pytest.approx(3e3 * ASK_AGAIN_S)
    assert talk.request.wait_until is None


def test_the_wait_is_bounded_and_then_it_runs_without(clock: Clock) -> None:
    talk = Talk(clock, request(), wait_ms=100)
    began = clock.now
    talk.dialogue.look_up(talk.request)
    while not talk.settled:
        talk.answer("being_written:0")
        if not talk.settled:
            talk.wait()
    assert clock.now - began == pytest.approx(0.1)
    assert talk.request.miss_reason == "being_written:0"


@pytest.mark.parametrize(("miss", "wait_ms"), [("diverges:3", 500), ("being_written:0", 0)])
def test_other_misses_and_a_wait_of_zero_do_not_wait(clock: Clock, miss: str, wait_ms: int) -> None:
    talk = Talk(clock, request(), wait_ms=wait_ms)
    talk.dialogue.look_up(talk.request)
    talk.answer(miss)
    assert talk.settled == [talk.request]
    assert talk.asked(m.LookupPrefix) == 1


def test_a_parent_that_is_being_saved_is_waited_for_and_an_unknown_one_is_not(
    clock: Clock,
) -> None:
    talk = Talk(clock, request(b"p" * 32))
    talk.dialogue.resolve_parent(talk.request)
    talk.answer("being_written:0")
    assert talk.request.note is None
    talk.wait()
    assert talk.asked(m.ResolveParent) == 2
    talk.answer("parent_unknown")
    assert talk.request.wait_until is None
    assert talk.request.note == PARENT_UNKNOWN


def test_a_cache_that_exits_meanwhile_ends_the_wait(clock: Clock) -> None:
    talk = Talk(clock, request())
    talk.dialogue.look_up(talk.request)
    talk.answer("being_written:0")
    talk.dialogue.gone(talk.request)
    assert talk.settled == [talk.request]
    assert talk.request.miss_reason == "cache_down"
    assert not talk.request.asks_again


def test_the_index_reports_rows_that_are_being_written() -> None:
    index, root = CacheIndex(budgets={RAM: 1 << 20}), b"r" * 32
    packed = tokens.pack(IDS[:64])
    key = child_key(root, packed)
    assert not index.is_being_written(key)
    index.reserve(0.0, "model#1", [RowRequest(key, root, root, 0, packed, 4096)])
    assert index.is_being_written(key)
    index.publish(0.0, "model#1", key)
    assert not index.is_being_written(key)
