"""The cache of a node elsewhere, for its administration: as ``client.cache.service``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from runtime.client.cache.admin import Removed
from runtime.client.cache.filters import RowFilter
from runtime.remote.connection import Requests
from runtime.remote.failures import not_ours
from runtime.remote.node import OURS, work_of

PAGE: Final = 1000
"""Rows of one answer at most."""


class RemoteCache:
    """See ``NodeCache``, whose methods these are. Raises ``GatewayError`` besides."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def close(self) -> None:
        """Nothing is open between requests."""

    def stat(self) -> dict[str, Any]:
        return self._object(self._requests.get(f"{OURS}/cache/stat"), "cache")

    def rows(self, wanted: RowFilter) -> Iterator[tuple[dict[str, Any], int]]:
        at = wanted.cursor
        limit = min(wanted.limit or PAGE, PAGE)
        while True:
            page = self._object(
                self._requests.get(
                    f"{OURS}/cache/ls",
                    model=wanted.model,
                    namespace=wanted.namespace,
                    tier=wanted.tier,
                    limit=limit,
                    cursor=at,
                ),
                "rows",
            )
            for row in page["rows"]:
                yield row, at
            if page.get("cursor") is None:
                return
            at = int(page["cursor"])

    def show(self, digits: str) -> dict[str, Any]:
        return self._object(self._requests.get(f"{OURS}/cache/show/{digits}"), "key")

    def verify(self, progress: Callable[[float], None], *, repair: bool) -> dict[str, Any]:
        found = work_of(self._requests, f"{OURS}/cache/verify", {"repair": repair}, progress)
        return self._object(found, "damaged")

    def clear(self, quarantine_age_s: float) -> dict[str, Any]:
        return self._post("gc", {"quarantine_age_s": quarantine_age_s}, "rows")

    def flush(self) -> None:
        self._post("flush", {}, "flushed")

    def find(self, digits: str) -> tuple[str, int]:
        found = self.show(digits)
        return str(found["key"]), int(found.get("children", 0))

    def remove(self, key: str) -> Removed:
        return self._removed("rm", {"key": key})

    def wipe(self, model: str | None) -> Removed:
        return self._removed("wipe", {"all": True} if model is None else {"model": model})

    def _removed(self, path: str, body: dict[str, Any]) -> Removed:
        found = self._post(path, body, "left_because_read")
        return Removed(found["rows"], found["bytes"], found["left_because_read"])

    def _post(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        return self._object(self._requests.post(f"{OURS}/cache/{path}", body), key)

    def _object(self, found: Any, key: str) -> dict[str, Any]:
        if not isinstance(found, dict) or key not in found:
            raise not_ours(self._requests.address, "its answer cannot be read")
        return found
