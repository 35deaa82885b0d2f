"""``cache show``: everything about one row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from runtime import errors
from runtime.cli.cache.options import cache_dir_option, online_cache, require_no_gateway, write_json
from runtime.cli.options import json_option, node_command, node_options


@node_command()
@node_options
@cache_dir_option
@click.argument("key", help="hex, or the beginning of it; for instance a finish_key")
@json_option("print JSON")
def command(*, key: str, cache_dir: Path | None, as_json: bool, **given: Any) -> int:
    from runtime.cli.cache import offline
    from runtime.cli.cache.describe_row import describe

    digits = key.lower()
    if len(digits) < 4:
        raise errors.InvalidRequest("give at least 4 hex digits of a key, as `cache ls` shows them")
    if cache_dir is not None:
        require_no_gateway(given)
        plain = offline.shown(cache_dir, digits).to_dict()
    else:
        with online_cache(given) as cache:
            plain = cache.show(digits)
    if as_json:
        write_json(plain)
        return 0
    sys.stdout.write(describe(plain))
    if "children" in plain:
        sys.stdout.write(
            f"copies      {', '.join(plain['tiers'])}; read by {plain['leases']} requests; "
            f"continued by {plain['children']} rows"
            f"{'; superseded by a longer row' if plain['superseded'] else ''}\n"
        )
    return 0
