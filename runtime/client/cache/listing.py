"""The rows of a running node, filtered, as JSON objects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runtime.client.cache.filters import RowFilter

if TYPE_CHECKING:
    from cache.facts import RowFacts
    from runtime.client.cache.admin import OnlineCacheAdmin
    from runtime.client.cache.row_files import RowReport


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


def is_of_age(wanted: RowFilter, created: float | None, now: float) -> bool:
    """Whether a row that was saved then is in the wanted range of ages; Unix seconds."""
    older, newer = wanted.older_than, wanted.newer_than
    if older is None and newer is None:
        return True
    if not created:
        return False
    age = now - created
    return (older is None or age >= older) and (newer is None or age <= newer)


def page_of(wanted: RowFilter, cache: OnlineCacheAdmin) -> dict[str, Any]:
    """Rows, and the cursor after them; ``None``: there are no more."""
    rows: list[dict[str, Any]] = []
    now, page = time.time(), -1
    for row, cursor in listed(wanted, cache):
        # A page is shown to its end: a cursor stands between pages.
        if wanted.limit and len(rows) >= wanted.limit and cursor != page:
            return {"rows": rows, "cursor": cursor}
        page = cursor
        if is_of_age(wanted, row["created_unix_s"], now):
            rows.append(row)
    return {"rows": rows, "cursor": None}


def shown(cache: OnlineCacheAdmin, digits: str) -> tuple[RowReport, dict[str, Any]]:
    """The head of the row whose key begins with these digits, and what the index has of it."""
    from runtime.client.cache.row_files import RowReport

    row = cache.find(digits)
    head = cache.head(row)
    plain = plain_row(row, {}, head) | {"children": cache.children(row.key)}
    plain["copies"] = dict(row.tiers)
    return head or RowReport("no copy could be read", row.row_bytes), plain
