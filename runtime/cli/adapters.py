"""``adapters``: the LoRA adapters of a loaded model."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from runtime.cli.options import attached, json_option, model_argument, node_command, node_options
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from actors.messages import AdapterStatus


@node_command()
@node_options
@model_argument
@json_option("print a JSON list")
@click.option("--load", metavar="PATH", help="apply this adapter, times --scale")
@click.option("--set", "changed", type=int, metavar="ID", help="apply it times --scale from now on")
@click.option("--unload", type=int, metavar="ID", help="free it")
@click.option("--scale", type=float, default=1.0, metavar="X", help="default 1")
def command(
    *,
    model: str,
    as_json: bool,
    load: str | None,
    changed: int | None,
    unload: int | None,
    scale: float,
    **given: Any,
) -> int:
    if sum(one is not None for one in (load, changed, unload)) > 1:
        click.get_current_context().fail("give one of --load, --set and --unload")
    with attached(given) as node:
        if load is not None:
            node.load_adapter(model, load, scale=scale)
        elif changed is not None:
            node.set_adapter_scale(model, changed, scale)
        elif unload is not None:
            node.unload_adapter(model, unload)
        found = node.list_adapters(model)
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in found], indent=2) + "\n")
        return 0
    for one in found:
        sys.stdout.write(_line(one))
    if not found:
        sys.stderr.write(f"model {model!r} has no adapter\n")
    return 0


def _line(one: AdapterStatus) -> str:
    return f"{one.id:>4}  scale {one.scale:<6g} {format_size(one.n_bytes):>10}  {one.path}\n"
