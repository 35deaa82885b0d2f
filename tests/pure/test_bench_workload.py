"""The day of agents that is benchmarked: its shape, and the tokens that it must compute."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workload import (
    Conversation,
    Day,
    Edit,
    Ledger,
    Request,
    Scale,
    Sequences,
    Side,
    Turn,
    generate,
    longest,
    play,
)

pytestmark = pytest.mark.pure

SEED = 2
USABLE = range(1000)
SMALL = Scale(n_turns=43, n_tokens=3500)
few = st.lists(st.integers(0, 2) | st.sampled_from([255, 256, 2**24]), max_size=8)


def common(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def played(conversation: Conversation, seed: int = 0) -> list[tuple[Request, tuple[int, ...]]]:
    """Every request with its reply, which no other request's has."""
    found = []
    requests = play(conversation)
    request = next(requests)
    while True:
        reply = tuple(2000 + seed + len(found) for _ in range(request.n_reply))
        found.append((request, reply))
        try:
            request = requests.send(reply)
        except StopIteration:
            return found


def shares(day: Day) -> float:
    """Of all tokens sent, those that were known."""
    ledger, known, sent = Ledger(), 0, 0
    for number, conversation in enumerate(day.conversations):
        for request, reply in played(conversation, 10_000 * number):
            known += ledger.sent(request.prompt)
            sent += len(request.prompt)
            ledger.answered(request.prompt, reply)
    return known / sent


@given(st.lists(few, max_size=12), few)
def test_what_is_known_is_the_longest_beginning_of_any_sequence(added, asked):
    sequences = Sequences()
    for at, one in enumerate(added):
        naive = max((common(one, earlier) for earlier in added[:at]), default=0)
        assert sequences.known(one) == naive
        sequences.add(one)
    assert sequences.known(asked) == max((common(asked, one) for one in added), default=0)


@given(st.lists(st.tuples(few, few), max_size=10))
def test_the_distinct_tokens_of_prompts_are_the_nodes_of_a_tree_of_beginnings(requests):
    ledger, distinct, nodes = Ledger(), 0, set()
    by_prompts = 0
    for prompt, reply in requests:
        distinct += len(prompt) - ledger.sent(prompt)
        new = {tuple(prompt[: n + 1]) for n in range(len(prompt))} - nodes
        by_prompts += len(new)
        nodes |= new
        ledger.answered(prompt, reply)
        whole = prompt + reply[:-1]
        nodes |= {tuple(whole[: n + 1]) for n in range(len(whole))}
    assert distinct == by_prompts


def test_a_turn_sends_the_turn_before_its_reply_and_a_result():
    turns = (Turn((10, 11), 2), Turn((12,), 1))
    (first, reply), (second, _) = played(Conversation("turn", (1, 2), turns))
    assert first.prompt == (1, 2, 10, 11)
    assert second.prompt == (*first.prompt, *reply, 12)


def test_an_edit_replaces_a_result_and_leaves_the_rest():
    turns = (Turn((10,), 1), Turn((11,), 1), Turn((12,), 1, edit=Edit(0, (77, 78))))
    *_, (second, reply), (third, _) = played(Conversation("turn", (1,), turns))
    assert third.prompt == (1, 77, 78, *second.prompt[2:], *reply, 12)


def test_the_reply_of_a_sub_agent_enters_the_next_prompt():
    sub = Conversation("sub-agent", (5,), (Turn((6,), 2),))
    (inner, reply), (outer, _) = played(Conversation("turn", (1,), (Turn((9,), 1, None, sub),)))
    assert (inner.kind, inner.prompt) == ("sub-agent", (5, 6))
    assert outer.prompt == (1, *reply, 9)


def test_a_side_request_has_other_tools_and_the_end_of_the_conversation():
    turn = Turn((9,), 2, side=Side((7, 8), 3, 4))
    (first, reply), (side, _) = played(Conversation("turn", (1, 2), (turn,)))
    assert (side.kind, side.n_reply) == ("side", 4)
    assert side.prompt == (7, 8, *(first.prompt + reply)[-3:])


def test_a_day_is_made_from_its_seed():
    assert generate(3, 2, SMALL, USABLE) == generate(3, 2, SMALL, USABLE)
    assert generate(3, 2, SMALL, USABLE) != generate(4, 2, SMALL, USABLE)


def test_an_agent_does_the_same_whether_others_work_or_not():
    assert (
        generate(3, 4, SMALL, USABLE).conversations[:2]
        == generate(3, 2, SMALL, USABLE).conversations
    )


@pytest.mark.parametrize("n_agents", [1, 4, 16])
def test_a_day_has_the_published_shape(n_agents):
    day = generate(SEED, n_agents, SMALL, USABLE)
    assert 35 <= median(len(one.turns) for one in day.conversations) <= 52
    with_subs = [one for one in day.conversations if any(turn.sub_agent for turn in one.turns)]
    assert len(with_subs) == -(-44 * n_agents // 100)
    assert shares(day) > 0.96
    assert 0.7 < longest(day) / SMALL.n_tokens < 1.6
    assert sum(len(played(one)) for one in day.conversations) == day.n_requests
    beginnings = {one.beginning[: int(0.22 * SMALL.n_tokens)] for one in day.conversations}
    assert len(beginnings) == 1


@pytest.mark.parametrize("n_turns", [2, 3, 8, 12])
def test_a_short_day_has_every_kind_of_request(n_turns):
    day = generate(1, 2, Scale(n_turns, 400), USABLE)
    kinds = {request.kind for one in day.conversations for request, _ in played(one)}
    assert kinds == {"turn", "sub-agent", "side"}
    assert any(turn.edit for one in day.conversations for turn in one.turns)
