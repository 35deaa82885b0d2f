"""``cache ls``: rows as they come, so that a million of them take no memory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from cache.facts import RowFacts
from runtime.cli.cache.command import AGE_UNITS
from runtime.cli.cache.online import CacheTender
from runtime.cli.cache.row_files import RowReport
from runtime.settings.sizes import format_size


def listed(
    arguments: argparse.Namespace, tender: CacheTender
) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows of a running node, each with the cursor of the page it is on."""
    names = tender.models()
    roots = _roots(arguments, tender, names)
    one = next(iter(roots)) if roots is not None and len(roots) == 1 else None
    at = arguments.cursor
    limit = arguments.limit or 1 << 16
    for page, cursor in tender.rows(cursor=at, root=one, tier=arguments.tier, limit=limit):
        for row in page:
            if roots is None or row.root in roots:
                yield plain_row(row, names, tender.head(row)), at
        at = cursor


def _roots(
    arguments: argparse.Namespace, tender: CacheTender, names: dict[bytes, str]
) -> set[bytes] | None:
    """The namespaces that are asked for; None: all."""
    if arguments.model is None and arguments.namespace is None:
        return None
    roots = {namespace.root for namespace in tender.namespaces()}
    if arguments.namespace is not None:
        roots = {root for root in roots if root.hex().startswith(arguments.namespace)}
    if arguments.model is not None:
        roots = {root for root in roots if names.get(root) == arguments.model}
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


def print_rows(arguments: argparse.Namespace, rows: Iterator[tuple[dict[str, Any], int]]) -> int:
    """One JSON object, or one line, per row; where to go on is said on standard error."""
    shown, now = 0, time.time()
    page = -1
    for row, cursor in rows:
        # A page is shown to its end: a cursor stands between pages.
        if arguments.limit and shown >= arguments.limit and cursor != page:
            sys.stderr.write(f"more rows: go on with --cursor {cursor}\n")
            return 0
        page = cursor
        if not _is_of_age(arguments, row["created_unix_s"], now):
            continue
        if arguments.json:
            sys.stdout.write(json.dumps(row, default=str) + "\n")
        else:
            sys.stdout.write(_line(row, now, header=not shown))
        shown += 1
    if not shown and not arguments.json:
        sys.stderr.write("no rows\n")
    return 0


def _is_of_age(arguments: argparse.Namespace, created: float | None, now: float) -> bool:
    older, newer = arguments.older_than, arguments.newer_than
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
