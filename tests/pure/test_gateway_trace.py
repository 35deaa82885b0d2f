"""What is kept of a request while it runs, and how it looks as a value."""

from __future__ import annotations

import msgspec
import pytest

from runtime.client.results import PrefillEvent, QueuedEvent, ResumedEvent, TokenEvent
from runtime.gateway.trace import ReplyTrace, Trace, Traces
from runtime.gateway.wire import records
from runtime.gateway.wire.records import RequestRecord

pytestmark = pytest.mark.pure


def _trace(request_id: str = "req_1") -> Trace:
    return Trace(request_id, method="POST", route="/v1/x", api="openai", client="curl/8" * 99)


def test_phases_follow_what_comes() -> None:
    reply = ReplyTrace()
    seen = [reply.phase]
    for event in (
        QueuedEvent(3),
        PrefillEvent(10, 30, 10),
        TokenEvent(0, (5,), "a"),
    ):
        reply.note(event, 1.0)
        seen.append(reply.phase)
    assert seen == [records.WAITING, records.QUEUED, records.PREFILL, records.DECODE]


def test_computed_tokens_of_a_reply_that_is_cut_off() -> None:
    reply = ReplyTrace()
    reply.note(PrefillEvent(25, 30, 10), 1.0)
    assert reply.n_computed == 15
    reply.note(TokenEvent(0, (5, 6), "ab"), 2.0)
    assert reply.n_computed == 22  # the whole prompt was read, but for what was warm


def test_an_echoed_prompt_is_no_token_of_the_reply() -> None:
    reply = ReplyTrace()
    reply.note(TokenEvent(-2, (5, 6), "ab", kind="prompt"), 2.0)
    assert reply.phase == records.WAITING
    assert reply.first_at is None


def test_what_a_predecessor_had_has_no_times() -> None:
    trace = _trace()
    trace.replay(0, PrefillEvent(30, 30, 10))
    trace.replay(0, TokenEvent(0, (5, 6), "ab"))
    found = trace.record().replies[0]
    assert found.generated_tokens == 2
    assert found.first_at_ms is None
    assert found.last_at_ms is None
    trace.note(0, TokenEvent(2, (7,), "c"))
    assert trace.record().replies[0].generated_tokens == 3


def test_a_record_is_a_value_without_texts() -> None:
    trace = _trace()
    trace.note(0, TokenEvent(0, (5,), "a secret"))
    trace.note(0, ResumedEvent(1, 250.0))
    found = trace.record()
    raw = msgspec.json.encode(found)
    assert b"secret" not in raw
    assert found.replies[0].pauses[0][1] == 250.0
    assert len(found.client) == 120
    assert msgspec.json.decode(raw, type=RequestRecord) == found


def test_a_request_ends_once() -> None:
    traces, ended = Traces(), []
    traces.on_end.append(lambda one: ended.append((one.id, one.outcome)))
    trace = _trace()
    traces.begin(trace)
    assert traces.running == {"req_1": trace}
    traces.end(trace, "ok")
    traces.end(trace, "broken")
    assert ended == [("req_1", "ok")]
    assert not traces.running


def test_a_request_that_came_earlier_took_longer() -> None:
    trace = _trace()
    trace.begun_at(trace.at - 5.0)
    assert trace.record().took_ms >= 5000.0


def test_what_reads_traces_and_fails_ends_no_request(caplog: pytest.LogCaptureFixture) -> None:
    traces, ended = Traces(), []

    def fail(_: Trace) -> None:
        raise ValueError("a bug")

    traces.on_reply.append(fail)
    traces.on_end += [fail, lambda one: ended.append(one.id)]
    trace = _trace()
    traces.begin(trace)
    traces.asks(trace)
    traces.end(trace, "ok")
    assert ended == ["req_1"]
    assert len(caplog.records) == 2
