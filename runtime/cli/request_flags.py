"""The flags that say what is asked of a model: for ``complete`` and ``chat``.

Each is an option of ``Client.stream``, which checks it; a flag that is not given is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from runtime import errors
from runtime.settings.user_paths import path_flag

MAX_TOKENS: Final = 256

_WHOLE: Final = {
    "top_k": "only the K likeliest tokens; 0: all",
    "repetition_window": "tokens that penalties look back; -1: all",
    "dry_allowed_length": "DRY: repetitions of this length are free",
    "dry_window": "DRY: tokens it looks back; -1: all",
    "seed": "the same seed draws the same text; -1: any",
    "logprobs": "report log-probabilities, and those of so many likeliest tokens (with --json)",
}
_NUMBERS: Final = {
    "temperature": "0 (default): always the likeliest token",
    "top_p": "only the likeliest tokens that make up this probability",
    "min_p": "only tokens at least this likely, relative to the likeliest",
    "typical_p": "only tokens about as surprising as expected, up to this probability",
    "repetition_penalty": "above 1: against what was said already",
    "frequency_penalty": "taken off for every occurrence",
    "presence_penalty": "taken off once for what occurred",
    "dry_multiplier": "DRY: above 0, against prolonging repetitions",
    "dry_base": "DRY: how fast it grows",
    "xtc_probability": "XTC: how often the likeliest tokens are left out",
    "xtc_threshold": "XTC: what counts as likely",
    "mirostat_tau": "Mirostat: surprise to aim at, in bits",
    "mirostat_eta": "Mirostat: how fast it learns",
}
_SAME: Final = {"repetition_window": "repeat_last_n", "dry_window": "dry_penalty_last_n"}
"""Options under the names that take -1."""
_OTHERS: Final = (
    "max_tokens", "stop", "speculation", "mirostat", "thinking", "thinking_budget_tokens",
    "tool_calls",
)  # fmt: skip


def add_request_flags(command: argparse.ArgumentParser) -> None:
    """Add every option of a request but its prompt."""
    command.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help=f"default {MAX_TOKENS}"
    )
    command.add_argument("--stop", action="append", metavar="TEXT", help="repeatable")
    command.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after")
    command.add_argument(
        "--speculation",
        choices=("off", "ngram", "draft"),
        help="guess tokens ahead; never changes the text",
    )
    command.add_argument("--thinking", action="store_true", default=None, help="tell it from text")
    command.add_argument(
        "--thinking-budget", dest="thinking_budget_tokens", type=int, metavar="N",
        help="end a thought after so many tokens",
    )  # fmt: skip
    command.add_argument(
        "--tool-calls", action="store_true", default=None, help="tell them from text"
    )
    group = command.add_argument_group("how tokens are chosen")
    for name, words in _NUMBERS.items():
        group.add_argument(_flag(name), dest=name, type=float, metavar="X", help=words)
    for name, words in _WHOLE.items():
        group.add_argument(_flag(name), dest=name, type=int, metavar="N", help=words)
    group.add_argument("--mirostat", type=int, choices=(0, 1, 2), help="version; 0: off")
    group.add_argument(
        "--logit-bias", action="append", type=_bias, metavar="TOKEN=X",
        help="add X to the logit of a token id; 'never' bans it; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--grammar", type=path_flag, metavar="FILE", help="GBNF that the text must obey"
    )
    group.add_argument(
        "--json-schema", type=path_flag, metavar="FILE", help="JSON schema that the text must obey"
    )


def options_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given, as keywords for ``Client.stream``."""
    given = vars(arguments)
    options = {
        _SAME.get(name, name): given[name]
        for name in (*_NUMBERS, *_WHOLE, *_OTHERS)
        if given[name] is not None
    }
    if arguments.timeout is not None:
        options["timeout_s"] = arguments.timeout
    if arguments.logit_bias:
        options["logit_bias"] = list(arguments.logit_bias)
    for name in ("grammar", "json_schema"):
        if given[name] is not None:
            options[name] = _text_of(given[name], _flag(name))
    return options


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _bias(text: str) -> tuple[int, float | bool]:
    token, separator, value = text.partition("=")
    try:
        if separator:
            return int(token), False if value == "never" else float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN=NUMBER or TOKEN=never")


def _text_of(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidRequest(f"{flag}: cannot read {path}: {error}") from error
