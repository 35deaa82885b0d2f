"""What a program sent and was answered in one conversation: its turns, tool results and usage.

Of the three APIs that agents speak; the path shows which. Values only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.clients.recorder import Exchange

MESSAGES, RESPONSES, CHAT = "/v1/messages", "/v1/responses", "/v1/chat/completions"
_HISTORY = {MESSAGES: "messages", RESPONSES: "input", CHAT: "messages"}
PATHS = tuple(_HISTORY)


class Usage(NamedTuple):
    """Tokens of a prompt, of them warm, and of the reply, by the API's own fields."""

    prompt: int
    cached: int
    reply: int


def path_of(exchange: Exchange) -> str:
    return exchange.path.partition("?")[0]


def history(exchange: Exchange) -> list[Any]:
    """The part of a request that only grows."""
    found = exchange.json[_HISTORY[path_of(exchange)]]
    assert isinstance(found, list)
    return found


def tool_names(exchange: Exchange) -> set[str]:
    """Names of the tools of a request, whatever their form."""
    tools = (exchange.json or {}).get("tools") or []
    return {str(tool.get("function", tool).get("name")) for tool in tools}


def tool_results(items: list[Any]) -> list[str]:
    """The results of tools in a history, each as JSON."""
    found = []
    for item in items:
        if item.get("role") == "tool" or item.get("type") == "function_call_output":
            found.append(item)
        content = item.get("content")
        parts = content if isinstance(content, list) else []
        found += [p for p in parts if isinstance(p, dict) and p.get("type") == "tool_result"]
    return [json.dumps(one) for one in found]


def extends(before: list[Any], after: list[Any]) -> bool:
    return [_plain(item) for item in after[: len(before)]] == [_plain(item) for item in before]


def _plain(item: Any) -> Any:
    """An item of a history without what programs vary and templates do not see.

    Claude Code marks the last item for the cache, and writes a text as a list of one part while it
    is marked.
    """
    if isinstance(item, dict):
        kept = {k: _plain(v) for k, v in item.items() if k != "cache_control"}
        if kept.get("type") == "text" and kept.keys() == {"type", "text"}:
            return kept["text"]
        return kept
    if isinstance(item, list):
        parts = [_plain(part) for part in item]
        return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts
    return item


def usage(exchange: Exchange) -> Usage | None:
    """The last usage in an answer, be it a stream or one object; None where there is none.

    A client of chat completions that does not ask for usage in a stream gets none: then the
    gateway's own fields count.
    """
    found = beside = None
    for value in _objects(exchange.answer):
        for holder in (value, value.get("message"), value.get("response")):
            given = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(given, dict):
                found = given
        if "cache" in value and "timings" in value:
            n_reply = value["timings"]["predicted_n"]
            cache = value["cache"]
            beside = Usage(cache["prompt_tokens"], cache["reused_tokens"], n_reply)
    if found is None:
        return beside
    if path_of(exchange) == MESSAGES:
        read = found.get("cache_read_input_tokens") or 0
        created = found.get("cache_creation_input_tokens") or 0
        return Usage(found["input_tokens"] + created + read, read, found["output_tokens"])
    of_responses = path_of(exchange) == RESPONSES
    prompt, reply = ("input", "output") if of_responses else ("prompt", "completion")
    cached = found[f"{prompt}_tokens_details"]["cached_tokens"]
    return Usage(found[f"{prompt}_tokens"], cached, found[f"{reply}_tokens"])


def _objects(answer: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, or the one object of a whole answer."""
    text = answer.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        yield json.loads(text)
        return
    for line in text.splitlines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data.startswith("{"):
            yield json.loads(data)
