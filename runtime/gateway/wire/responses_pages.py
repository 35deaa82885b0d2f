"""Pages of items, as the Responses API lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from runtime.gateway.wire.failure import invalid
from runtime.gateway.wire.responses_items import Item

MAX_PAGE: Final = 100
_USUAL: Final = 20


def page_of(
    items: Sequence[Item], after: str | None = None, limit: int = 0, order: str | None = None
) -> dict[str, Any]:
    """Items behind the one with the id ``after``; ``order``: ``desc``, which is usual, or ``asc``.

    A ``limit`` of 0 is the usual one.
    """
    if order not in (None, "asc", "desc"):
        raise invalid(f"order is {order!r}; it is asc or desc", "order")
    listed = list(items) if order == "asc" else list(reversed(items))
    ids = [one["id"] for one in listed]
    if after and after not in ids:
        raise invalid(f"after: this response has no item {after!r}", "after")
    rest = listed[ids.index(after) + 1 :] if after else listed
    page = rest[: min(limit or _USUAL, MAX_PAGE)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(rest) > len(page),
    }
