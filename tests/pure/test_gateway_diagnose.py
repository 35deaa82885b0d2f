"""Comparing two requests by the digests of their parts, and how many of those are kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.answered import Answered
from runtime.gateway.keys import Key
from runtime.gateway.wire.diagnose import Change, compare, parts_of, parts_of_chat
from runtime.gateway.wire.wanted import Wanted

pytestmark = pytest.mark.pure

SYSTEM = {
    "role": "system",
    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
}
ASKED = {"role": "user", "content": "Hello"}
SAID = {"role": "assistant", "content": "Hi"}
TOOLS = [{"name": "f"}, {"name": "g"}]
EARLIER = parts_of("m", [SYSTEM, ASKED], TOOLS, {"effort": "low", "x": 1})


@pytest.mark.parametrize(
    ("model", "messages", "tools", "settings", "change"),
    [
        ("m", [SYSTEM, ASKED], TOOLS, {"effort": "low", "x": 1}, None),
        ("m", [SYSTEM, ASKED, SAID, ASKED], TOOLS, {"x": 1, "effort": "low"}, None),
        ("n", [ASKED], [], {}, Change("model")),
        ("m", [SYSTEM, ASKED], TOOLS[::-1], {}, Change("tools", at=0)),
        ("m", [SYSTEM, ASKED], TOOLS[:1], {}, Change("tools", at=1)),
        ("m", [ASKED], TOOLS, {}, Change("system", at=0)),
        ("m", [{**SYSTEM, "content": SYSTEM["content"][:1]}, ASKED], TOOLS, {},
         Change("system", at=1)),
        ("m", [SYSTEM, ASKED], TOOLS, {"effort": "high", "y": 1},
         Change("settings", ("effort", "x", "y"))),
        ("m", [SYSTEM, SAID], TOOLS, {"effort": "low", "x": 1}, Change("messages", at=0)),
        ("m", [SYSTEM], TOOLS, {"effort": "low", "x": 1}, Change("messages", at=0)),
    ],
)  # fmt: skip
def test_the_first_kind_of_part_that_differs_is_named(
    model: str, messages: list[Any], tools: list[Any], settings: dict[str, Any],
    change: Change | None,
) -> None:  # fmt: skip
    assert compare(EARLIER, parts_of(model, messages, tools, settings)) == change


def test_of_a_chat_the_options_count_that_its_template_reads() -> None:
    options = {"tools": TOOLS, "temperature": 1.0, "enable_thinking": True}
    wanted = Wanted(model="x", kind="chat", inputs=([ASKED],), options=options)
    found = parts_of_chat(wanted, "m")
    assert found == parts_of("m", [ASKED], TOOLS, {"enable_thinking": True})


@given(st.lists(st.sampled_from([ASKED, SAID]), max_size=6), st.integers(0, 6), st.integers(0, 6))
def test_requests_of_one_conversation_continue_each_other(
    messages: list[Any], a: int, b: int
) -> None:
    shorter, longer = sorted((a, b))
    earlier, later = parts_of("m", messages[:shorter]), parts_of("m", messages[:longer])
    assert compare(earlier, later) is None
    back = compare(later, earlier)
    assert back is None or back == Change("messages", at=min(shorter, len(messages)))


def test_no_text_is_kept() -> None:
    assert b"Hello" not in repr(EARLIER).encode()


def test_a_key_finds_its_own_answers_and_the_oldest_go_first() -> None:
    answered = Answered(max_answered=2)
    alice, bob = Key("alice"), Key("bob")
    answered.put(alice, "one", EARLIER)
    assert answered.find(alice, "one") == EARLIER
    assert answered.find(bob, "one") is None
    answered.set_tokens(alice, "one", 20)
    found = answered.find(alice, "one")
    assert found is not None
    assert found.n_tokens == 20
    answered.put(bob, "two", EARLIER)
    answered.put(bob, "three", EARLIER)
    assert answered.find(alice, "one") is None
    assert len(answered) == 2
    answered.set_tokens(alice, "one", 20)  # gone, and stays so
    assert answered.find(alice, "one") is None


@given(st.lists(st.integers(0, 9), max_size=20))
def test_what_is_kept_is_bounded_by_its_bytes(sizes: list[int]) -> None:
    answered, limit = Answered(max_bytes=200), 200
    for number, size in enumerate(sizes):
        answered.put(Key(), f"{number % 7}", parts_of("m", [ASKED] * size))
        kept = [answered.find(Key(), f"{at}") for at in range(7)]
        total = sum(one.n_bytes for one in kept if one is not None)
        assert total <= limit or len(answered) == 1
