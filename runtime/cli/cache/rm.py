"""``cache rm``: remove a row and all that continues it."""

from __future__ import annotations

from typing import Any

import click

from runtime.cli.cache.options import confirm, online_cache, write_removed, yes_option
from runtime.cli.options import json_option, node_command, port_option


@node_command()
@port_option
@json_option("print JSON")
@click.argument("key", help="hex, or the beginning of it")
@yes_option
def command(*, key: str, as_json: bool, yes: bool, **given: Any) -> int:
    with online_cache(given) as cache:
        row = cache.find(key.lower())
        children = cache.children(row.key)
        what = f"row {row.key.hex()[:16]} and what continues it ({children} rows directly)"
        confirm(what, yes=yes)
        return write_removed(cache.remove_tree(row.key), as_json=as_json)
