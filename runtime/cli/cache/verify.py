"""``cache verify``: read every row and check its digest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from runtime.cli.cache.options import cache_dir_option, online_cache, require_no_gateway, write_json
from runtime.cli.options import json_option, node_command, node_options


@node_command()
@node_options
@cache_dir_option
@json_option("print JSON")
@click.option("--repair", is_flag=True, help="quarantine what is damaged")
def command(*, cache_dir: Path | None, as_json: bool, repair: bool, **given: Any) -> int:
    from runtime.cli.cache import offline
    from runtime.cli.progress import ProgressLine
    from runtime.settings.sizes import format_size

    with ProgressLine("checking rows") as line:
        if cache_dir is not None:
            require_no_gateway(given)
            result = offline.verified(cache_dir, line.share, repair=repair)
        else:
            with online_cache(given) as cache:
                result = cache.verify(line.share, repair=repair)
    if as_json:
        write_json(result)
    else:
        for bad in result["damaged"]:
            done = "quarantined" if bad["repaired"] else "left as it is"
            sys.stdout.write(
                f"DAMAGED {bad['tier']} {bad['place']}\n"
                f"        at {bad['damaged_at']}: {bad['damage']}; {done}\n"
            )
        sys.stdout.write(
            f"{result['rows']} rows, {format_size(result['bytes'])}: "
            f"{result['proved']} proved by digest, {len(result['damaged'])} damaged\n"
        )
    return 1 if result["damaged"] else 0
