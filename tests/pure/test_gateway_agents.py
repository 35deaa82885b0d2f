"""Which requests are side requests of an agent."""

from __future__ import annotations

from typing import Any

from runtime.gateway.agents import TURN_S, Agents
from runtime.gateway.keys import ANYONE, Key
from runtime.gateway.wire.wanted import Wanted

TOOLS = [{"type": "function", "function": {"name": "read"}}]
USER = {"role": "user", "content": "Hello"}


def chat(*messages: Any, **options: Any) -> Wanted:
    return Wanted(model="", kind="chat", inputs=(list(messages),), options=options)


def is_side(agents: Agents, wanted: Wanted, n_bytes: int, now: float, key: Key = ANYONE) -> bool:
    found = agents.marked(wanted, key, n_bytes, now)
    assert {**found.options, "drop_live": False} == {**wanted.options, "drop_live": False}
    return bool(found.options.get("drop_live"))


def test_a_small_request_without_tools_beside_a_turn_is_a_side_request() -> None:
    agents = Agents()
    assert not is_side(agents, chat(USER), 100, 1.0)  # no agent is there yet
    assert not is_side(agents, chat(USER, tools=TOOLS), 80_000, 2.0)
    assert is_side(agents, chat(USER), 3_000, 3.0)
    assert is_side(agents, chat(USER, tools=[]), 20_000, 3.0)


def test_what_is_large_has_tools_or_goes_on_is_none() -> None:
    agents = Agents()
    assert not is_side(agents, chat(USER, tools=TOOLS), 80_000, 2.0)
    assert not is_side(agents, chat(USER), 20_001, 3.0)
    assert not is_side(agents, chat(USER, {"role": "assistant", "content": "Hi"}, USER), 900, 3.0)
    text = Wanted(model="", kind="prompt", inputs=("Once",))
    assert not is_side(agents, text, 100, 3.0)
    assert not is_side(agents, chat(USER), 100, 2.1 + TURN_S)


def test_another_key_has_no_part_in_it() -> None:
    agents = Agents()
    assert not is_side(agents, chat(USER, tools=TOOLS), 80_000, 2.0, Key(name="alice"))
    assert not is_side(agents, chat(USER), 100, 3.0, Key(name="bob"))
    assert is_side(agents, chat(USER), 100, 3.0, Key(name="alice"))


def test_the_latest_turn_counts() -> None:
    agents = Agents()
    assert not is_side(agents, chat(USER, tools=TOOLS), 80_000, 2.0)
    assert not is_side(agents, chat(USER, tools=TOOLS), 400, 3.0)
    assert not is_side(agents, chat(USER), 3_000, 4.0)
