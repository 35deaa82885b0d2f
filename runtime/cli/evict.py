"""``evict``: free what a model's context holds for requests that have ended."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from runtime.cli.options import (
    attached_here,
    json_option,
    model_argument,
    node_command,
    port_option,
)


@node_command()
@port_option
@model_argument
@json_option()
@click.option("--session", metavar="NAME", help="only forget this session")
def command(*, model: str, as_json: bool, session: str | None, **given: Any) -> int:
    with attached_here(given) as node:
        if session is not None:
            was_known = node.end_session(model, session)
            found: dict[str, Any] = {"session": session, "was_known": was_known}
            words = "forgotten" if was_known else "there was no such session"
        else:
            n = node.evict(model)
            found, words = {"sequences": n}, f"{n} sequences freed"
    sys.stdout.write((json.dumps(found) if as_json else words) + "\n")
    return 0
