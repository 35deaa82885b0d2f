"""``cache gc``: remove superseded tails, old quarantined files and abandoned temp files."""

from __future__ import annotations

import sys
from typing import Any

import click

from runtime.cli.cache.options import age, online_cache, write_json
from runtime.cli.options import json_option, node_command, node_options
from runtime.client.cache.upkeep import QUARANTINE_AGE_S


@node_command()
@node_options
@json_option("print JSON")
@click.option(
    "--quarantine-age", type=age, default=QUARANTINE_AGE_S, metavar="AGE",
    help="keep younger quarantined files (7d)",
)  # fmt: skip
def command(*, as_json: bool, quarantine_age: float, **given: Any) -> int:
    from runtime.settings.sizes import format_size

    with online_cache(given) as cache:
        plain = cache.clear(quarantine_age)
    if as_json:
        write_json(plain)
    else:
        sys.stdout.write(
            f"removed {plain['rows']} superseded rows, {plain['quarantined_files']} quarantined "
            f"and {plain['temp_files']} temp files: {format_size(plain['bytes'])}\n"
        )
    return 0
