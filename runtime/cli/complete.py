"""``complete``: generate text for one prompt.

Text goes to standard output, thinking to standard error, a tool call as it was written, with its
markers. ``--json`` prints one object at the end instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Final

from runtime import errors
from runtime.cli.node_flags import add_port, attached
from runtime.cli.progress import ProgressLine
from runtime.cli.request_flags import add_request_flags, options_from
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    ResumedEvent,
    SpanEvent,
    TokenEvent,
)
from runtime.settings import arguments as arguments_of

MAX_STDIN_CHARS: Final = 64 << 20


def add_complete(complete: argparse.ArgumentParser) -> None:
    """Add the arguments of ``complete``."""
    add_port(complete)
    complete.add_argument("model", metavar="MODEL")
    complete.add_argument("prompt", metavar="PROMPT", help="text, or - to read standard input")
    complete.add_argument("--parent-key", metavar="HEX", help="finish_key of the turn before")
    complete.add_argument("--session", metavar="NAME", help="go on in this session, or begin it")
    complete.add_argument(
        "--continue", dest="continues", action="store_true",
        help="PROMPT is only what follows the session, or the turn of --parent-key",
    )  # fmt: skip
    complete.add_argument("--special", action="store_true", help="read control tokens in PROMPT")
    complete.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_request_flags(complete)
    complete.set_defaults(run=_complete)


def text_argument(text: str) -> str:
    """A text from the command line; ``-`` is all of standard input.

    ``InvalidRequest`` where it holds bytes that are no characters.
    """
    if text != "-":
        return given_text("the text of the command line", text)
    read = sys.stdin.read(MAX_STDIN_CHARS + 1)
    if len(read) > MAX_STDIN_CHARS:
        raise errors.InvalidRequest(f"standard input has more than {MAX_STDIN_CHARS} characters")
    return given_text("standard input", read)


def given_text(name: str, text: str) -> str:
    """A text as it was meant: UTF-8 is taken whatever the locale's encoding is."""
    with contextlib.suppress(UnicodeError):
        return text.encode("ascii", "surrogateescape").decode("utf-8")
    return arguments_of.text(name, text)


def _complete(arguments: argparse.Namespace) -> int:
    prompt, options = text_argument(arguments.prompt), options_from(arguments)
    with (
        attached(arguments) as node,
        ProgressLine("reading the prompt") as line,
        node.stream(
            arguments.model,
            prompt,
            parent_key=arguments.parent_key,
            parse_special=arguments.special,
            session=arguments.session,
            continues=arguments.continues,
            **options,
        ) as events,
    ):  # Ctrl-C cancels before the node is let go
        for event in events:
            _show(event, line, as_json=arguments.json)
    return 0


def _show(event: Event, line: ProgressLine, *, as_json: bool) -> None:
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
            pass  # not asked for: who reads sees a pause
        case CompletionEvent(completion):
            line.clear()
            _say_completion(completion, as_json=as_json)


def _say_completion(completion: Completion, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(completion.to_dict(), ensure_ascii=False))  # noqa: T201 - a result
    elif completion.finish_reason != "prefilled":
        sys.stdout.write("\n")
    if completion.cache.note:
        sys.stderr.write(f"note: {completion.cache.note}\n")
