"""``unload``: unload a model from a running node."""

from __future__ import annotations

from typing import Any

import click

from runtime.cli.options import attached, model_argument, node_command, node_options


@node_command()
@node_options
@model_argument
@click.option(
    "--drain", type=float, default=0.0, metavar="SECONDS",
    help="let running requests finish for so long",
)  # fmt: skip
def command(model: str, drain: float, **given: Any) -> int:
    with attached(given) as node:
        node.unload(model, drain_s=drain)
    return 0
