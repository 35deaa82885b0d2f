"""kill -9 of the model in the middle of a tool call: it goes on, and the call is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import CompletionEvent, ToolCall, ToolCallEvent
from tests.support.runtime_nodes import kill, pid_of, started
from tests.support.tool_template import ASKED, TEMPLATE, TOOLS

pytestmark = pytest.mark.fault

OPTIONS = {
    "tools": TOOLS,
    "chat_template": TEMPLATE,
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 160,
    "exact": "always",
}


def test_a_tool_call_goes_on_in_the_next_process(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        whole = node.chat("demo", ASKED, **OPTIONS)
        for n_before in (1, 4, 9):
            pieces: list[ToolCallEvent] = []
            for event in node.stream_chat("demo", ASKED, **OPTIONS):
                if isinstance(event, ToolCallEvent):
                    pieces.append(event)
                    if len(pieces) == n_before:
                        kill(pid_of(node, "model:demo"))
                elif isinstance(event, CompletionEvent):
                    done = event.completion
            assert done.tokens == whole.tokens
            (call,) = done.tool_calls
            assert (call.name, call.arguments) == _value(whole.tool_calls[0])
            assert call.is_closed
            assert {one.id for one in pieces[:1]} == {call.id}
            assert "".join(one.arguments for one in pieces) == call.arguments
            assert [one.is_end for one in pieces].count(True) == 1


def _value(call: ToolCall) -> tuple[str, str]:
    return call.name, call.arguments
