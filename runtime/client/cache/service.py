"""What ``cache`` commands ask of a running node, whole: rows, checks, removals, counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from runtime.client.cache.admin import OnlineCacheAdmin, Removed

if TYPE_CHECKING:
    from runtime.client.cache.filters import RowFilter
    from runtime.client.client import Client


class NodeCache:
    """The cache of one node. Close it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._opened: OnlineCacheAdmin | None = None

    @property
    def _admin(self) -> OnlineCacheAdmin:
        if self._opened is None:
            self._opened = OnlineCacheAdmin(self._client)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def stat(self) -> dict[str, Any]:
        """The counters of all actors, joined."""
        from runtime.client.cache.stat import stat_of

        return stat_of(self._admin.actors)

    def rows(self, wanted: RowFilter) -> Iterator[tuple[dict[str, Any], int]]:
        """Rows, each with the cursor of the page it is on; ages are not filtered."""
        from runtime.client.cache.listing import listed

        return listed(wanted, self._admin)

    def show(self, digits: str) -> dict[str, Any]:
        """The row whose key begins with these digits: its head, and what the index has of it."""
        from runtime.client.cache.listing import shown

        report, plain = shown(self._admin, digits)
        return report.to_dict() | plain

    def verify(self, progress: Callable[[float], None], *, repair: bool) -> dict[str, Any]:
        """Every row read and checked; ``progress`` is called with shares from 0 to 1."""
        from runtime.client.cache.upkeep import verified

        return verified(self._admin, progress, repair=repair)

    def clear(self, quarantine_age_s: float) -> dict[str, Any]:
        """Superseded rows, old quarantined and temp files removed; how many, and their bytes."""
        from runtime.client.cache.upkeep import cleared

        return cleared(self._admin, quarantine_age_s)

    def flush(self) -> None:
        """Wait until all is written."""
        from runtime.client.cache.upkeep import flush

        flush(self._client)

    def find(self, digits: str) -> tuple[str, int]:
        """Key of the one row that begins with these digits, in hex; rows that continue it."""
        row = self._admin.find(digits)
        return row.key.hex(), self._admin.children(row.key)

    def remove(self, key: str) -> Removed:
        """The row with this key, and all that continues it, removed."""
        return self._admin.remove_tree(bytes.fromhex(key))

    def wipe(self, model: str | None) -> Removed:
        """All rows, or all rows of a model, removed."""
        from runtime.client.cache.upkeep import wiped

        return wiped(self._admin, model)
