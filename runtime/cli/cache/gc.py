"""``cache gc``: remove superseded tails, old quarantined files and abandoned temp files."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from runtime.cli.cache.options import age, online_cache, write_json
from runtime.cli.options import json_option, node_command, port_option

QUARANTINE_AGE_S: Final = 7 * 86400.0
TEMP_AGE_S: Final = 3600.0


@node_command()
@port_option
@json_option("print JSON")
@click.option(
    "--quarantine-age", type=age, default=QUARANTINE_AGE_S, metavar="AGE",
    help="keep younger quarantined files (7d)",
)  # fmt: skip
def command(*, as_json: bool, quarantine_age: float, **given: Any) -> int:
    from actors.messages import Removal
    from runtime.cli.cache.online import clean_directory
    from runtime.settings.sizes import format_size

    with online_cache(given) as cache:
        removed = cache.remove_all(Removal.SUPERSEDED)
        files = {"quarantined_files": 0, "temp_files": 0, "bytes": 0}
        for directory in cache.directories.values():
            for key, value in clean_directory(directory, quarantine_age, TEMP_AGE_S).items():
                files[key] += value
    plain = removed.to_dict() | files | {"bytes": removed.nbytes + files["bytes"]}
    if as_json:
        write_json(plain)
    else:
        sys.stdout.write(
            f"removed {plain['rows']} superseded rows, {plain['quarantined_files']} quarantined "
            f"and {plain['temp_files']} temp files: {format_size(plain['bytes'])}\n"
        )
    return 0
