"""Canonical rules: what each changes, and that it changes nothing twice."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.wire.canonical import RULES, Conversation, canonical
from runtime.gateway.wire.wanted import Wanted
from runtime.settings.schema import CANONICAL_RULES

pytestmark = pytest.mark.pure

BILLING = "x-anthropic-billing-header: cc_version=2.1.197.a01; cc_entrypoint=cli;"
ASKED = {"role": "user", "content": "Hello"}


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def system(*texts: str) -> dict[str, Any]:
    content = [part(one) for one in texts] if len(texts) != 1 else texts[0]
    return {"role": "system", "content": content}


def ruled(name: str, *messages: Any, tools: tuple[Any, ...] = ()) -> Conversation:
    return RULES[name](Conversation(list(messages), list(tools)))


def test_every_rule_that_can_be_set_is_there() -> None:
    assert set(RULES) == set(CANONICAL_RULES)


@pytest.mark.parametrize(
    ("given_messages", "left"),
    [
        ([system(BILLING, "You help.")], [system("x", "You help.")]),
        ([system(f"{BILLING}\nYou help.")], [system("You help.")]),
        ([system(f"{BILLING}\n{BILLING}\n\nYou help.")], [system("You help.")]),
        ([system(BILLING)], []),
        ([system("You help.")], [system("You help.")]),
    ],
)
def test_the_line_for_the_biller_is_dropped(
    given_messages: list[dict[str, Any]], left: list[dict[str, Any]]
) -> None:
    for one in left:
        if isinstance(one["content"], list):
            one["content"] = one["content"][1:]
    assert ruled("claude-billing", *given_messages, ASKED).messages == [*left, ASKED]


def test_a_user_may_write_about_the_biller() -> None:
    asked = {"role": "user", "content": BILLING}
    assert ruled("claude-billing", asked).messages == [asked]
    assert ruled("claude-billing", system(BILLING)).messages == [system(BILLING)]


def test_tools_are_sorted_by_name() -> None:
    one, other = {"type": "function", "function": {"name": "b"}}, {"name": "a"}
    assert ruled("sort-tools", ASKED, tools=(one, other)).tools == [other, one]


@pytest.mark.parametrize(
    "line",
    ["Today's date is 2026-11-29.", "Today\u2019s date: Nov 29, 2026", "- Current date: 2026-11-29",
     "The current date and time is 2026-11-29 12:00", "  Today is Sunday, 29 November 2026.",
     "Current local time: 12:00"],
)  # fmt: skip
def test_a_line_with_the_date_moves_to_the_end(line: str) -> None:
    found = ruled("date-to-end", system(f"You help.\n{line}\nBe brief."), ASKED)
    assert found.messages == [
        system("You help.\nBe brief."),
        {"role": "user", "content": f"Hello\n\n{line.strip()}"},
    ]
    parts = ruled(
        "date-to-end", system("You help.", line), {"role": "user", "content": [part("x")]}
    )
    assert parts.messages == [
        {"role": "system", "content": [part("You help.")]},
        {"role": "user", "content": [part("x"), part(line.strip())]},
    ]


@pytest.mark.parametrize(
    "line",
    ["Today is a good day.", "The date is in the file of 2026-11-29.",
     "Today's date is 2026-11-29, and so you should do all of the following things: " + "x" * 80],
)  # fmt: skip
def test_other_lines_stay(line: str) -> None:
    given_one = Conversation([system(f"You help.\n{line}"), ASKED], [])
    assert RULES["date-to-end"](given_one) is given_one


def test_without_a_user_the_date_stays() -> None:
    only = system("Today's date is 2026-11-29.")
    assert ruled("date-to-end", only).messages == [only]


def test_a_request_names_the_rules_that_changed_it() -> None:
    tools = [{"name": "b"}, {"name": "a"}]
    wanted = Wanted(
        model="", kind="chat", inputs=([system(BILLING), ASKED],), options={"tools": tools}
    )
    once = canonical(wanted, CANONICAL_RULES)
    assert once.rules == ("claude-billing", "sort-tools")
    assert once.inputs == ([ASKED],)
    assert once.options["tools"] == tools[::-1]
    assert canonical(once, CANONICAL_RULES) is once
    prompt = Wanted(model="", kind="prompt", inputs=(BILLING,))
    assert canonical(prompt, CANONICAL_RULES) is prompt


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([system("You help.", "", "Be brief."), ASKED], [system("You help.\n\nBe brief."), ASKED]),
        (
            [system("You help."), said("developer", "Be brief."), ASKED],
            [system("You help.\n\nBe brief."), ASKED],
        ),
        ([ASKED, system("Now!")], [said("user", f"Hello\n\n{reminder('Now!')}")]),
        ([ASKED, system("Now!"), said("assistant", "a")],
         [said("user", f"Hello\n\n{reminder('Now!')}"), said("assistant", "a")]),
        (
            [ASKED, said("assistant", "a"), system("Now", "then"), said("user", "b")],
            [ASKED, said("assistant", "a"), said("user", reminder("Now\n\nthen") + "\n\nb")],
        ),
        (
            [said("user", [{"type": "image"}]), system("Now!")],
            [said("user", [{"type": "image"}, part(reminder("Now!"))])],
        ),
        (
            [ASKED, said("assistant", "a"), system("1"), system("2"), said("user", [part("b")])],
            [ASKED, said("assistant", "a"),
             said("user", [part(f"{reminder('1')}\n\n{reminder('2')}"), part("b")])],
        ),
        ([said("assistant", "a"), system("Now!")],
         [said("assistant", "a"), said("user", reminder("Now!"))]),
        ([ASKED, system("")], [ASKED]),
        (
            [ASKED, said("assistant", None, tool_calls=[{"id": "x"}]), system("Now!"),
             said("tool", "r", tool_call_id="x"), said("assistant", "done")],
            [ASKED, said("assistant", None, tool_calls=[{"id": "x"}]),
             said("tool", "r", tool_call_id="x"), said("user", reminder("Now!")),
             said("assistant", "done")],
        ),
    ],
)  # fmt: skip
def test_there_is_one_system_text(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    assert ruled("stable-system", *before).messages == after


@pytest.mark.parametrize(
    "messages",
    [[system("You help."), ASKED], [said("system", [part("x")])], [ASKED], [],
     [said("system", [{"type": "image"}]), system("x"), ASKED]],
)  # fmt: skip
def test_what_has_one_system_text_stays(messages: list[Any]) -> None:
    given_one = Conversation(messages, [])
    assert RULES["stable-system"](given_one) is given_one


def test_what_comes_later_changes_nothing_before_it() -> None:
    """Each turn begins as the one before, but for the last message of that."""
    talk = [system("S", "T"), ASKED, said("assistant", "a"), system("Now!"), said("user", "b"),
            system("And!"), said("assistant", "c"), said("user", "d")]  # fmt: skip
    turns = [ruled("stable-system", *talk[:n]).messages for n in range(2, len(talk) + 1)]
    for one, following in itertools.pairwise(turns):
        n_same = len(one) - 1
        assert following[:n_same] == one[:n_same]


def test_tool_calls_are_counted() -> None:
    def talk(*ids: str) -> list[dict[str, Any]]:
        one, other, third = ids
        return [
            ASKED,
            said("assistant", None, tool_calls=[{"id": one, "type": "function"}, {"id": other}]),
            said("tool", "2", tool_call_id=other),
            said("tool", "1", tool_call_id=one),
            said("assistant", None, tool_calls=[{"id": third}, {"type": "function"}, 5]),
            said("tool", "3", tool_call_id=third),
        ]

    assert ruled("strip-ids", *talk("call_a", "call_b", "zz")).messages == talk(
        "call_0", "call_1", "call_2"
    )
    assert ruled("strip-ids", *talk("call_1", "call_0", "x")).messages == talk(
        "call_0", "call_1", "call_2"
    )
    counted = Conversation(talk("call_0", "call_1", "call_2"), [])
    assert RULES["strip-ids"](counted) is counted
    alone = ruled("strip-ids", said("tool", "x", tool_call_id="lost")).messages
    assert alone == [said("tool", "x", tool_call_id="call_0")]


LINES = st.lists(
    st.sampled_from(
        [BILLING, "", " ", "You help.", "Today's date is 2026-11-29.", f" {BILLING}",
         "Current date: 1", "x"]
    ), max_size=5,
).map("\n".join)  # fmt: skip
ODD = st.sampled_from([None, 3, "text", [], {}, {"type": "image"}])
CONTENT = LINES | st.lists(LINES.map(part) | ODD, max_size=3) | ODD
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", 5])
IDS = st.sampled_from(["call_0", "call_1", "call_2", "x", "", None, 4])
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "tool_calls": st.lists(IDS.map(lambda one: {"id": one}) | ODD, max_size=3) | ODD,
        "tool_call_id": IDS,
        "content": CONTENT,
    },
)
MESSAGES = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, ROLES, CONTENT)
    | st.builds(lambda role, more: {"role": role, **more}, ROLES, CALLS)
    | ODD,
    max_size=5,
)
NAMES = st.sampled_from(["a", "b", "B", "", 3])
TOOLS = st.lists(
    NAMES.map(lambda name: {"name": name})
    | NAMES.map(lambda name: {"type": "function", "function": {"name": name}})
    | ODD,
    max_size=4,
)


@given(MESSAGES, TOOLS, st.sampled_from(sorted(RULES)))
def test_a_rule_changes_nothing_that_it_has_made_and_nothing_in_place(
    messages: list[Any], tools: list[Any], name: str
) -> None:
    before = Conversation(messages, tools)
    kept = copy.deepcopy(before)
    once = RULES[name](before)
    assert before == kept
    assert RULES[name](once) is once
