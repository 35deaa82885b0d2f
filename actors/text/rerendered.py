"""A reply with tool calls as it comes back: as values, which the template writes in its own way.

A model may write other blanks, or another order of keys, than the template does; then the text of
the next turn is not the text that was generated, and all after the call would be computed again. So
the conversation with the reply as values is rendered at once, and where that text means exactly the
reply, the sampled tokens stand for it.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actors.text.chat_prompt import ControlTokens
from native.chat_reply import FAILED, Reader, ReplyRead
from native.errors import NativeError


def end_of_reply(text: str, control: ControlTokens, ends: Iterable[int]) -> int:
    """Where the last message of a rendered conversation ends: before the last end-of-turn token."""
    wanted = frozenset(ends)
    found = [start for start, _, token in control.split(text, frozenset()) if token in wanted]
    return found[-1] if found else -1


def means_the_same(
    reader: Reader, reply: bytes, rendered: str, calls: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a rendered reply is read as the generated one is, its arguments compared as JSON.

    ``rendered`` begins where the reply does; ``calls`` are those of the reply, in OpenAI's form.
    """
    try:
        one = reader.read(reply, is_partial=False)
        other = reader.read(rendered.encode(), is_partial=False)
    except NativeError:
        return False
    if FAILED in (one.status, other.status) or len(calls) != len(one.calls):
        return False
    return _meaning(one) == _meaning(other) is not None


def _meaning(read: ReplyRead) -> object:
    """What a reply means, for comparison; None where its arguments are no JSON."""
    try:
        calls = [(call.name, json.loads(call.arguments)) for call in read.calls]
    except (ValueError, RecursionError):
        return None
    return read.reasoning.strip(), read.content.strip(), calls


def message_of(text: str, thinking: str, calls: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """A reply as a message of a conversation; calls are (id, name, arguments)."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["reasoning_content"] = thinking
    message["tool_calls"] = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in calls
    ]
    return message
