"""The reference of the configuration, its defaults as TOML, and its JSON schema: all of the schema.

See ``runtime.settings.schema``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from runtime.settings import schema
from runtime.settings.sizes import format_size

_EXAMPLES: Final = {
    "path": "/path", "budget": "4GiB", "duration": "5m", "integer": 1, "number": 1.0, "string": "…",
}  # fmt: skip


def markdown() -> str:
    """Every setting with what it may be, its default and its meaning, as Markdown."""
    lines = [
        "# Configuration",
        "",
        "A TOML file for `serve --config`, and the values of `RuntimeConfig`. A command line",
        "option is stronger than the file, the file stronger than the default. An unknown key or",
        "a wrong value stops the start with an error that names the key and the line.",
        "",
        "`llama-actors config show-default` prints the file of all defaults, `config check` checks",
        "a file, `config schema` prints the JSON schema for editors.",
        "",
    ]
    for heading, purpose, settings in _tables():
        lines += [f"## {heading}", "", purpose, "", "| Setting | Value | Default | Meaning |"]
        lines.append("|---|---|---|---|")
        for key, one in settings.items():
            cells = (f"`{key}`", schema.kind_of(one), _default_cell(one), one["description"])
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def default_toml() -> str:
    """A configuration file of all settings, each as a comment with its meaning and default."""
    lines = ["# Settings of a node. Each is shown with its default; remove the # to change it.", ""]
    for heading, purpose, settings in _tables():
        is_model = heading.startswith("[models")
        if heading.startswith("["):
            lines += ["", *_wrapped(purpose), f"# {heading}" if is_model else heading]
        for key, one in settings.items():
            if schema.KIND in one and one[schema.KIND] in ("disks", "models", "model"):
                continue  # tables, below
            value = one["default"]
            shown = _example(one) if value is None else value
            lines += _wrapped(one["description"])
            note = "  # not set" if value is None else ""
            lines.append(f"# {key} = {_toml(shown)}{note}")
    disks = schema.table_schema(schema.Node)["properties"]["cache_disks"]["description"]
    lines += ["", *_wrapped(disks), "# [cache_disks]", '# "/path" = "200GiB"']
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a configuration file."""
    _, parts = msgspec.json.schema_components(
        [schema.Node, schema.Model], ref_template="#/$defs/{name}"
    )
    root = parts.pop("Node")
    root["title"] = "llama-actors"
    root["properties"]["models"]["additionalProperties"] = {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/Model"}]
    }
    root["properties"]["models_defaults"]["$ref"] = "#/$defs/Model"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": parts}


def _tables() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Heading, purpose, and the schema of each setting, of every table."""
    node = schema.table_schema(schema.Node)
    top = {key: one for key, one in node["properties"].items() if key not in schema.TABLES}
    yield "The node", node["description"], top
    for name in schema.TABLES:
        table = node["properties"][name]
        yield f"[{name}]", table["description"], table["properties"]
    model = schema.table_schema(schema.Model)
    yield "[models.ID]", model["description"], model["properties"]


def _default_cell(one: dict[str, Any]) -> str:
    value = one["default"]
    if value is None or value == {}:
        return "–"
    is_size = one.get(schema.KIND) in ("budget", "size")
    return format_size(value) if is_size and value else f"`{_toml(value)}`"


def _example(one: dict[str, Any]) -> Any:
    kind = one.get(schema.KIND)
    if kind is not None:
        return _EXAMPLES[kind]
    forms = [form for form in one.get("anyOf", [one]) if form.get("type") != "null"]
    return _EXAMPLES.get(forms[0].get("type", ""), [])


def _toml(value: Any) -> str:
    """A value as TOML writes it; for these types JSON writes the same."""
    return json.dumps(value, ensure_ascii=False)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent="# ", subsequent_indent="# ")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
