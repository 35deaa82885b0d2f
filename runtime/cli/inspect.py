"""``inspect FILE``: explain a row file of the cache, or a GGUF model.

Never prints the text of the prompt, unless ``--text`` names a model whose vocabulary can read it.
Exit codes: 0 the row is whole, or the model fits; 1 it is damaged or does not fit; 2 wrong usage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runtime.cli.load_options import load_options, params_from
from runtime.cli.options import USER_PATH, json_option, node_command


@node_command()
@click.argument("file", type=USER_PATH)
@click.option(
    "--text", type=USER_PATH, metavar="GGUF",
    help="print the tokens as text, by the vocabulary of this model",
)  # fmt: skip
@json_option()
@load_options
def command(*, file: Path, text: Path | None, as_json: bool, **given: Any) -> int:
    if _is_model(file):
        from runtime.cli.inspect_model import inspect_model

        return inspect_model(file, params_from(given, "inspect"), as_json=as_json)
    from runtime.cli.cache.describe_row import inspect_row

    return inspect_row(file, text, as_json=as_json)


def _is_model(path: Path) -> bool:
    """Whether the file begins as a GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
