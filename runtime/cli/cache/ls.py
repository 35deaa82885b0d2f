"""``cache ls``: rows as they come, so that a million of them take no memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.cli.cache.filters import RowFilter
from runtime.cli.cache.options import AGE_UNITS, age, cache_dir_option, online_cache
from runtime.cli.options import json_option, node_command, port_option
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from cache.facts import RowFacts
    from runtime.cli.cache.online import OnlineCacheAdmin
    from runtime.cli.cache.row_files import RowReport

ROWS_SHOWN: Final = 50


@node_command()
@port_option
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
def command(*, admin_port: int | None, cache_dir: Path | None, as_json: bool, **given: Any) -> int:
    wanted = RowFilter(**given)
    if cache_dir is not None:
        from runtime.cli.cache import offline

        return print_rows(wanted, offline.listed(cache_dir, wanted), as_json=as_json)
    with online_cache({"admin_port": admin_port}) as cache:
        return print_rows(wanted, listed(wanted, cache), as_json=as_json)


def listed(wanted: RowFilter, cache: OnlineCacheAdmin) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows of a running node, each with the cursor of the page it is on."""
    names = cache.models()
    roots = _roots(wanted, cache, names)
    one = next(iter(roots)) if roots is not None and len(roots) == 1 else None
    at = wanted.cursor
    limit = wanted.limit or 1 << 16
    for page, cursor in cache.rows(cursor=at, root=one, tier=wanted.tier, limit=limit):
        for row in page:
            if roots is None or row.root in roots:
                yield plain_row(row, names, cache.head(row)), at
        at = cursor


def _roots(
    wanted: RowFilter, cache: OnlineCacheAdmin, names: dict[bytes, str]
) -> set[bytes] | None:
    """The namespaces that are wanted; None: all."""
    if wanted.model is None and wanted.namespace is None:
        return None
    roots = {namespace.root for namespace in cache.namespaces()}
    if wanted.namespace is not None:
        roots = {root for root in roots if root.hex().startswith(wanted.namespace)}
    if wanted.model is not None:
        roots = {root for root in roots if names.get(root) == wanted.model}
    return roots


def plain_row(row: RowFacts, names: dict[bytes, str], head: RowReport | None) -> dict[str, Any]:
    """One row as JSON: from the index, its age from its head."""
    created = None if head is None or head.header is None else head.header.created_unix_s
    return {
        "key": row.key.hex(),
        "namespace": row.root.hex(),
        "model": names.get(row.root) or (head.meta.get("model") if head else None),
        "start": row.start,
        "tokens": row.n_tokens,
        "bytes": row.row_bytes,
        "tiers": [tier for tier, _ in row.tiers],
        "reason": row.reason,
        "created_unix_s": created,
        "leases": row.leases,
        "superseded": row.superseded,
    }


def print_rows(
    wanted: RowFilter, rows: Iterator[tuple[dict[str, Any], int]], *, as_json: bool
) -> int:
    """One JSON object, or one line, per row; the next cursor goes to standard error."""
    shown, now = 0, time.time()
    page = -1
    for row, cursor in rows:
        # A page is shown to its end: a cursor stands between pages.
        if wanted.limit and shown >= wanted.limit and cursor != page:
            sys.stderr.write(f"more rows: continue with --cursor {cursor}\n")
            return 0
        page = cursor
        if not _is_of_age(wanted, row["created_unix_s"], now):
            continue
        if as_json:
            sys.stdout.write(json.dumps(row, default=str) + "\n")
        else:
            sys.stdout.write(_line(row, now, header=not shown))
        shown += 1
    if not shown and not as_json:
        sys.stderr.write("no rows\n")
    return 0


def _is_of_age(wanted: RowFilter, created: float | None, now: float) -> bool:
    older, newer = wanted.older_than, wanted.newer_than
    if older is None and newer is None:
        return True
    if not created:
        return False
    age = now - created
    return (older is None or age >= older) and (newer is None or age <= newer)


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
