"""Grammars of requests: compiled beside the engine, once; nothing else waits for them."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from actors import messages as m
from actors.messages.payload import PayloadKeeper, Spilled
from actors.model.grammar_service import GrammarService
from native import InvalidParam, SamplingParams
from native.sampling_params import MAX_GRAMMAR_BYTES
from supervision import Address
from tests.support.waiting import eventually

pytestmark = pytest.mark.pure

CALLER = Address("127.0.0.1", 1)
SLOW, BAD = 'root ::= "slow"', "root ::= root"


class Compiler:
    """A backend that compiles nothing: ``slow`` ones wait for ``go_on``, ``bad`` ones fail."""

    def __init__(self) -> None:
        self.known: list[str | None] = []
        self.go_on = threading.Event()

    def has_grammar(self, params: SamplingParams) -> bool:
        return params.grammar in self.known

    def compile_grammar(self, params: SamplingParams) -> None:
        if params.grammar == SLOW:
            assert self.go_on.wait(30)
        if params.grammar == BAD:
            raise InvalidParam("grammar", BAD, "left recursion")
        self.known.append(params.grammar)


class Desk:
    def __init__(self) -> None:
        self.backend = Compiler()
        self.ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.sent: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self.service = GrammarService(
            self.backend,  # type: ignore[arg-type]
            send=lambda to, message: self.sent.put((to, message)),
            run=self.ready.put,
        )

    def next_sampling(self) -> SamplingParams:
        run = self.ready.get(timeout=30)
        assert run.request.grammar is None
        sampling: SamplingParams = run.request.sampling
        return sampling


def asked(name: str, rules: m.Grammar | None = None, **more: Any) -> m.Run:
    request = m.Complete(name, "m", m.TextPrompt("x"), grammar=rules, **more)
    return m.Run(name, CALLER, request)


def rules(text: str, option: str = "grammar") -> m.Grammar:
    return m.Grammar(text.encode(), option)


@pytest.fixture
def desk() -> Any:
    made = Desk()
    yield made
    made.backend.go_on.set()
    made.service.close(m.FailReason.MODEL_UNLOADED, "over")


def test_a_request_without_a_grammar_passes_at_once(desk: Desk) -> None:
    run = asked("plain")
    desk.service.take(run)
    assert desk.ready.get_nowait() is run


def test_a_large_grammar_is_read_and_compiled_and_then_known(desk: Desk) -> None:
    text = 'root ::= "é" # ' + "x" * 100_000
    keeper = PayloadKeeper(text.encode())
    assert isinstance(keeper.payload, Spilled)
    desk.service.take(asked("first", m.Grammar(keeper.payload)))
    assert desk.next_sampling().grammar == text
    desk.service.take(asked("second", m.Grammar(keeper.payload)))
    assert desk.ready.get_nowait().request.sampling.grammar == text, "on the caller's thread"
    assert desk.backend.known == [text]
    keeper.close()


def test_nothing_waits_for_a_slow_grammar_but_what_must_be_compiled(desk: Desk) -> None:
    desk.service.take(asked("a", rules('root ::= "a"')))
    assert desk.next_sampling().grammar == 'root ::= "a"'
    desk.service.take(asked("slow", rules(SLOW), timeout_s=60.0))
    desk.service.take(asked("again", rules('root ::= "a"')))
    desk.service.take(asked("plain"))
    assert [desk.ready.get_nowait().request.ref for _ in range(2)] == ["again", "plain"]
    desk.backend.go_on.set()
    slow = desk.ready.get(timeout=30)
    assert slow.request.ref == "slow"
    assert 0 < slow.request.timeout_s < 60, "its time has begun"


def test_a_cancel_follows_its_request(desk: Desk) -> None:
    desk.service.take(asked("slow", rules(SLOW)))
    cancel = m.CancelRun("slow", awaits_end=False)
    assert desk.service.cancel(cancel)
    assert not desk.service.cancel(m.CancelRun("other"))
    desk.backend.go_on.set()
    assert desk.ready.get(timeout=30).request_id == "slow"
    assert desk.ready.get(timeout=30) is cancel
    assert not desk.service.cancel(cancel), "it is the engine's now"


@pytest.mark.parametrize(
    ("grammar", "sampling", "says"),
    [
        (rules(BAD), SamplingParams(), "grammar cannot be used: left recursion"),
        (rules(BAD, "json_schema"), SamplingParams(), "json_schema cannot be used: left recursion"),
        (None, SamplingParams(grammar=BAD), "grammar cannot be used: left recursion"),
        (rules("x"), SamplingParams(json_schema="{}"), "given twice"),
        (rules(""), SamplingParams(), "1 to 4,194,304 bytes"),
        (m.Grammar(b"\xff"), SamplingParams(), "not UTF-8 at byte 0"),
        (m.Grammar(Spilled("/proc/0/fd/1", 99)), SamplingParams(), "is gone"),
        (m.Grammar(Spilled("/x", MAX_GRAMMAR_BYTES + 1)), SamplingParams(), "at most 4,194,304"),
    ],
)
def test_what_cannot_be_used_is_refused_and_named(
    desk: Desk, grammar: m.Grammar | None, sampling: SamplingParams, says: str
) -> None:
    run = asked("r", grammar, sampling=sampling)
    desk.service.take(run)
    to, failed = desk.sent.get(timeout=30)
    assert (to, failed.ref, failed.reason) == (CALLER, "r", m.FailReason.INVALID_REQUEST)
    assert says in failed.detail
    assert desk.sent.get(timeout=30) == ("inflight", m.RequestEnded("r"))
    assert desk.ready.empty()


def test_what_is_here_ends_with_the_model(desk: Desk) -> None:
    desk.service.take(asked("slow", rules(SLOW)))
    desk.service.take(asked("behind", rules('root ::= "b"')))
    desk.service.close(m.FailReason.MODEL_UNLOADED, "unloaded")
    desk.service.take(asked("late", rules('root ::= "c"')))
    sent = [desk.sent.get(timeout=30)[1] for _ in range(6)]
    failed = {one.ref for one in sent if isinstance(one, m.CompletionFailed)}
    assert failed == {"slow", "behind", "late"}
    desk.backend.go_on.set()
    eventually(lambda: SLOW in desk.backend.known)
    assert desk.ready.empty()
