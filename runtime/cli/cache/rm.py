"""``cache rm``: remove a row and all that continues it."""

from __future__ import annotations

from typing import Any

import click

from runtime.cli.cache.options import confirm, online_cache, write_removed, yes_option
from runtime.cli.options import json_option, node_command, node_options


@node_command()
@node_options
@json_option("print JSON")
@click.argument("key", help="hex, or the beginning of it")
@yes_option
def command(*, key: str, as_json: bool, yes: bool, **given: Any) -> int:
    with online_cache(given) as cache:
        whole, children = cache.find(key.lower())
        what = f"row {whole[:16]} and what continues it ({children} rows directly)"
        confirm(what, yes=yes)
        return write_removed(cache.remove(whole), as_json=as_json)
