"""Sets of tools such as agents have, of any size, and random calls of them.

Made by a seed: names, nested objects, lists, enumerations, formats and limits in the proportions of
published tool sets, and descriptions that make up half of the text.
"""

from __future__ import annotations

import json
import random
from typing import Any

_NOUNS = (
    "account", "address", "agent", "amount", "branch", "budget", "calendar", "channel", "city",
    "client", "comment", "contact", "country", "currency", "date", "device", "document", "email",
    "event", "file", "filter", "folder", "group", "image", "invoice", "issue", "item", "job",
    "label", "language", "limit", "location", "member", "message", "month", "number", "order",
    "owner", "page", "payment", "period", "person", "plan", "price", "project", "query", "reason",
    "record", "region", "report", "request", "role", "room", "rule", "schedule", "scope",
    "section", "service", "session", "size", "source", "state", "store", "street", "subject",
    "supplier", "table", "tag", "target", "task", "team", "template", "ticket", "title", "token",
    "topic", "track", "type", "unit", "user", "value", "vendor", "version", "volume", "year",
)  # fmt: skip
Schema = dict[str, Any]


def tool_set(*, n_bytes: int = 0, n_tools: int = 0, seed: int = 1) -> list[Schema]:
    """Tools in OpenAI's form: so many, or as many as have about so many bytes as JSON."""
    rng = random.Random(seed)
    tools: list[Schema] = []
    size = 0
    while len(tools) < n_tools or size < n_bytes:
        name = f"{rng.choice(_NOUNS)}_{rng.choice(_NOUNS)}_{len(tools)}"
        function = {"name": name, "description": _words(rng, 20), "parameters": _object(rng, 0)}
        tools.append({"type": "function", "function": function})
        size += len(json.dumps(tools[-1])) + 2
    return tools


def call_schema(tools: list[Schema]) -> Schema:
    """The schema of one call of one of the tools."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": tool["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in (one["function"] for one in tools)
    ]
    return {"anyOf": calls}


def nested_schema(depth: int) -> Schema:
    """Objects within objects."""
    schema: Schema = {"type": "string"}
    for level in range(depth):
        schema = {
            "type": "object",
            "properties": {f"level_{level}": schema, "note": {"type": "string"}},
            "required": [f"level_{level}", "note"],
            "additionalProperties": False,
        }
    return schema


def random_value(schema: Schema, rng: random.Random) -> Any:
    """A value that obeys a schema of this module."""
    if "anyOf" in schema:
        return random_value(rng.choice(schema["anyOf"]), rng)
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if listed:
        return rng.choice(listed)
    match schema["type"]:
        case "object":
            needed = schema["required"]
            pairs = schema["properties"].items()
            return {n: random_value(s, rng) for n, s in pairs if n in needed or rng.random() < 0.6}
        case "array":
            return [random_value(schema["items"], rng) for _ in range(rng.randint(0, 3))]
        case "integer":
            return rng.randint(schema["minimum"], schema["maximum"])
        case "number":
            return round(rng.uniform(-100, 1000), 2)
        case "boolean":
            return rng.random() < 0.5
        case _:
            return _text(schema, rng)


def _text(schema: Schema, rng: random.Random) -> str:
    formats = {"date-time": "2026-11-30T19:39:06Z", "uuid": str(_uuid(rng))}
    return formats.get(schema.get("format", "")) or _words(rng, rng.randint(1, 12))


def _uuid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(_NOUNS) for _ in range(n))


def _object(rng: random.Random, depth: int) -> Schema:
    ends = ("", "_id", "_name", "_at")
    names = list(
        dict.fromkeys(rng.choice(_NOUNS) + rng.choice(ends) for _ in range(rng.randint(2, 7)))
    )
    return {
        "type": "object",
        "properties": {name: _property(rng, depth) for name in names},
        "required": names[: rng.randint(1, len(names))],
        "additionalProperties": False,
    }


def _property(rng: random.Random, depth: int) -> Schema:
    leaves: list[Schema] = [
        *({"type": "string"} for _ in range(4)),
        {"type": "string", "enum": sorted(rng.sample(_NOUNS, rng.randint(2, 8)))},
        {"type": "integer", "minimum": 0, "maximum": rng.choice((10, 100, 1000))},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "uuid"},
    ]
    kind = rng.randrange(len(leaves) + 2)
    described = {"description": f"The {_words(rng, rng.randint(4, 12))}."}
    if kind < len(leaves):
        return {**leaves[kind], **described}
    if kind == len(leaves) or depth == 3:
        items = _property(rng, min(depth + 1, 3))
        return {"type": "array", "items": items, "maxItems": rng.choice((5, 10, 50)), **described}
    return {**_object(rng, depth + 1), **described}
