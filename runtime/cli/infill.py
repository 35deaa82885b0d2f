"""``infill``: generate what belongs between two texts. Prints as ``complete`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runtime import errors
from runtime.cli.complete import show_event
from runtime.cli.options import (
    USER_PATH,
    attached,
    json_option,
    model_argument,
    node_command,
    node_options,
)
from runtime.cli.progress import ProgressLine
from runtime.cli.request_options import options_from, request_options
from runtime.cli.text_argument import text_argument


@node_command()
@node_options
@model_argument
@click.argument("prefix", help="what comes before the gap, or - to read standard input")
@click.argument("suffix", help="what comes after it")
@click.option(
    "--extra", type=USER_PATH, multiple=True, metavar="FILE",
    help="another file that the model reads first; repeatable",
)  # fmt: skip
@click.option("--repository", metavar="NAME", help="what the files belong to")
@click.option("--file", metavar="NAME", help="the file with the gap")
@click.option("--suffix-first", is_flag=True, help="the order that some models were trained with")
@json_option("print one JSON object at the end")
@request_options
def command(**given: Any) -> int:
    prefix, suffix, options = text_argument(given["prefix"]), given["suffix"], options_from(given)
    extra = [(path.name, _text_of(path)) for path in given["extra"]]
    with (
        attached(given) as node,
        ProgressLine("reading the prompt") as line,
        node.stream_infill(
            given["model"],
            prefix,
            text_argument(suffix) if suffix else "",
            extra=extra or None,
            repository=given["repository"],
            file=given["file"],
            suffix_first=given["suffix_first"],
            **options,
        ) as events,
    ):  # Ctrl-C cancels before the connection is closed
        for event in events:
            show_event(event, line, as_json=given["as_json"])
    return 0


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidRequest(f"--extra: cannot read {path}: {error}") from error
