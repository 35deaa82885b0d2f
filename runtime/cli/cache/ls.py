"""``cache ls``: rows as they come, so that a million of them take no memory."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from runtime.cli.cache.options import (
    AGE_UNITS,
    age,
    cache_dir_option,
    online_cache,
    require_no_gateway,
)
from runtime.cli.options import json_option, node_command, node_options
from runtime.client.cache.filters import RowFilter
from runtime.settings.sizes import format_size

ROWS_SHOWN: Final = 50


@node_command()
@node_options
@cache_dir_option
@json_option("print one JSON object a row")
@click.option("--model", metavar="NAME", help="only rows of this model")
@click.option("--namespace", metavar="HEX", help="only rows of this namespace")
@click.option("--tier", metavar="NAME", help="only rows that this tier holds")
@click.option("--older-than", type=age, metavar="AGE", help="saved before, e.g. 12h, 7d")
@click.option("--newer-than", type=age, metavar="AGE", help="saved since")
@click.option(
    "--limit", type=int, default=ROWS_SHOWN, metavar="N", help=f"rows ({ROWS_SHOWN}); 0: all"
)
@click.option("--cursor", type=int, default=0, metavar="C", help="continue from here")
def command(*, cache_dir: Path | None, as_json: bool, **given: Any) -> int:
    wanted = RowFilter(**{one.name: given[one.name] for one in dataclasses.fields(RowFilter)})
    if cache_dir is not None:
        require_no_gateway(given)
        from runtime.cli.cache import offline

        return print_rows(wanted, offline.listed(cache_dir, wanted), as_json=as_json)
    with online_cache(given) as cache:
        return print_rows(wanted, cache.rows(wanted), as_json=as_json)


def print_rows(
    wanted: RowFilter, rows: Iterator[tuple[dict[str, Any], int]], *, as_json: bool
) -> int:
    """One JSON object, or one line, per row; the next cursor goes to standard error."""
    from runtime.client.cache.listing import is_of_age

    shown, now = 0, time.time()
    page = -1
    for row, cursor in rows:
        # A page is shown to its end: a cursor stands between pages.
        if wanted.limit and shown >= wanted.limit and cursor != page:
            sys.stderr.write(f"more rows: continue with --cursor {cursor}\n")
            return 0
        page = cursor
        if not is_of_age(wanted, row["created_unix_s"], now):
            continue
        if as_json:
            sys.stdout.write(json.dumps(row, default=str) + "\n")
        else:
            sys.stdout.write(_line(row, now, header=not shown))
        shown += 1
    if not shown and not as_json:
        sys.stderr.write("no rows\n")
    return 0


def _line(row: dict[str, Any], now: float, *, header: bool) -> str:
    words = (
        row["key"][:16],
        f"{row['start']}+{row['tokens']}",
        format_size(row["bytes"]),
        ",".join(row["tiers"]),
        row["reason"] + (" superseded" if row["superseded"] else ""),
        _ago(row["created_unix_s"], now),
        row["model"] or row["namespace"][:12],
    )
    layout = "{:<16}  {:>12}  {:>10}  {:<14}  {:<20}  {:>5}  {}\n"
    first = layout.format("KEY", "TOKENS", "SIZE", "TIERS", "REASON", "AGE", "MODEL")
    return (first if header else "") + layout.format(*words)


def _ago(created: float | None, now: float) -> str:
    if not created:
        return "?"
    age = max(0.0, now - created)
    unit = next((name for name in "dhm" if age >= 2 * AGE_UNITS[name]), "s")
    return f"{age / AGE_UNITS[unit]:.0f}{unit}"
