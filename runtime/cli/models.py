"""``models``: the models of a running node, loaded or not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from runtime.cli.options import attached, json_option, node_command, node_options
from runtime.cli.table import Column, write_table
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from actors.messages import KnownModel
    from runtime.client.results import ModelStatus

_COLUMNS = (
    Column("MODEL", 16), Column("STATE", 10), Column("DESCRIPTION", 24),
    Column("CONTEXT", 7, right=True), Column("SIZE", 10, right=True),
    Column("MEMORY", 10, right=True), Column("PID", right=True), Column("KEPT", 8),
)  # fmt: skip
NO_DETAILS: Final[Mapping[str, Any]] = {}


@node_command()
@node_options
@json_option("print a JSON list")
def command(*, as_json: bool, **given: Any) -> int:
    with attached(given) as node:
        loaded = {one.id: one for one in node.models()}
        known = {one.model: one for one in node.known_models()}
    names = sorted({*loaded, *known})
    if as_json:
        plain = [_plain(name, loaded.get(name), known.get(name)) for name in names]
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
    elif names:
        rows = [_cells(name, loaded.get(name), known.get(name)) for name in names]
        write_table(_COLUMNS, rows, headings=False)
    else:
        sys.stderr.write("no model is loaded; `load ID=PATH`, or complete with the model `demo`\n")
    return 0


def _cells(name: str, model: ModelStatus | None, known: KnownModel | None) -> tuple[str, ...]:
    details = NO_DETAILS if model is None else model.details
    size = details.get("model_bytes") or (0 if known is None else known.file_bytes)
    memory = None if known is None else known.memory_bytes
    return (
        name,
        _state(model, known),
        str(details.get("description", "")) or ("" if known is None else known.failure),
        f"n_ctx {details.get('n_ctx', '?')}" if model is not None else "",
        format_size(size),
        "" if memory is None else f"takes {format_size(memory)}",
        "" if model is None else f"pid {model.pid}",
        _kept(known),
    )


def _state(model: ModelStatus | None, known: KnownModel | None) -> str:
    """The state of its process, where there is one; unless it is about to leave memory."""
    state = "" if known is None else known.state.value
    return state if model is None or state == "draining" else model.state


def _kept(known: KnownModel | None) -> str:
    """How long it stays."""
    if known is None:
        return ""
    if known.is_pinned:
        return "pinned"
    if known.expires_at is None:
        return ""
    return f"{max(0.0, known.expires_at - time.time()):.0f} s left"


def _plain(name: str, model: ModelStatus | None, known: KnownModel | None) -> dict[str, Any]:
    return {
        "id": name,
        "state": _state(model, known),
        "pid": None if model is None else model.pid,
        "incarnation": None if model is None else model.incarnation,
        "restarts": None if model is None else model.restarts,
        "details": NO_DETAILS if model is None else model.details,
        "path": None if known is None else known.path,
        "file_bytes": None if known is None else known.file_bytes,
        "memory_bytes": None if known is None else known.memory_bytes,
        "pinned": known is not None and known.is_pinned,
        "keep_alive": None if known is None else known.keep_alive_s,
        "last_use": None if known is None else known.last_use,
        "expires_at": None if known is None else known.expires_at,
        "failure": "" if known is None else known.failure,
    }
