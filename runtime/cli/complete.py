"""``complete``: generate text for one prompt.

Text goes to standard output, thinking to standard error, a tool call as it was written, with its
markers. ``--json`` prints one object at the end instead.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from runtime.cli.options import attached, json_option, model_argument, node_command, port_option
from runtime.cli.progress import ProgressLine
from runtime.cli.request_options import options_from, request_options
from runtime.cli.text_argument import text_argument
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    ResumedEvent,
    SpanEvent,
    TokenEvent,
)


@node_command()
@port_option
@model_argument
@click.argument("prompt", help="text, or - to read standard input")
@click.option("--parent-key", metavar="HEX", help="finish_key of the turn before")
@click.option("--session", metavar="NAME", help="continue this session, or begin it")
@click.option(
    "--continue", "continues", is_flag=True,
    help="PROMPT is only what follows the session, or the turn of --parent-key",
)  # fmt: skip
@click.option("--special", is_flag=True, help="read control tokens in PROMPT")
@json_option("print one JSON object at the end")
@request_options
def command(**given: Any) -> int:
    prompt, options = text_argument(given["prompt"]), options_from(given)
    with (
        attached(given) as node,
        ProgressLine("reading the prompt") as line,
        node.stream(
            given["model"],
            prompt,
            parent_key=given["parent_key"],
            parse_special=given["special"],
            session=given["session"],
            continues=given["continues"],
            **options,
        ) as events,
    ):  # Ctrl-C cancels before the connection is closed
        for event in events:
            show_event(event, line, as_json=given["as_json"])
    return 0


def show_event(event: Event, line: ProgressLine, *, as_json: bool) -> None:
    """Print what has come of a reply."""
    match event:
        case PrefillEvent(done, total, _):
            line.share(done / max(1, total))
        case TokenEvent(text=text, kind=kind):
            line.clear()
            if not as_json and kind != "tool_call":
                to = sys.stdout if kind == "text" else sys.stderr
                to.write(text)
                to.flush()
        case SpanEvent(kind="tool_call", content=content):
            if not as_json:
                sys.stdout.write(content.decode("utf-8", "replace"))
        case SpanEvent():
            sys.stderr.write("" if as_json else "\n")
        case ResumedEvent():
            pass  # not asked for: the output only pauses
        case CompletionEvent(completion):
            line.clear()
            _show_completion(completion, as_json=as_json)


def _show_completion(completion: Completion, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(completion.to_dict(), ensure_ascii=False) + "\n")
    elif completion.finish_reason != "prefilled":
        sys.stdout.write("\n")
    if completion.cache.note:
        sys.stderr.write(f"note: {completion.cache.note}\n")
