"""``tokenize``: the tokens of a text, or of the prompt that a chat template makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from runtime import errors
from runtime.cli.options import attached, json_option, model_argument, node_command, node_options
from runtime.cli.text_argument import text_argument

if TYPE_CHECKING:
    from runtime.node import Node
    from runtime.remote.node import RemoteNode


@node_command()
@node_options
@model_argument
@click.argument("text", help="or - to read standard input")
@click.option(
    "--chat", is_flag=True,
    help="TEXT is JSON, a list of messages; tokens of the prompt that the template makes",
)  # fmt: skip
@click.option("--special", is_flag=True, help="read control tokens in TEXT")
@click.option("--bare", is_flag=True, help="without the token that begins a text")
@json_option()
def command(
    *, model: str, text: str, chat: bool, special: bool, bare: bool, as_json: bool, **given: Any
) -> int:
    text = text_argument(text)
    with attached(given) as node:
        if chat:
            ids = list(node.apply_chat_template(model, _messages(text)).tokens)
        else:
            ids = node.tokenize(model, text, add_special=not bare, parse_special=special)
        pieces = _pieces(node, model, ids)
    if as_json:
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
        raise errors.InvalidRequest(f"--chat expects JSON: {error}") from error
    plain = plain.get("messages") if isinstance(plain, dict) else plain
    if not isinstance(plain, list):
        raise errors.InvalidRequest('--chat expects a list of {"role": …, "content": …}')
    return plain


def _pieces(node: Node | RemoteNode, model: str, ids: Sequence[int]) -> dict[int, str]:
    """The text of each different token; bytes that are not characters are escaped."""
    different = sorted(set(ids))
    pieces = node.token_pieces(model, different) if different else []
    texts = [one.decode("utf-8", "backslashreplace") for one in pieces]
    return dict(zip(different, texts, strict=True))
