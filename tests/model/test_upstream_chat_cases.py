"""llama.cpp's own expectations of replies, from ``tests/test-chat.cpp`` of the pinned archive."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from native.chat_format import ChatFormat, ReplyReader
from tests.support.reply_play import Played, bytewise, play
from tests.support.upstream_cases import Case, Message, cases_of

pytestmark = pytest.mark.model

MET, JSON, THOUGHTS, REST, BEFORE = "met", "json_schema", "thoughts", "rest", "before"
OUTCOMES: Final = {
    MET: 434,
    JSON: 9,  # a JSON schema for the whole reply; that is a grammar of its own here
    THOUGHTS: 8,  # thoughts as a part of the text are expected, or none are
    REST: 7,  # what is in no format is dropped there; here it is text, with a note
    BEFORE: 2,  # what the prompt has of a thought is given again; here it is only continued
}
"""The first must only grow, the others only shrink."""
AT_MOST_UNREADABLE: Final = 3
"""Their conversations are made by statements. Must only shrink."""
USER: Final = Message("Hey there!", role="user")


@pytest.fixture(scope="module")
def cases(published: Path) -> list[Case]:
    source = (published.parent / "tests" / "test-chat.cpp").read_text(encoding="utf-8")
    found, n_unreadable = cases_of(source)
    assert n_unreadable <= AT_MOST_UNREADABLE
    return found


def test_replies_are_read_as_llama_cpp_expects_them(cases: list[Case], published: Path) -> None:
    formats: dict[str, ChatFormat] = {}
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number, case in enumerate(cases):
        if "json_schema" in case.settings:
            outcomes[JSON] += 1
            continue
        if case.template not in formats:
            source = (published.parent / case.template).read_text(encoding="utf-8")
            formats[case.template] = ChatFormat(source)
        played = played_both_ways(reader_for(formats[case.template], case), case.reply.encode())
        problem = difference(played, case)
        outcome = MET if problem is None else known(played, case)
        outcomes[outcome] += 1
        if outcome == "wrong":
            wrong.append(f"{number} {case.template} {case.reply!r}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert dict(outcomes) == OUTCOMES


def known(played: Played, case: Case) -> str:
    """Why a reply is not read as llama.cpp expects it."""
    if str(case.settings.get("reasoning_format", "NONE")).endswith("NONE"):
        return THOUGHTS
    if played.note is not None:
        return REST
    thinking, expected = played.thinking.strip(), case.expected.reasoning.strip()
    if thinking == expected and played.text.strip().startswith(case.expected.content.strip()):
        return REST
    return BEFORE if thinking and expected.endswith(thinking) else "wrong"


def reader_for(chat_format: ChatFormat, case: Case) -> ReplyReader:
    settings = case.settings
    choice = settings.get("tool_choice", "_AUTO").rpartition("_")[2].lower()
    continued = settings.get("continue_final_message", "")
    more: dict[str, Any] = {}
    if continued:
        is_thought = continued.endswith("REASONING")
        more["continue_final_message"] = "reasoning_content" if is_thought else "content"
    return chat_format.reader(
        [one.plain() for one in case.messages or [USER]],
        case.tools,
        tool_choice=choice,
        parallel_tool_calls=settings.get("parallel_tool_calls", False),
        enable_thinking=settings.get("enable_thinking", True),
        add_generation_prompt=settings.get("add_generation_prompt", True),
        **more,
    )


def played_both_ways(reader: ReplyReader, data: bytes) -> Played:
    whole = play(reader, [data] if data else [])
    assert play(reader, bytewise(data)).values == whole.values, data
    return whole


def difference(whole: Played, case: Case) -> str | None:
    expected = _without_prefill(case)
    for found, meant in (
        (whole.text, expected.content),
        (whole.thinking, expected.reasoning),
    ):
        if found.strip() != meant.strip():
            return f"{found!r} is not {meant!r}"
    calls = [(call.name, _normal(call.arguments)) for call in whole.calls]
    meant_calls = [(name, _normal(arguments)) for name, arguments, _ in expected.calls]
    return None if calls == meant_calls else f"{calls} are not {meant_calls}"


def _without_prefill(case: Case) -> Message:
    """llama.cpp gives what a reply continues again; here it is only continued."""
    expected, last = case.expected, (case.messages or [USER])[-1]
    if "continue_final_message" not in case.settings:
        return expected
    return Message(
        expected.content.strip().removeprefix(last.content.strip()),
        expected.reasoning.strip().removeprefix(last.reasoning.strip()),
        expected.calls,
    )


def _normal(arguments: str) -> object:
    """llama.cpp's tests do not compare arguments that are no JSON yet."""
    try:
        return json.loads(arguments)
    except ValueError:
        return None
