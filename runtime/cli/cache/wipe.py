"""``cache wipe``: remove all rows, or all rows of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runtime.cli.cache.options import (
    cache_dir_option,
    confirm,
    online_cache,
    write_removed,
    yes_option,
)
from runtime.cli.options import json_option, node_command, port_option


@node_command()
@port_option
@cache_dir_option
@json_option("print JSON")
@click.option("--model", metavar="NAME", help="only rows of this model")
@yes_option
def command(
    *, cache_dir: Path | None, as_json: bool, model: str | None, yes: bool, **given: Any
) -> int:
    from actors.messages import Removal
    from runtime.cli.cache import offline
    from runtime.cli.cache.online import Removed

    which = "all rows" if model is None else f"all rows of {model}"
    if cache_dir is not None:
        with offline.held(cache_dir) as root:
            confirm(f"{which} in {root}", yes=yes)
            return write_removed(offline.wiped(root, model), as_json=as_json)
    with online_cache(given) as cache:
        cache.forget_live(model)
        roots = [None] if model is None else cache.roots_of(model)
        confirm(f"{which}, in every tier of the node", yes=yes)
        total = Removed()
        for namespace in roots:
            removed = cache.remove_all(Removal.ALL, namespace)
            total.rows += removed.rows
            total.nbytes += removed.nbytes
            total.leased += removed.leased
    return write_removed(total, as_json=as_json)
