"""``tokenize`` and ``embed``: what a model makes of a text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from runtime import errors
from runtime.cli.complete import text_argument
from runtime.cli.node_flags import add_port, attached

if TYPE_CHECKING:
    from runtime.node import Node

POOLINGS: Final = ("model", "mean", "cls", "last", "none")


def add_tokenize(tokenize: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tokenize``."""
    add_port(tokenize)
    tokenize.add_argument("model", metavar="MODEL")
    tokenize.add_argument("text", metavar="TEXT", help="or - to read standard input")
    tokenize.add_argument(
        "--chat", action="store_true",
        help="TEXT is JSON, a list of messages; tokens of the prompt that the template makes",
    )  # fmt: skip
    tokenize.add_argument("--special", action="store_true", help="read control tokens in TEXT")
    tokenize.add_argument(
        "--bare", action="store_true", help="without the token that begins a text"
    )
    tokenize.add_argument("--json", action="store_true", help="print one JSON object")
    tokenize.set_defaults(run=_tokenize)


def add_embed(embed: argparse.ArgumentParser) -> None:
    """Add the arguments of ``embed``."""
    add_port(embed)
    embed.add_argument("model", metavar="MODEL")
    embed.add_argument(
        "text", metavar="TEXT", nargs="+", help="or - to read standard input; several: a line each"
    )
    embed.add_argument("--lines", action="store_true", help="with -, each line is a text")
    embed.add_argument("--pooling", choices=POOLINGS, default="model", help="default: the model's")
    embed.add_argument("--raw", action="store_true", help="do not make vectors one unit long")
    embed.add_argument("--json", action="store_true", help="print one JSON object")
    embed.set_defaults(run=_embed)


def _tokenize(arguments: argparse.Namespace) -> int:
    text = text_argument(arguments.text)
    with attached(arguments) as node:
        model = arguments.model
        if arguments.chat:
            ids = list(node.apply_chat_template(model, _messages(text)).tokens)
        else:
            ids = node.tokenize(
                model, text, add_special=not arguments.bare, parse_special=arguments.special
            )
        pieces = _pieces(node, model, ids)
    if arguments.json:
        found = {"tokens": ids, "pieces": [pieces[one] for one in ids], "count": len(ids)}
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        return 0
    for one in ids:
        sys.stdout.write(f"{one:>8}  {pieces[one]!r}\n")
    sys.stdout.write(f"{len(ids)} tokens\n")
    return 0


def _messages(text: str) -> list[dict[str, Any]]:
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidRequest(f"--chat wants JSON: {error}") from error
    plain = plain.get("messages") if isinstance(plain, dict) else plain
    if not isinstance(plain, list):
        raise errors.InvalidRequest('--chat wants a list of {"role": …, "content": …}')
    return plain


def _pieces(node: Node, model: str, ids: Sequence[int]) -> dict[int, str]:
    """The text of each different token; a byte that is no character as an escape."""
    return {
        one: node.detokenize_bytes(model, [one], special=True).decode("utf-8", "backslashreplace")
        for one in sorted(set(ids))
    }


def _embed(arguments: argparse.Namespace) -> int:
    texts = [text_argument(text) for text in arguments.text]
    if arguments.lines:
        texts = [line for text in texts for line in text.splitlines() if line]
    if not all(texts) or not texts:
        raise errors.InvalidRequest("there is no text to embed")
    with attached(arguments) as node:
        found = node.embed(
            arguments.model, texts, pooling=arguments.pooling, normalise=not arguments.raw
        )
    if arguments.json:
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
