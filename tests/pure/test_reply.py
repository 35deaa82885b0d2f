"""Replies over several attempts: what a dead process began continues in the next one, once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from actors.messages.payload import read_payload
from cache import tokens as token_bytes
from runtime import (
    CompletionEvent,
    Event,
    PrefillEvent,
    QueuedEvent,
    ResumedEvent,
    TokenEvent,
    errors,
)
from runtime.client import reply as reply_module
from runtime.client.client import Client
from supervision import Connection, ExitKind, ExitReason
from supervision.errors import NodeRestarted, TargetDown
from tests.support.waiting import eventually

pytestmark = pytest.mark.pure

REPLY = "The sea was calm that night."
DIED = TargetDown("inflight", 1, ExitReason(ExitKind.KILLED, "SIGKILL"))
RESTARTED = NodeRestarted(Path("node"))
ACCEPTED = m.Accepted("r", "id")
DONE = m.Completed(
    ref="r",
    request_id="id",
    finish_reason=m.FinishReason.LENGTH,
    finish_key=None,
    stop_sequence=None,
    usage=m.Usage(3, 0, len(REPLY)),
    cache=m.CacheReport(m.HitKind.COLD, "none", 0.0, None),
    timings=m.Timings(0.0, 0.0, 0.0, 0.0, 0.0),
)


def tokens(start: int, end: int) -> m.TokensDelivered:
    """Characters of the reply, each of which is a token."""
    text = REPLY[start:end]
    return m.TokensDelivered("r", start, token_bytes.pack(map(ord, text)), text, start)


@dataclass
class ScriptedConnection:
    """A connection on which each sent request gets the next script; an exception ends one."""

    scripts: list[list[object]]
    sent: list[m.Complete] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    told: list[tuple[str, object]] = field(default_factory=list)

    def stream(
        self,
        target: str,
        message: m.Complete,
        *,
        idle_timeout_s: float,
        ends_at: float | None,
        until_down: bool,
    ) -> Iterator[object]:
        assert (ends_at is None) == (message.timeout_s is None)
        assert (target, until_down) == ("inflight", True)
        assert idle_timeout_s > 0
        self.sent.append(message)
        ids = token_bytes.unpack(read_payload(message.delivered))
        self.delivered.append("".join(map(chr, ids)))
        for reply in self.scripts.pop(0):
            if isinstance(reply, Exception):
                raise reply
            yield reply

    def tell(self, target: str, message: object, *, timeout_s: float) -> None:
        assert timeout_s <= 0.5
        self.told.append((target, message))


def ask(connection: ScriptedConnection, **options: object) -> list[Event]:
    client = Client(cast(Connection, connection))
    return list(client.stream("x", "abc", resumed_events=True, **options))  # type: ignore[arg-type]


def text_of(events: list[Event]) -> str:
    return "".join(one.text for one in events if isinstance(one, TokenEvent))


def ends_of(events: list[Event]) -> list[CompletionEvent]:
    return [one for one in events if isinstance(one, CompletionEvent)]


def test_an_undisturbed_reply_is_asked_for_once() -> None:
    connection = ScriptedConnection(
        [[ACCEPTED, m.PrefillProgress("r", 3, 3, 0), tokens(0, 28), DONE]]
    )
    events = ask(connection)
    assert [type(one) for one in events] == [PrefillEvent, TokenEvent, CompletionEvent]
    assert connection.told == []
    assert connection.delivered == [""]


def test_places_in_the_queue_come_before_the_prompt() -> None:
    queued = [m.Queued("r", 2), m.Queued("r", 0)]
    read = m.PrefillProgress("r", 3, 3, 3)
    connection = ScriptedConnection([[ACCEPTED, *queued, read, tokens(0, 28), DONE]])
    events = ask(connection, queue_events=True)
    assert events[:3] == [QueuedEvent(2), QueuedEvent(0), PrefillEvent(3, 3, 3)]
    assert connection.sent[0].queue_events


def test_a_reply_that_has_begun_has_no_place_any_more() -> None:
    """Its model was killed, and another process continues it when it has room."""
    again = [m.Queued("r", 1), m.Resumed("r", 5), tokens(0, 28)]
    events = ask(ScriptedConnection([[ACCEPTED, tokens(0, 5), *again, DONE]]), queue_events=True)
    assert not any(isinstance(one, QueuedEvent) for one in events)
    assert text_of(events) == REPLY


def test_numbers_of_a_failure_are_on_its_exception() -> None:
    facts = m.FailureFacts(n_prompt=300, n_ctx=256)
    failed = m.CompletionFailed("r", m.FailReason.PROMPT_TOO_LONG, "too long", facts)
    with pytest.raises(errors.PromptTooLong) as caught:
        ask(ScriptedConnection([[ACCEPTED, failed]]))
    assert (caught.value.n_prompt, caught.value.n_ctx) == (300, 256)


def test_a_model_that_is_killed_is_not_an_error_of_the_caller() -> None:
    again = [m.Resumed("r", 7), m.PrefillProgress("r", 5, 10, 5), tokens(0, 7), tokens(7, 28)]
    connection = ScriptedConnection([[ACCEPTED, tokens(0, 5), *again, DONE]])
    events = ask(connection)
    assert text_of(events) == REPLY
    assert [one.index for one in events if isinstance(one, TokenEvent)] == [0, 5, 7]
    resumed = [one for one in events if isinstance(one, ResumedEvent)]
    assert [one.n_tokens for one in resumed] == [5]
    assert resumed[0].pause_ms >= 0
    assert not any(isinstance(one, PrefillEvent) for one in events)  # it reads its own reply


@pytest.mark.parametrize("death", [DIED, RESTARTED])
def test_when_inflight_or_the_node_is_killed_the_caller_resumes_from_what_it_has(
    death: Exception,
) -> None:
    connection = ScriptedConnection(
        [
            [ACCEPTED, tokens(0, 5), tokens(5, 9), death],
            [m.Accepted("r", "id2"), m.Resumed("r", 9), tokens(0, 9), tokens(9, 28), DONE],
        ]
    )
    events = ask(connection, timeout_s=100)
    assert text_of(events) == REPLY
    assert ends_of(events)[0].completion.text == REPLY
    assert connection.delivered == ["", REPLY[:9]]
    left = m.Cancel("id", awaits_end=False)  # its model may work on it still
    assert connection.told == [("inflight", left)]
    assert connection.sent[0].ref != connection.sent[1].ref
    assert connection.sent[1].timeout_s is not None
    assert connection.sent[1].timeout_s < 100


def test_without_resumed_events_a_resume_is_only_a_pause() -> None:
    connection = ScriptedConnection(
        [[ACCEPTED, tokens(0, 5), m.Resumed("r", 5), tokens(0, 5), tokens(5, 28), DONE]]
    )
    events = list(Client(cast(Connection, connection)).stream("x", "abc"))
    assert [type(one) for one in events] == [TokenEvent, TokenEvent, CompletionEvent]


def test_a_result_that_was_lost_comes_with_the_next_attempt_and_once() -> None:
    connection = ScriptedConnection(
        [[ACCEPTED, tokens(0, 28), DIED], [ACCEPTED, m.Resumed("r", 28), DONE]]
    )
    events = ask(connection)
    assert text_of(events) == REPLY
    assert len(ends_of(events)) == 1


def test_a_part_that_is_missing_is_asked_for() -> None:
    connection = ScriptedConnection(
        [[ACCEPTED, tokens(0, 5), tokens(7, 9)], [ACCEPTED, tokens(0, 28), DONE]]
    )
    events = ask(connection)
    assert text_of(events) == REPLY
    assert connection.delivered == ["", REPLY[:5]]


def test_the_session_of_the_attempt_before_may_be_busy_for_a_moment() -> None:
    busy = m.CompletionFailed("r", m.FailReason.SESSION_BUSY, "busy")
    connection = ScriptedConnection(
        [[ACCEPTED, tokens(0, 5), DIED], [busy], [ACCEPTED, tokens(0, 28), DONE]]
    )
    assert text_of(ask(connection)) == REPLY
    with pytest.raises(errors.SessionBusy):
        ask(ScriptedConnection([[busy]]))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (m.FailReason.MODEL_DOWN, errors.ModelDown),
        (m.FailReason.POISONOUS, errors.RequestPoisoned),
        (m.FailReason.MODEL_UNLOADED, errors.ModelUnloaded),
        (m.FailReason.DEADLINE, errors.DeadlineExceeded),
    ],
)
def test_what_inflight_has_failed_is_not_tried_again(
    reason: m.FailReason, kind: type[Exception]
) -> None:
    connection = ScriptedConnection(
        [[ACCEPTED, tokens(0, 5), m.CompletionFailed("r", reason, "why")]]
    )
    with pytest.raises(kind, match="why"):
        ask(connection)
    assert connection.told == []


def test_without_any_progress_it_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_module, "HEAL_TIMEOUT_S", 0.02)
    began = time.monotonic()

    class Slow(ScriptedConnection):
        def stream(self, *args: object, **options: object) -> Iterator[object]:
            eventually(lambda: time.monotonic() - began > 0.01, what="a moment is over")
            yield ACCEPTED
            raise DIED

    with pytest.raises(errors.ModelDown, match="tried again for"):
        ask(Slow([]))


def test_an_attempt_that_is_left_is_cancelled() -> None:
    connection = ScriptedConnection([[ACCEPTED, tokens(0, 5), tokens(5, 28), DONE]])
    events = Client(cast(Connection, connection)).stream("x", "abc")
    next(events)
    events.close()
    assert connection.told == [("inflight", m.Cancel("id", awaits_end=False))]


@given(st.data())
def test_wherever_processes_are_killed_the_caller_gets_the_text_once_and_one_end(
    data: st.DataObject,
) -> None:
    scripts: list[list[object]] = []
    known = 0  # by inflight's journal; the caller may have less
    received = 0
    for _ in range(data.draw(st.integers(0, 4))):
        script: list[object] = [ACCEPTED]
        for _ in range(data.draw(st.integers(0, 2))):  # models that die under this inflight
            known = data.draw(st.integers(known, len(REPLY)))
            heard = data.draw(st.integers(0, known))
            script += [m.Resumed("r", known), tokens(0, heard)] if heard else []
            received = max(received, heard)
        script.append(data.draw(st.sampled_from([DIED, RESTARTED])))
        scripts.append(script)
        known = received
    scripts.append([ACCEPTED, m.Resumed("r", known), tokens(0, known), tokens(known, 28), DONE])
    connection = ScriptedConnection(scripts)
    events = ask(connection)
    assert text_of(events) == REPLY
    assert len(ends_of(events)) == 1
    assert isinstance(events[-1], CompletionEvent)
    assert connection.delivered[-1] == REPLY[:received]
