"""The board of requests that pages read, what the ledger keeps for them, and kept prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.accounts import Incarnation
from runtime.gateway.board import MAX_GONE, Board, Noted
from runtime.gateway.observer import place_of
from runtime.gateway.prompts import KeptPrompt, Prompts
from runtime.gateway.watch_messages import NoteRequests, RequestsNoted, Seen
from runtime.gateway.watched import LOOK_EVERY_S, WATCHED_S, Watched
from runtime.gateway.wire.saving import saving_rules
from runtime.gateway.wire.wanted import Wanted

pytestmark = pytest.mark.pure

ZERO, ONE = Incarnation(0, 1), Incarnation(1, 1)


def noted(
    name: str, state: str = "", *, key: str = "", worker: int = 0, over: bool = False
) -> Noted:
    return Noted(name, key, worker, over, state.encode())


def bodies(board: Board) -> dict[str, bytes]:
    return {one.id: one.body for _, one in board.since(0, max_bytes=1 << 30).requests}


def read_all(mirror: Board, board: Board, max_bytes: int) -> None:
    """As a worker reads it, message by message."""
    while True:
        changes = board.since(mirror.last, max_bytes=max_bytes)
        mirror.take(changes)
        if changes.is_last:
            return


NAMES = st.sampled_from("abcdef")
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, st.text("xy", max_size=3), st.booleans()),
    st.tuples(st.just("keep"), st.sets(NAMES)),
    st.tuples(st.just("read"), st.integers(1, 8)),
)


@given(st.lists(STEPS, max_size=40))
def test_what_a_worker_has_read_is_what_the_ledger_has(steps: list[Any]) -> None:
    board, mirror = Board(max_ended=3), Board(max_ended=3)
    for step in steps:
        match step:
            case ("put", name, state, over):
                board.put(noted(name, state, over=over))
            case ("keep", names):
                board.keep_running(0, names)
            case ("read", max_bytes):
                read_all(mirror, board, max_bytes)
    read_all(mirror, board, 1)
    assert bodies(mirror) == bodies(board)
    assert mirror.last == board.last


def test_a_request_that_has_ended_does_not_run_again() -> None:
    board = Board()
    board.put(noted("a", "end", over=True))
    board.put(noted("a", "late"))
    assert bodies(board) == {"a": b"end"}


def test_the_same_state_is_no_change() -> None:
    board = Board()
    board.put(noted("a", "x"))
    board.put(noted("a", "x"))
    assert board.last == 1


def test_the_last_that_ended_and_all_that_run_are_kept() -> None:
    board = Board(max_ended=2)
    board.put(noted("running"))
    for name in "abcd":
        board.put(noted(name, over=True))
    assert set(bodies(board)) == {"running", "c", "d"}


def test_a_key_reads_of_its_own_requests_alone() -> None:
    board = Board()
    board.put(noted("a", key="alice"))
    board.put(noted("b", key="bob"))
    assert [one.id for _, one in board.since(0, "alice").requests] == ["a"]
    assert board.since(0, "alice").last == 2, "and goes on after those of others"


def test_what_a_killed_worker_ran_is_gone_once_its_next_process_reports() -> None:
    board = Board()
    board.put(noted("a", worker=0))
    board.put(noted("b", worker=1))
    seen = board.last
    board.keep_running(0, ["c"])
    changes = board.since(seen)
    assert changes.gone == ("a",)
    assert set(bodies(board)) == {"b"}


def test_one_that_runs_again_is_not_gone() -> None:
    board = Board()
    board.put(noted("a"))
    seen = board.last
    board.keep_running(0, [])
    board.put(noted("a", "again"))
    changes = board.since(seen)
    assert not changes.gone
    assert [one.body for _, one in changes.requests] == [b"again"]


def test_who_was_away_for_too_long_gets_all() -> None:
    board = Board()
    board.put(noted("first"))
    seen = board.last
    for at in range(MAX_GONE + 1):
        board.put(noted(f"r{at}", worker=1))
        board.keep_running(1, [])
    changes = board.since(seen)
    assert changes.is_all
    assert [one.id for _, one in changes.requests] == ["first"]
    assert not board.since(board.last).is_all
    assert board.since(board.last + 5).is_all, "a number that never was"


# ── the ledger's part ───────────────────────────────────────────────────────────────────────────


class Ledger:
    def __init__(self) -> None:
        self.watched = Watched(epoch=7)

    def asked(self, who: Incarnation, now: float, seen: Seen | None = None) -> RequestsNoted:
        return self.watched.noted(NoteRequests("ref", who, (), None, seen), now)


NEW = Seen(0, 0, 0)


def test_without_a_page_nothing_is_looked_at() -> None:
    ledger = Ledger()
    answers = [ledger.asked(ZERO, float(at)) for at in range(5)]
    assert not any(one.must_look or one.is_watched or one.changes for one in answers)


def test_one_worker_a_second_looks_however_many_pages_are_open() -> None:
    ledger = Ledger()
    turns = 0
    for step in range(40):  # ten seconds, four workers, four times a second
        for worker in range(4):
            answer = ledger.asked(Incarnation(worker, 1), step / 4, NEW)
            turns += answer.must_look
    assert turns == 10 / LOOK_EVERY_S


def test_the_turn_passes_on_when_its_worker_is_gone() -> None:
    ledger = Ledger()
    assert ledger.asked(ZERO, 0.0, NEW).must_look
    assert not ledger.asked(ONE, 0.5, NEW).must_look
    assert ledger.asked(ONE, LOOK_EVERY_S, NEW).must_look


def test_other_workers_learn_that_a_page_is_open_and_that_it_is_closed() -> None:
    ledger = Ledger()
    ledger.asked(ZERO, 0.0, NEW)
    assert ledger.asked(ONE, 1.0).is_watched
    assert not ledger.asked(ONE, WATCHED_S + 0.1).is_watched


def test_a_snapshot_is_sent_once_to_each_worker() -> None:
    ledger = Ledger()
    ledger.watched.looked(b"node")
    first = ledger.asked(ZERO, 0.0, NEW)
    assert first.snapshot == b"node"
    again = ledger.asked(ZERO, 0.2, Seen(7, first.changes.last, first.snapshot_number))  # type: ignore[union-attr]
    assert again.snapshot is None
    ledger.watched.looked(b"x" * (1 << 20))
    assert ledger.asked(ONE, 0.3, NEW).snapshot == b"node", "one that is too big is left out"


def test_a_late_message_of_a_killed_process_changes_nothing() -> None:
    ledger = Ledger()
    new, old = Incarnation(0, 9), Incarnation(0, 3)
    ledger.watched.noted(NoteRequests("r", new, (noted("new"),), ("new",)), 0.0)
    ledger.watched.noted(NoteRequests("r", old, (noted("old"),), ("old",)), 0.1)
    assert set(bodies(ledger.watched.board)) == {"new"}


@pytest.mark.parametrize(
    ("text", "place"),
    [("7-12", (7, 12)), ("", (0, 0)), ("x", (0, 0)), ("7-12-1", (0, 0)), ("9" * 99 + "-1", (0, 0))],
)
def test_the_place_in_a_stream(text: str, place: tuple[int, int]) -> None:
    assert place_of(text) == place


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────


def kept(name: str, *, key: str = "", model: str = "m", n_bytes: int = 10) -> KeptPrompt:
    wanted = chat("hello")
    return KeptPrompt(name, f"answer-{name}", key, model, wanted, wanted, (), n_bytes)


def chat(user: str, system: str = "", tools: list[Any] | None = None) -> Wanted:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    options = {"tools": tools} if tools else {}
    return Wanted(model="m", kind="chat", inputs=(messages,), options=options)


def test_prompts_are_bounded_in_number_and_bytes() -> None:
    prompts = Prompts(max_prompts=3, max_bytes=100)
    for name in "abcd":
        prompts.note(kept(name))
    assert prompts.find("a") is None
    assert len(prompts) == 3
    prompts.note(kept("big", n_bytes=95))
    assert len(prompts) == 1
    prompts.note(kept("too big", n_bytes=101))
    assert prompts.find("too big") is None


def test_earlier_prompts_are_those_of_the_same_key_and_model() -> None:
    prompts = Prompts()
    for one in (kept("a"), kept("b", key="bob"), kept("c", model="n"), kept("d"), kept("e")):
        prompts.note(one)
    found = prompts.find("d")
    assert found is not None
    assert [one.request for one in prompts.earlier(found)] == ["a"]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def test_the_rule_that_would_have_saved_a_prompt_is_named() -> None:
    one, other = tool("read"), tool("write")
    asked, earlier = chat("Hi", tools=[other, one]), chat("Hi", tools=[one, other])
    assert saving_rules(asked, [earlier], ["claude-billing"]) == ["sort-tools"]
    assert saving_rules(asked, [earlier], ["sort-tools"]) == [], "it is used"
    assert saving_rules(asked, [], []) == []
    assert saving_rules(asked, [asked], []) == [], "nothing was lost"


def test_a_rule_that_saves_nothing_is_not_named() -> None:
    dated = "You help.\nToday's date: 2026-11-29\nBe brief."
    same = chat("Hi", system=dated)
    assert saving_rules(chat("Hello", system=dated), [same], []) == []
    other = chat("Hi", system=dated.replace("29", "30"))
    assert "date-to-end" in saving_rules(same, [other], [])
    assert saving_rules(replace(same, kind="prompt", inputs=("Hi",)), [other], []) == []
