"""What is asked of a model, as options: for ``complete`` and ``chat``.

Each is an option of ``Client.stream``, which checks it; an option that is not given is left out.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from runtime import errors
from runtime.cli.options import USER_PATH, flag_of, section_option, with_options

SECTION: Final = "How tokens are chosen"

_WHOLE: Final = {
    "top_k": "only the K likeliest tokens; 0: all",
    "repetition_window": "tokens that penalties look back; -1: all",
    "dry_allowed_length": "DRY: repetitions of this length are free",
    "dry_window": "DRY: tokens it looks back; -1: all",
    "min_keep": "typical_p, top_p, min_p and XTC leave so many tokens",
    "seed": "the same seed draws the same text; -1: any",
    "logprobs": "report log-probabilities, and those of so many likeliest tokens (with --json)",
}
_NUMBERS: Final = {
    "temperature": "0 (default): always the likeliest token",
    "top_p": "only the likeliest tokens that make up this probability",
    "top_n_sigma": "only logits so many standard deviations below the highest; 0: all",
    "min_p": "only tokens at least this likely, relative to the likeliest",
    "typical_p": "only tokens about as surprising as expected, up to this probability",
    "repetition_penalty": "above 1: against tokens that occurred already",
    "frequency_penalty": "taken off for every occurrence",
    "presence_penalty": "taken off once for what occurred",
    "dry_multiplier": "DRY: above 0, against prolonging repetitions",
    "dry_base": "DRY: how fast it grows",
    "xtc_probability": "XTC: how often the likeliest tokens are left out",
    "xtc_threshold": "XTC: what counts as likely",
    "dynatemp_range": "temperature moves so far to both sides, with the entropy",
    "dynatemp_exponent": "how the entropy decides: its power",
    "mirostat_tau": "Mirostat: surprise to aim at, in bits",
    "mirostat_eta": "Mirostat: how fast it learns",
}
_RENAMED: Final = {"repetition_window": "repeat_last_n", "dry_window": "dry_penalty_last_n"}
"""Options under the names that take -1."""
_OTHERS: Final = (
    "max_tokens", "stop", "speculation", "exact", "priority", "mirostat", "thinking",
    "thinking_budget_tokens", "tool_calls", "logit_bias", "samplers", "ignore_eos",
)  # fmt: skip


def _bias(text: str) -> tuple[int | str, float | bool]:
    key, separator, number = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if separator and key:
            token = int(key) if key.isascii() and key.isdigit() else key
            return token, False if number == "never" else float(number)
    raise click.BadParameter(f"{text!r} is not TOKEN=NUMBER or TOKEN=never; TOKEN: an id or a text")


_option = functools.partial(section_option, SECTION)

request_options: Final = with_options(
    [
        click.option("--max-tokens", type=int, metavar="N",
                     help="default: what fits into the context"),
        click.option("--stop", multiple=True, metavar="TEXT", help="repeatable"),
        click.option("--timeout", type=float, metavar="SECONDS", help="fail after"),
        click.option("--speculation", type=click.Choice(("off", "ngram", "draft")),
                     help="guess tokens ahead; never changes the text"),
        click.option("--exact", type=click.Choice(("repeat", "prefix", "always")),
                     help="what must give the same bits; default: as the model was loaded"),
        click.option("--priority", type=click.Choice(("interactive", "background")),
                     help="background steps aside for interactive requests"),
        click.option("--thinking", is_flag=True, help="separate it from the text"),
        click.option("--thinking-budget", "thinking_budget_tokens", type=int, metavar="N",
                     help="end a thought after so many tokens"),
        click.option("--tool-calls", is_flag=True, help="separate them from the text"),
        *(_option(flag_of(name), type=float, metavar="X", help=words)
          for name, words in _NUMBERS.items()),
        *(_option(flag_of(name), type=int, metavar="N", help=words)
          for name, words in _WHOLE.items()),
        _option("--mirostat", type=click.IntRange(0, 2), metavar="N", help="version; 0: off"),
        _option("--logit-bias", multiple=True, type=_bias, metavar="TOKEN=X",
                help="add X to the logit of a token id, or of each token of a text; "
                     "'never' bans it; repeatable"),
        _option("--ignore-eos", is_flag=True, help="never end a reply before --max-tokens"),
        _option("--samplers", metavar="NAMES",
                help="what is applied, in this order: names with ';' between them, or "
                     "llama.cpp's letters (default: edskypmxt)"),
        _option("--grammar", type=USER_PATH, metavar="FILE",
                help="GBNF that the text must match"),
        _option("--json-schema", type=USER_PATH, metavar="FILE",
                help="JSON schema that the text must match"),
    ]
)  # fmt: skip
"""Every option of a request but its prompt; ``options_from`` reads them."""


def options_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as keywords for ``Client.stream``."""
    options = {
        _RENAMED.get(name, name): list(value) if isinstance(value, tuple) else value
        for name in (*_NUMBERS, *_WHOLE, *_OTHERS)
        if (value := given[name]) is not None and value is not False and value != ()
    }
    if given["timeout"] is not None:
        options["timeout_s"] = given["timeout"]
    for name in ("grammar", "json_schema"):
        if given[name] is not None:
            options[name] = _text_of(given[name], flag_of(name))
    return options


def _text_of(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidRequest(f"{flag}: cannot read {path}: {error}") from error
