"""``cache show``: everything about one row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from runtime import errors
from runtime.cli.cache.options import cache_dir_option, online_cache, write_json
from runtime.cli.options import json_option, node_command, port_option


@node_command()
@port_option
@cache_dir_option
@click.argument("key", help="hex, or the beginning of it; for instance a finish_key")
@json_option("print JSON")
def command(*, key: str, cache_dir: Path | None, as_json: bool, **given: Any) -> int:
    from runtime.cli.cache import offline
    from runtime.cli.cache.describe_row import describe
    from runtime.client.cache.listing import shown

    digits = key.lower()
    if len(digits) < 4:
        raise errors.InvalidRequest("give at least 4 hex digits of a key, as `cache ls` shows them")
    plain: dict[str, Any] = {}
    if cache_dir is not None:
        report = offline.shown(cache_dir, digits)
    else:
        with online_cache(given) as cache:
            report, plain = shown(cache, digits)
    if as_json:
        write_json(report.to_dict() | plain)
        return 0
    sys.stdout.write(describe(report))
    if plain:
        sys.stdout.write(
            f"copies      {', '.join(plain['tiers'])}; read by {plain['leases']} requests; "
            f"continued by {plain['children']} rows"
            f"{'; superseded by a longer row' if plain['superseded'] else ''}\n"
        )
    return 0
