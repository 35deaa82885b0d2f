"""Items of OpenAI's Responses API: checked, with ids, and read as messages of a conversation.

A reply is several items (its thoughts, its text, each call), and a template wants one message. So
what stands together is joined again: thoughts with what follows them, text with the calls after it.
Ids are for clients and for this joining; no template gets one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from runtime.gateway.wire.failure import invalid, unsupported

Item = dict[str, Any]
Given = str | Sequence[Mapping[str, Any]] | None

ROLES: Final = ("user", "assistant", "system", "developer")
SKIPPED: Final = frozenset(
    {
        "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call",
        "mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response",
        "tool_search_call", "tool_search_output",
    }
)  # fmt: skip
"""What tools of a provider leave in a conversation; the texts around them stand without it."""
_TEXTS: Final = ("input_text", "output_text", "text")
_PREFIX: Final = {"reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
_OF_REPLY: Final = re.compile(r"(?:rs|msg|fc)_([0-9a-f]{32})_[0-9]+")
_OURS: Final = re.compile(r"[a-z]+_([0-9a-f]{32})_(?:in)?[0-9]+")


def item_id(kind: str, reply: str, number: int | str) -> str:
    """The id of an item. ``reply``: ``Head.id``; ``number``: of its output."""
    return f"{_PREFIX.get(kind, 'msg')}_{reply}_{number}"


def response_of(item: str) -> str | None:
    """The id of the response that an item of this node belongs to; None: it is of none."""
    found = _OURS.fullmatch(item)
    return f"resp_{found[1]}" if found else None


def references(given: Given) -> list[str]:
    """Ids of the stored items that an input refers to."""
    items = () if given is None or isinstance(given, str) else given
    return [str(one.get("id")) for one in items if _is_reference(one)]


def _is_reference(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "item_reference" or set(item) == {"id"}


def items_from(
    given: Given, reply: str, known: Mapping[str, Item] | None = None
) -> tuple[list[Item], tuple[str, ...]]:
    """An input as whole items, and remarks on what was left out; Refused names a wrong place.

    ``known``: the stored items that it refers to, by their ids.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}] if given else []
    found, skipped = list[Item](), set[str]()
    for at, one in enumerate(given or ()):
        where = f"input[{at}]"
        if _is_reference(one):
            found.append(_referenced(where, one, known or {}))
        elif isinstance(one.get("type"), str) and one["type"] in SKIPPED:
            skipped.add(one["type"])
        else:
            found.append(_item(where, one, reply, at))
    names = ", ".join(sorted(skipped))
    return found, (f"input: {names}: left out, no model here reads them",) if names else ()


def _referenced(where: str, item: Mapping[str, Any], known: Mapping[str, Item]) -> Item:
    name = str(item.get("id"))
    if name not in known:
        raise invalid(f"{where} refers to the item {name!r}, which is not stored here", where)
    return known[name]


def _item(where: str, item: Mapping[str, Any], reply: str, at: int) -> Item:
    kind = item.get("type") or ("message" if "role" in item else None)
    own = item.get("id")
    name = own if isinstance(own, str) and own else item_id(str(kind), reply, f"in{at}")
    match kind:
        case "message":
            return {"id": name, **_message(where, item)}
        case "function_call":
            texts = {key: _text(where, item, key) for key in ("call_id", "name", "arguments")}
            return {"id": name, "type": kind, **texts, "status": "completed"}
        case "function_call_output":
            output = item.get("output")
            if not isinstance(output, str):
                output = _parts(f"{where}.output", output, "input_text")
            facts = {"call_id": _text(where, item, "call_id"), "output": output}
            return {"id": name, "type": kind, **facts, "status": "completed"}
        case "reasoning":
            return {"id": name, **_reasoning(item)}
        case _:
            raise unsupported(
                f"{where} is of the type {kind!r}, which no model here reads; there are message, "
                "function_call, function_call_output and reasoning",
                where,
            )


def _text(where: str, item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise invalid(f"{where}.{key} must be text", f"{where}.{key}")
    return value


def _message(where: str, item: Mapping[str, Any]) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    kind = "output_text" if role == "assistant" else "input_text"
    given = [{"type": kind, "text": content}] if isinstance(content, str) else content
    parts = _parts(f"{where}.content", given, kind)
    return {"type": "message", "role": role, "status": "completed", "content": parts}


def _parts(where: str, given: Any, kind: str) -> list[Item]:
    if not isinstance(given, list):
        raise invalid(f"{where} must be text or a list of parts", where)
    return [_part(f"{where}[{at}]", part, kind) for at, part in enumerate(given)]


def _part(where: str, part: Any, kind: str) -> Item:
    found = part.get("type") if isinstance(part, dict) else None
    key = "refusal" if found == "refusal" else "text"
    if found not in (*_TEXTS, "refusal"):
        raise unsupported(f"{where} is of the type {found!r}; only parts of text are read", where)
    if not isinstance(part.get(key), str):
        raise invalid(f"{where}.{key} must be text", f"{where}.{key}")
    return text_part(part[key]) if kind == "output_text" else {"type": kind, "text": part[key]}


def text_part(text: str, logprobs: Sequence[Any] = ()) -> Item:
    """The content of a reply."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _reasoning(item: Mapping[str, Any]) -> Item:
    """Thoughts that came without their text stay without: a summary is no thought."""
    parts = item.get("content")
    texts = [
        {"type": "reasoning_text", "text": part["text"]}
        for part in (parts if isinstance(parts, list) else ())
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    summary = item.get("summary")
    return {
        "type": "reasoning",
        "summary": summary if isinstance(summary, list) else [],
        "content": texts,
        "encrypted_content": None,
        "status": "completed",
    }


# ── messages ────────────────────────────────────────────────────────────────────────────────────


def messages_of(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Whole items as messages in the form of chat completions."""
    found = _Messages()
    for item in items:
        found.add(item)
    return found.messages


class _Messages:
    """Joins items to messages."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reply: dict[str, Any] | None = None
        """The message of the assistant that the next items may belong to."""
        self._owner: str | None = None
        """The response that it is of, where its items tell."""
        self._thought = ""
        self._has_results = False
        """Results of tools have come after ``_reply``."""

    def add(self, item: Item) -> None:
        kind = item["type"]
        if kind == "reasoning":
            self._think(item)
        elif kind == "function_call":
            self._call(item)
        elif kind == "function_call_output":
            self._thought, self._has_results = "", True
            content = _joined(item["output"])
            self.messages.append(
                {"role": "tool", "tool_call_id": item["call_id"], "content": content}
            )
        elif item["role"] == "assistant":
            self._say(item)
        else:
            self._thought, self._reply = "", None
            self.messages.append({"role": item["role"], "content": _joined(item["content"])})

    def _think(self, item: Item) -> None:
        self._thought += "".join(part["text"] for part in item["content"])
        if not self._is_same(item):
            self._reply = None  # they belong to what follows

    def _say(self, item: Item) -> None:
        text = _joined(item["content"])
        reply = self._reply
        if reply is None or self._has_results or not self._is_same(item):
            reply = self._begin(item)
            reply["content"] = text
        else:
            reply["content"] = (reply["content"] or "") + text
        self._put_thought(reply)

    def _call(self, item: Item) -> None:
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        reply = self._reply
        # Clients put a result after each call; one reply with several calls stays one message.
        is_other = self._has_results and not self._is_same(item)
        if reply is None or is_other or self._is_foreign(item):
            reply = self._begin(item)
        reply.setdefault("tool_calls", []).append(call)
        self._put_thought(reply)

    def _begin(self, item: Item) -> dict[str, Any]:
        reply = self._reply = {"role": "assistant", "content": None}
        self._owner, self._has_results = _owner(item), False
        self.messages.append(reply)
        return reply

    def _put_thought(self, reply: dict[str, Any]) -> None:
        if self._thought:
            reply["reasoning_content"] = reply.get("reasoning_content", "") + self._thought
        self._thought = ""

    def _is_same(self, item: Item) -> bool:
        """Whether an item is known to be of the same reply."""
        return self._reply is not None and _owner(item) == self._owner is not None

    def _is_foreign(self, item: Item) -> bool:
        """Whether it is known to be of another one."""
        owner = _owner(item)
        return None not in (owner, self._owner) and owner != self._owner


def _owner(item: Item) -> str | None:
    found = _OF_REPLY.fullmatch(item["id"])
    return found[1] if found else None


def _joined(content: str | list[Item]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
