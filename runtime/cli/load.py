"""``load``: load a model into a running node."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from actors.messages.exact import Exact
from runtime.cli.load_options import exact_option, load_options, params_from
from runtime.cli.options import (
    attached,
    is_elsewhere,
    node_command,
    node_options,
    template_given,
    template_option,
)
from runtime.cli.progress import ProgressLine
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.errors import ConfigError
from runtime.settings.config import parse_model_argument


@node_command()
@node_options
@click.argument("model", metavar="ID=PATH", help=f"or {EMBEDDED_MODEL_ID}, the embedded model")
@load_options
@template_option()
@exact_option
def command(**given: Any) -> int:
    model, config = parse_model_argument(given["model"])
    config = dataclasses.replace(
        config,
        params=params_from(given, "load"),
        chat_template=template_given(given["chat_template_file"], "load"),
        exact=Exact(given["exact"]),
    )
    if is_elsewhere(given):
        _require_whole(given["model"])
    with attached(given) as node, ProgressLine(f"loading {model}") as line:
        status = node.load(model, config, progress=line.share)
    sys.stderr.write(f"loaded {model}: {status.details.get('description', '')}\n")
    for note in status.notes:
        sys.stderr.write(f"note: {note}\n")
    return 0


def _require_whole(argument: str) -> None:
    """A path of the gateway's machine must not depend on a folder of this one."""
    path = argument.partition("=")[2]
    if path and not path.startswith("/"):
        raise ConfigError(
            "model", f"{path!r} is a path of the gateway's machine: write all of it, from / on"
        )
