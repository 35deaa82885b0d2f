"""Messages, calls and a tool for requests to published chat templates."""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]


def said(role: str, content: str | None = None, **more: object) -> Message:
    return {"role": role, "content": content, **more}


CALL = {"name": "look_up", "arguments": '{"word": "heron"}'}
CALLS = [{"id": "call00001", "type": "function", "function": CALL}]
TOOL = {
    "type": "function",
    "function": {
        "name": "dictionary",
        "description": "Explains a word.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "Any noun."}},
            "required": ["word"],
        },
    },
}
