"""More requests than fit into a context, through a whole node, its Python API and its command."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime import Completion, Node, RequestOptions, errors
from tests.support.runtime_nodes import Streaming, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

N_CTX = 1024


@pytest.fixture
def node(emptied_node: Node) -> Node:
    emptied_node.load("stub", "stub", backend="stub", n_ctx=N_CTX, n_seq_max=4)
    return emptied_node


def test_sixteen_agents_that_ask_for_everything_all_get_what_they_get_alone(node: Node) -> None:
    def ask(number: int) -> Completion:
        return node.complete("stub", f"Agent {number}: ", max_tokens=32_000, temperature=1.0)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(16)))
    status = status_of(node, "model:stub")
    assert status["steps_aside"] > 0
    assert status["running"] == status["waiting"] == status["aside"] == 0
    assert max(one.timings.aside_ms for one in together) > 0
    for number, one in enumerate(together):
        alone = ask(number)
        assert one.tokens == alone.tokens
        assert one.finish_reason == alone.finish_reason
        assert one.limit == alone.limit == ("context" if one.finish_reason == "length" else None)
        assert one.timings.aside_ms == 0 or one.timings.tokens_per_second > 0


def test_what_ended_a_reply_is_in_its_completion(node: Node) -> None:
    few = node.complete("stub", "A tale", max_tokens=5)
    assert (few.finish_reason, few.limit) == ("length", "max_tokens")
    full = node.complete("stub", "A tale")
    assert (full.finish_reason, full.limit) == ("length", "context")
    assert full.usage.prompt_tokens + full.usage.completion_tokens == N_CTX
    seen = json.loads(json.dumps(full.to_dict()))
    assert seen["limit"] == "context"
    assert seen["timings"]["aside_ms"] == 0


def test_background_steps_aside_and_goes_on_when_the_others_have_ended(node: Node) -> None:
    slow = [Streaming(node, "stub", 900, f"Batch {n}", priority="background") for n in range(4)]
    options = RequestOptions(priority="interactive", max_tokens=8)
    quick = node.complete("stub", "x" * 600, options=options)
    assert quick.usage.completion_tokens == 8
    assert sum(not one.ends for one in slow) >= 3, "they were to be under way still"
    whole = [one.whole() for one in slow]
    assert max(one.timings.aside_ms for one in whole) > 0
    for number, one in enumerate(whole):
        assert one.tokens == node.complete("stub", f"Batch {number}", max_tokens=900).tokens
    eventually(lambda: node.queue_depth("stub") == 0, what="nothing waits")


def test_a_priority_that_does_not_exist_is_refused_with_those_that_do(node: Node) -> None:
    with pytest.raises(errors.InvalidRequest, match="one of interactive, background"):
        node.complete("stub", "x", priority="urgent")  # type: ignore[arg-type]
