"""``cache wipe``: remove all rows, or all rows of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runtime.cli.cache.options import (
    cache_dir_option,
    confirm,
    online_cache,
    require_no_gateway,
    write_removed,
    yes_option,
)
from runtime.cli.options import json_option, node_command, node_options


@node_command()
@node_options
@cache_dir_option
@json_option("print JSON")
@click.option("--model", metavar="NAME", help="only rows of this model")
@yes_option
def command(
    *, cache_dir: Path | None, as_json: bool, model: str | None, yes: bool, **given: Any
) -> int:
    from runtime.cli.cache import offline

    which = "all rows" if model is None else f"all rows of {model}"
    if cache_dir is not None:
        require_no_gateway(given)
        with offline.held(cache_dir) as root:
            confirm(f"{which} in {root}", yes=yes)
            return write_removed(offline.wiped(root, model), as_json=as_json)
    with online_cache(given) as cache:
        confirm(f"{which}, in every tier of the node", yes=yes)
        return write_removed(cache.wipe(model), as_json=as_json)
