"""``complete``: generate text for a prompt, or for several.

Text goes to standard output, thinking to standard error, a tool call as it was written, with its
markers. ``--json`` prints one object at the end instead. Several replies, of several prompts or of
``--n``, are printed when all are complete, with ``--json`` an object a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from runtime.cli.options import attached, json_option, model_argument, node_command, node_options
from runtime.cli.progress import ProgressLine
from runtime.cli.request_options import options_from, request_options
from runtime.cli.text_argument import text_argument
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    LoadEvent,
    PrefillEvent,
    QueuedEvent,
    ResumedEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)


@node_command()
@node_options
@model_argument
@click.argument(
    "prompts",
    metavar="PROMPT...",
    nargs=-1,
    required=True,
    help="text, or - to read standard input; several: a reply to each",
)
@click.option("--parent-key", metavar="HEX", help="finish_key of the turn before")
@click.option("--session", metavar="NAME", help="continue this session, or begin it")
@click.option(
    "--continue", "continues", is_flag=True,
    help="PROMPT is only what follows the session, or the turn of --parent-key",
)  # fmt: skip
@click.option("--special", is_flag=True, help="read control tokens in PROMPT")
@click.option("--echo", is_flag=True, help="print PROMPT before the reply")
@click.option(
    "--n",
    "n_replies",
    type=int,
    default=1,
    metavar="N",
    help="replies to each PROMPT, with the seeds from --seed on",
)
@json_option("print one JSON object at the end")
@request_options
def command(**given: Any) -> int:
    prompts = [text_argument(one) for one in given["prompts"]]
    options = options_from(given) | {
        "parent_key": given["parent_key"],
        "parse_special": given["special"],
        "session": given["session"],
        "continues": given["continues"],
        "echo": given["echo"],
    }
    if len(prompts) == given["n_replies"] == 1:
        return _one(given, prompts[0], options)
    with attached(given) as node:
        done = node.complete_many(given["model"], prompts, n=given["n_replies"], **options)
    for number, completion in enumerate(done, 1):
        if not given["as_json"]:
            sys.stderr.write(f"reply {number} of {len(done)}:\n")
            calls = [span for span in completion.spans if span.kind == "tool_call"]
            sys.stdout.write(completion.text + "".join(map(_written, calls)))
        _show_completion(completion, as_json=given["as_json"])
    return 0


def _one(given: Mapping[str, Any], prompt: str, options: Mapping[str, Any]) -> int:
    with (
        attached(given) as node,
        ProgressLine("reading the prompt") as line,
        node.stream(given["model"], prompt, **options) as events,
    ):  # Ctrl-C cancels before the connection is closed
        for event in events:
            show_event(event, line, as_json=given["as_json"])
    return 0


def _written(call: SpanEvent) -> str:
    return call.content.decode("utf-8", "replace")


def show_event(event: Event, line: ProgressLine, *, as_json: bool) -> None:
    """Print what has come of a reply."""
    match event:
        case PrefillEvent(done, total, _):
            line.share(done / max(1, total))
        case TokenEvent(text=text, kind=kind):
            line.clear()
            if not as_json and kind != "tool_call":
                to = sys.stderr if kind == "thinking" else sys.stdout
                to.write(text)
                to.flush()
        case SpanEvent(kind="tool_call"):
            if not as_json:
                sys.stdout.write(_written(event))
        case SpanEvent():
            sys.stderr.write("" if as_json else "\n")
        case QueuedEvent() | LoadEvent() | ResumedEvent() | ToolCallEvent():
            pass  # not asked for; and shown when it is complete
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
