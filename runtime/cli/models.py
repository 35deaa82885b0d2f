"""``models``: the models of a running node."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.options import attached, json_option, node_command, node_options
from runtime.cli.table import Column, write_table
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from runtime.client.results import ModelStatus

_COLUMNS = (
    Column("MODEL", 16), Column("STATE", 10), Column("DESCRIPTION", 24),
    Column("CONTEXT", 7, right=True), Column("SIZE", 10, right=True), Column("PID", right=True),
)  # fmt: skip


@node_command()
@node_options
@json_option("print a JSON list")
def command(*, as_json: bool, **given: Any) -> int:
    with attached(given) as node:
        models = node.models()
    if as_json:
        sys.stdout.write(json.dumps([_plain(model) for model in models], indent=2) + "\n")
    elif models:
        write_table(_COLUMNS, [_cells(model) for model in models], headings=False)
    else:
        sys.stderr.write("no model is loaded; `load ID=PATH`, or complete with the model `demo`\n")
    return 0


def _cells(model: ModelStatus) -> tuple[str, ...]:
    details = model.details
    return (
        model.id,
        model.state,
        str(details.get("description", "")),
        f"n_ctx {details.get('n_ctx', '?')}",
        format_size(details.get("model_bytes", 0)),
        f"pid {model.pid}",
    )


def _plain(model: ModelStatus) -> dict[str, Any]:
    return {
        "id": model.id,
        "state": model.state,
        "pid": model.pid,
        "incarnation": model.incarnation,
        "restarts": model.restarts,
        "details": model.details,
    }
