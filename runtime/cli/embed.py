"""``embed``: the vectors of texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from runtime import errors
from runtime.cli.options import attached, json_option, model_argument, node_command, node_options
from runtime.cli.text_argument import text_argument

POOLINGS: Final = ("model", "mean", "cls", "last", "none")


@node_command()
@node_options
@model_argument
@click.argument(
    "text", nargs=-1, required=True, help="or - to read standard input; several: a line each"
)
@click.option("--lines", is_flag=True, help="with -, each line is a text")
@click.option(
    "--pooling", type=click.Choice(POOLINGS), default="model", help="default: the model's"
)
@click.option("--raw", is_flag=True, help="do not make vectors one unit long")
@json_option()
def command(
    *,
    model: str,
    text: tuple[str, ...],
    lines: bool,
    pooling: str,
    raw: bool,
    as_json: bool,
    **given: Any,
) -> int:
    texts = [text_argument(one) for one in text]
    if lines:
        texts = [line for one in texts for line in one.splitlines() if line]
    if not all(texts) or not texts:
        raise errors.InvalidRequest("there is no text to embed")
    with attached(given) as node:
        found = node.embed(model, texts, pooling=pooling, normalise=not raw)
    if as_json:
        plain = {
            "n_embd": found.n_embd,
            "n_tokens": found.n_tokens,
            "rows": list(found.rows),
            "vectors": [_rounded(vector) for vector in found.vectors],
        }
        sys.stdout.write(json.dumps(plain) + "\n")
        return 0
    for vector in found.vectors:
        sys.stdout.write(" ".join(f"{number:.7g}" for number in vector) + "\n")
    return 0


def _rounded(vector: Sequence[float]) -> list[float]:
    """As many digits as a float32 has."""
    return [float(f"{number:.9g}") for number in vector]
