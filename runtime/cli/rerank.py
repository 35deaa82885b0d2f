"""``rerank``: texts by how well they fit a query, best first."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from runtime import errors
from runtime.cli.options import attached, json_option, model_argument, node_command, node_options
from runtime.cli.text_argument import text_argument


@node_command()
@node_options
@model_argument
@click.argument("query")
@click.argument(
    "document", nargs=-1, required=True, help="or - to read standard input; several: a line each"
)
@click.option("--lines", is_flag=True, help="with -, each line is a document")
@click.option("--top-n", type=int, metavar="N", help="only the best; default: all")
@json_option()
def command(
    *,
    model: str,
    query: str,
    document: tuple[str, ...],
    lines: bool,
    top_n: int | None,
    as_json: bool,
    **given: Any,
) -> int:
    texts = [text_argument(one) for one in document]
    if lines:
        texts = [line for one in texts for line in one.splitlines() if line]
    if not all(texts) or not texts:
        raise errors.InvalidRequest("there is no document to rank")
    with attached(given) as node:
        found = node.rerank(model, text_argument(query), texts, top_n=top_n)
    if as_json:
        results = [{"index": one.index, "score": _rounded(one.score)} for one in found.results]
        sys.stdout.write(json.dumps({"results": results, "n_tokens": found.n_tokens}) + "\n")
        return 0
    for one in found.results:
        shown = " ".join(texts[one.index].split())
        sys.stdout.write(f"{one.score:.7g}\t{one.index}\t{shown}\n")
    return 0


def _rounded(number: float) -> float:
    """As many digits as a float32 has."""
    return float(f"{number:.9g}")
