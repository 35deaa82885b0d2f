"""kill -9 while requests have stepped aside: all of them resume, and their texts are the same."""

from __future__ import annotations

import contextlib

import pytest

from runtime import Node
from tests.support.runtime_nodes import Streaming, kill, pid_of, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

N_TOKENS = 1500
SEEDED = {"temperature": 0.9, "repetition_penalty": 1.1}


@pytest.fixture
def crowded(node: Node) -> Node:
    """A stub model whose context holds one of the replies below, and a little more."""
    node.load("stub", "stub", backend="stub", n_seq_max=4, n_ctx=2048)
    return node


def streams(node: Node) -> list[Streaming]:
    ways = ({}, SEEDED | {"seed": 1}, {"priority": "background"}, SEEDED | {"seed": 2})
    return [Streaming(node, "stub", N_TOKENS, f"Tale {n}", **way) for n, way in enumerate(ways)]


def test_requests_that_are_aside_when_their_model_is_killed_resume(crowded: Node) -> None:
    running = streams(crowded)
    eventually(lambda: status_of(crowded, "model:stub")["aside"], what="one has stepped aside")
    kill(pid_of(crowded, "model:stub"))
    whole = [one.whole(60) for one in running]
    assert any(one.resumed for one in running)
    expected = streams_alone(crowded)
    assert [list(one.tokens) for one in whole] == [one.tokens for one in expected]
    assert [one.text for one in whole] == [one.text for one in expected]


def test_requests_step_aside_without_a_cache_to_keep_them(crowded: Node) -> None:
    """Cache_meta is killed again and again: what it does not have is computed again."""
    running = streams(crowded)
    for _ in range(3):
        with contextlib.suppress(ProcessLookupError):  # its supervisor has just replaced it
            kill(pid_of(crowded, "cache_meta"))
        eventually(lambda: status_of(crowded, "model:stub"), what="the model answers")
    whole = [one.whole(60) for one in running]
    expected = streams_alone(crowded)
    assert [list(one.tokens) for one in whole] == [one.tokens for one in expected]


def streams_alone(node: Node) -> list[Streaming]:
    """The same requests, one after another."""
    ended = []
    for n, way in enumerate(({}, SEEDED | {"seed": 1}, {}, SEEDED | {"seed": 2})):
        one = Streaming(node, "stub", N_TOKENS, f"Tale {n}", **way)
        one.whole(60)
        ended.append(one)
    return ended
