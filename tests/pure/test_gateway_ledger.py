"""What the ledger counts, with and without its log; and the worker's side of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.client.transport import Transport
from runtime.gateway import ledger_client
from runtime.gateway import ledger_messages as lm
from runtime.gateway.accounts import KEPT_INCARNATIONS, Accounts, Incarnation, Now, Running
from runtime.gateway.keys import Key
from runtime.gateway.ledger_client import LedgerClient
from runtime.gateway.responses_store import ResponseStore, Stored
from runtime.gateway.wire.failure import Fault, Refused
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.rates import Rate, Rates, duration, rate_headers
from supervision import ExitKind, ExitReason
from supervision.errors import NoReply, TargetDown

pytestmark = pytest.mark.pure

ALICE = Key("alice", requests_per_min=4, tokens_per_min=100, running=2)
FIRST, SECOND = Incarnation(0, 10), Incarnation(1, 11)


class Log:
    """What a ledger has written, and a ledger that goes on with it."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.accounts = Accounts(self.write)

    def write(self, name: str, value: bytes | None) -> None:
        if value is None:
            del self.records[name]
        else:
            self.records[name] = value

    def restart(self) -> None:
        """Its next process."""
        before = dict(self.accounts.records())
        assert before == self.records
        self.accounts = Accounts(self.write)
        self.accounts.restore(before)


def begin(
    log: Log, use: str, who: Incarnation = FIRST, now: float = 0.0, key: Key = ALICE, turn: int = 1
) -> Rates:
    return log.accounts.begin(use, Running(who, key, turn), now)


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_requests_of_a_key_count_over_all_workers(is_killed: bool) -> None:
    log = Log()
    assert begin(log, "a") == Rates(Rate(4, 3, 15.0), Rate(100, 100, 0.0))
    if is_killed:
        log.restart()
    assert begin(log, "b", SECOND).requests == Rate(4, 2, 30.0)
    with pytest.raises(Refused, match="run already") as caught:
        begin(log, "c", SECOND)
    assert caught.value.failure.fault is Fault.RATE
    assert log.accounts.is_busy(ALICE)
    log.accounts.end([("a", 130)], 0.0)
    log.accounts.end([("a", 130)], 0.0)
    if is_killed:
        log.restart()
    with pytest.raises(Refused, match="tokens"):
        begin(log, "c")
    assert log.accounts.rates(ALICE, 0.0).tokens == Rate(100, 0, 78.0)
    assert begin(log, "c", now=60.0).tokens == Rate(100, 70, pytest.approx(18.0))


def test_a_request_that_is_asked_for_again_counts_once() -> None:
    log = Log()
    begin(log, "a")
    assert begin(log, "a").requests == Rate(4, 3, 15.0)
    assert not log.accounts.is_busy(ALICE)


def test_a_request_goes_on_in_the_next_process_of_its_worker() -> None:
    log = Log()
    begin(log, "a")
    begin(log, "b")
    again = Incarnation(0, 20)
    log.accounts.keep_only(again, 1, ["a"], 0.0)
    begin(log, "c")  # there is room: b has ended with its worker
    with pytest.raises(Refused):
        begin(log, "d")
    begin(log, "a", again)
    log.accounts.keep_only(FIRST, 9, [], 0.0)  # a late word of the one that is gone
    begin(log, "d")
    with pytest.raises(Refused):
        begin(log, "e")


def test_a_report_that_was_made_before_a_request_began_does_not_end_it() -> None:
    log = Log()
    begin(log, "a", turn=2)
    log.accounts.keep_only(FIRST, 1, [], 0.0)
    begin(log, "b", turn=3)
    assert log.accounts.is_busy(ALICE)
    log.accounts.keep_only(FIRST, 4, [], 0.0)
    assert not log.accounts.is_busy(ALICE)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.booleans(), st.booleans())))
def test_sums_never_go_back(steps: list[tuple[int, int, bool, bool]]) -> None:
    log, started = Log(), {number: number for number in range(3)}
    counts = {number: Counts() for number in range(3)}
    wanted, next_start = 0, 10
    for number, n, is_new, is_killed in steps:
        if is_new:
            started[number], next_start = next_start, next_start + 1
            counts[number] = Counts()
        counts[number].predicted_tokens += n
        wanted += n
        who = Incarnation(number, started[number])
        log.accounts.count(who, replace(counts[number]), Now(1))
        if is_killed:
            log.restart()
        assert log.accounts.total().predicted_tokens == wanted


def test_a_late_report_of_a_process_that_is_gone_counts_once() -> None:
    log = Log()
    for started in range(KEPT_INCARNATIONS + 3):
        log.accounts.count(
            Incarnation(0, started), Counts(prompt_tokens=1, longest=started), Now(1)
        )
    log.accounts.count(Incarnation(0, 0), Counts(prompt_tokens=1), Now(1))
    assert log.accounts.total() == Counts(
        prompt_tokens=KEPT_INCARNATIONS + 3, longest=KEPT_INCARNATIONS + 2
    )
    log.accounts.count(SECOND, Counts(), Now(4))
    assert (log.accounts.running(), log.accounts.running(but=1)) == (5, 1)


def test_what_a_worker_had_not_ended_fails_unless_it_goes_on() -> None:
    store = ResponseStore()
    body = b'{"id":"x","status":"in_progress","output":[]}'
    for name, number, started in (("a", 0, 1), ("b", 0, 1), ("c", 1, 1), ("d", 0, 5)):
        store.keep(Stored(name, "", None, body, b"[]", True, number, started))
    store.fail_left(Incarnation(0, 5), ["b"])
    states = {name: store.find(name, "") for name in "abcd"}
    assert [one.is_running for one in states.values() if one] == [False, True, True, True]
    assert states["a"] is not None
    assert states["a"].as_response()["status"] == "failed"


# ── header lines ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.1201, "121ms"), (1, "1s"), (8.64, "8.64s"), (360, "6m0s"), (59.9999, "1m0s"),
     (61.5, "1m1.5s"), (-1, "0s")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rates_are_shown_in_the_words_of_each_api() -> None:
    rates = Rates(Rate(60, 59, 1.0), Rate(1000, 0, 90.0))
    assert rate_headers(rates, "openai", 0.0) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
        (b"x-ratelimit-limit-tokens", b"1000"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", b"1m30s"),
    ]
    assert rate_headers(Rates(Rate(60, 59, 1.0)), "anthropic", 1_767_225_600.5) == [
        (b"anthropic-ratelimit-requests-limit", b"60"),
        (b"anthropic-ratelimit-requests-remaining", b"59"),
        (b"anthropic-ratelimit-requests-reset", b"2026-01-01T00:00:02Z"),
    ]
    assert rate_headers(Rates(), "openai", 0.0) == []


# ── the worker's side ───────────────────────────────────────────────────────────────────────────

Answer = Callable[[Any], object]


class Asked:
    """A transport whose answers are made here; each is called once, the last one on and on."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.messages: list[Any] = []

    async def ask(self, target: str, message: Any, *, timeout_s: float) -> object:
        assert (target, timeout_s >= 0) == (lm.LEDGER, True)
        self.messages.append(message)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(message)


def killed(_: object) -> object:
    raise TargetDown(lm.LEDGER, 1, ExitReason(ExitKind.KILLED, "SIGKILL"))


def silent(_: object) -> object:
    raise NoReply(lm.LEDGER, 10.0)


def begun(message: Any) -> object:
    return lm.UseBegun(message.ref, Rates(Rate(4, 3, 1.0)))


def reported(message: Any) -> object:
    return lm.WorkerReported(message.ref, 7)


def run(asked: Asked, work: Callable[[LedgerClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async def connect() -> Transport:
            return cast(Transport, cast(Any, asked))

        await work(LedgerClient(FIRST, connect, lambda: (Counts(), Now(1))))

    asyncio.run(main())


def test_a_request_waits_for_a_ledger_that_is_killed() -> None:
    asked = Asked(killed, killed, begun)

    async def work(ledger: LedgerClient) -> None:
        assert await ledger.begin("a", ALICE) == Rates(Rate(4, 3, 1.0))

    run(asked, work)
    assert [one.use for one in asked.messages] == ["a"] * 3
    assert len({one.ref for one in asked.messages}) == 3
    assert [one.turn for one in asked.messages] == [1, 2, 3]


@pytest.mark.parametrize("answer", [killed, silent])
def test_a_request_that_has_waited_long_enough_is_refused_for_now(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_client, "WAIT_S", 0.1)

    async def work(ledger: LedgerClient) -> None:
        with pytest.raises(Refused) as caught:
            await ledger.begin("a", ALICE)
        failure = caught.value.failure
        assert (failure.fault, failure.retry_after) == (Fault.UNAVAILABLE, "2")
        assert await ledger.begin("b", ALICE, is_checked=False) is None, "it was allowed before"

    run(Asked(answer), work)


def test_what_was_not_acknowledged_is_told_again() -> None:
    asked = Asked(begun, silent, reported)

    async def work(ledger: LedgerClient) -> None:
        await ledger.begin("a", ALICE)
        ledger.claim(["b"])
        ledger.goes_on_with(["resp_1"])
        ledger.end("a", 12)
        ledger.end("a", 99)
        with pytest.raises(ledger_client.LedgerGone):
            await ledger.report()
        await ledger.report()
        assert ledger.others == 7
        await ledger.report()

    run(asked, work)
    first, again, last = asked.messages[1:]
    for one in (first, again):
        assert (one.ended, one.uses, one.continued) == ((("a", 12),), ("b",), ("resp_1",))
    assert (last.ended, last.uses, last.continued) == ((), ("b",), None)
