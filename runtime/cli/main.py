"""The command line: ``python -m runtime COMMAND``.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the work
failed, 2 wrong usage, 130 Ctrl-C.

Only the module of the command that was named is imported, and that one imports what talks to a
node when its arguments are right: imports are most of the time that a command takes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

from runtime import errors
from runtime.settings.ports import DEFAULT_PORT, PORT_VARIABLE

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
_USAGE_ERRORS: Final = (errors.ConfigError, errors.InvalidRequest)
_COMMANDS: Final = {
    "serve": ("serve_flags:add_serve", "run a node until it is stopped"),
    "load": ("model_commands:add_load", "load a model into a running node"),
    "unload": ("model_commands:add_unload", "unload a model"),
    "models": ("model_commands:add_models", "loaded models"),
    "complete": ("complete:add_complete", "generate text"),
    "chat": ("chat:add_chat", "talk to a model; in a pipe, each line is a turn"),
    "tokenize": ("text:add_tokenize", "the tokens of a text"),
    "embed": ("text:add_embed", "the vector of a text"),
    "status": ("node_commands:add_status", "what every actor says of itself"),
    "tree": ("node_commands:add_tree", "the live tree"),
    "cache": ("cache.command:add_cache", "see and tend the cache"),
    "adapters": (
        "model:add_adapters",
        "LoRA adapters of a model: show, load, scale, unload",
    ),
    "evict": (
        "model:add_evict",
        "free idle sequences of a model's context; what they hold is stored first",
    ),
    "bench": ("bench:add_bench", "how fast a model reads and writes, cold and warm"),
    "inspect": (
        "cache.inspect_row:add_inspect",
        "explain one row file of the cache, or a GGUF model and what it will take",
    ),
    "stop": ("node_commands:add_stop", "stop the node"),
    "demo": ("node_commands:add_demo", "cold, warm, killed, healed: one table"),
    "doctor": ("node_commands:add_doctor", "check this machine and this installation"),
}
"""Module and function that add the arguments of each command to its parser, and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        given = sys.argv[1:] if argv is None else argv
        arguments = _parser(next((one for one in given if one[:1] != "-"), "")).parse_args(given)
    except SystemExit as end:  # argparse has already said why
        return DONE if end.code in (None, 0) else USAGE
    try:
        return int(arguments.run(arguments))
    except _USAGE_ERRORS as error:
        _complain(str(error))
        return USAGE
    except errors.LlamaActorsError as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def _parser(named: str = "") -> argparse.ArgumentParser:
    """The parser of one command; without a known name the list of all, for help and errors."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description="llama.cpp as a supervised tree of actors that keeps prompts warm",
        epilog=f"A node is found by --admin-port, else by {PORT_VARIABLE}, else on {DEFAULT_PORT}.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    if named not in _COMMANDS:
        for name, (_, purpose) in _COMMANDS.items():
            commands.add_parser(name, help=purpose)
        return parser
    where, purpose = _COMMANDS[named]
    module, _, function = where.partition(":")
    add: Any = getattr(importlib.import_module(f"runtime.cli.{module}"), function)
    add(commands.add_parser(named, help=purpose))
    return parser
