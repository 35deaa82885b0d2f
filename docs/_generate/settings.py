"""The reference of the settings, from the classes that check them.

A setting's meaning is the text below its field, or the comment behind it. Everything that depends
on how the settings are declared is in this file. Where the code has a reference of its own
(``runtime.settings.reference``), that is the page.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _generate import cli
from cache.policy import SAVE_ALL
from native.params import ModelParams
from runtime.settings.config import RuntimeConfig
from runtime.settings.sizes import format_size

SAVE_KEYS = (
    "min_tokens", "min_tail_tokens", "save_prompt_tail", "save_while_generating",
    "save_finish_tail", "tail_delay_ms", "tail_disk_delay_s", "session_resume_wait_ms",
)  # fmt: skip
SAVE_TABLES = ("live", "logits", "restore")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a table."""

    key: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file; the name of the first, without a table, is empty."""

    name: str
    purpose: str
    settings: tuple[Setting, ...]


_TABLES_OF_THE_FILE = {"save", "pressure", "models", "cache_disks"}
_FLAGS = {"threads": "n_threads", "threads_batch": "n_threads_batch"}
"""Load options whose flag has another name."""
_MEANINGS = {
    "admin_port": "Port on loopback by which a node is found.",
    "idle_steps_unstored": "The same for one that is not stored anywhere.",
    "memory_bytes": "Kept logits in the model's process; 0: none.",
    "row_share": "They are stored in a row if they add at most this share to its KV.",
    "min_samples": "Observations of a tier before anything is refused.",
    "min_saved_s": "Restore anyway where computing would save less than this.",
    "enabled": "Whether memory pressure evicts rows.",
    "high": "Share of the total at which eviction begins.",
    "low": "Share of the total down to which it goes.",
    "interval_s": "Seconds between two readings.",
    "flash_attn": "Use flash attention; quantised values need it.",
    "use_mmap": "Map the file instead of reading it.",
    "use_mlock": "Keep the weights in memory, never swapped.",
    "vocab_only": "Load no weights: the model only tokenises.",
    "check_memory": "Refuse a model that is estimated not to fit.",
    "draft_path": "A small model of the same vocabulary, for speculation.",
    "lora": "Adapters to apply from the start, as [path, scale].",
    "tensor_split": "Share of each GPU; empty: by free memory.",
}
"""Of keys whose class does not explain each by itself."""
_SIZES = {"cache_disk", "cache_ram", "cache_ram_file", "memory_bytes", "min_evict_bytes"}


def tables() -> list[Table]:
    """Every table, in the order of a file that sets all of them."""
    top = tuple(_settings(RuntimeConfig, None, leave_out=_TABLES_OF_THE_FILE))
    found = [
        Table("", "Keys outside of any table.", top),
        Table(
            "save",
            "What is stored, and when.",
            tuple(one for one in _settings(None, SAVE_ALL) if one.key in SAVE_KEYS),
        ),
    ]
    found += [
        Table(name, _first_sentence(getattr(SAVE_ALL, name)), tuple(_settings(None, value)))
        for name in SAVE_TABLES
        if (value := getattr(SAVE_ALL, name))
    ]
    pressure = RuntimeConfig().pressure
    found.append(
        Table("pressure", "Memory pressure; off by default.", tuple(_settings(None, pressure)))
    )
    path = Setting("path", "text", "", "The GGUF file.")
    model = Setting("backend", "text", '"llama"', '"stub" runs without native code, for tests.')
    markers = tuple(
        Setting(key, "list of texts", "", "What starts and ends such a span; [] for none.")
        for key in ("thinking_markers", "tool_call_markers")
    )
    template = (
        Setting("chat_template", "text", "", "A Jinja text in place of the one in the file."),
        Setting("chat_template_file", "path", "", "The same, from a file."),
    )
    options = tuple(_settings(ModelParams, None))
    found.append(
        Table(
            "models.ID",
            "One table for each model that is loaded at the start.",
            (path, model, *markers, *template, *options),
        )
    )
    return found


def reference() -> str:
    """The page's Markdown: one section for each table."""
    if importlib.util.find_spec("runtime.settings.reference") is not None:
        page: str = importlib.import_module("runtime.settings.reference").markdown()
        return page[page.index("\n## ") + 1 :]
    return "\n".join(_section(table) for table in tables())


def _section(table: Table) -> str:
    title = f"`[{table.name}]`" if table.name else "Top level"
    lines = [f"## {title}", "", table.purpose, ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{one.key}` | {_cell(one.type)} | {_code(one.default)} | {_cell(one.meaning)} |"
        for one in table.settings
    ]
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else "–"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _settings(
    kind: type | None,
    value: Any,
    leave_out: set[str] = frozenset(),  # type: ignore[assignment]
) -> Iterator[Setting]:
    """The fields of a dataclass; defaults are those of ``value`` where there is one."""
    kind = kind or type(value)
    meanings = _meanings(kind)
    flags = _flag_meanings() if kind is ModelParams else {}
    for one in dataclasses.fields(kind):
        if one.name in leave_out or one.name in SAVE_TABLES or one.name == "block_tokens":
            continue
        default = getattr(value, one.name) if value is not None else _default(one)
        yield Setting(
            one.name,
            _type_name(str(one.type), one.name),
            _shown(default, one.name),
            _sentence(meanings.get(one.name) or _MEANINGS.get(one.name) or flags.get(one.name, "")),
        )


def _flag_meanings() -> dict[str, str]:
    """The help of each flag of ``load``, by the name of its load option."""
    (load,) = (one for one in cli.commands() if one.name == "load")
    names = {one: one.usage.split()[0].lstrip("-").replace("-", "_") for one in load.parameters}
    return {_FLAGS.get(name, name): one.purpose for one, name in names.items()}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith(".") else ".")


def _default(one: dataclasses.Field[Any]) -> Any:
    if one.default is not dataclasses.MISSING:
        return one.default
    if one.default_factory is not dataclasses.MISSING:
        return one.default_factory()
    return None


def _shown(value: Any, name: str) -> str:
    if value is None or value in ("", (), {}):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if name in _SIZES and isinstance(value, int) and value:
        return format_size(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_shown(one, "") for one in value) + "]"
    return str(value)


def _type_name(annotation: str, name: str) -> str:
    if name in _SIZES:
        return "size"
    plain = annotation.replace(" | None", "").strip()
    known = {"bool": "boolean", "int": "integer", "float": "number", "str": "text", "Path": "path"}
    return known.get(plain, "list" if plain.startswith("tuple") else "text")


def _first_sentence(value: object) -> str:
    return (inspect.getdoc(type(value)) or "").partition("\n")[0]


def _meanings(kind: type) -> dict[str, str]:
    """The text below each field of a class, else the comment on its line."""
    source = Path(inspect.getsourcefile(kind) or "").read_text(encoding="utf-8")
    tree = ast.parse(source)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (declared,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    found: dict[str, str] = {}
    for node, after in zip(declared.body, [*declared.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        text = comments.get(node.end_lineno or 0, "")
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = str(after.value.value)
        found[node.target.id] = text
    return found
