"""What is done to the whole cache of a node: write what waits, check every row, clear up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from runtime import errors

if TYPE_CHECKING:
    from runtime.client.cache.admin import OnlineCacheAdmin, Removed
    from runtime.client.cache.row_files import RowReport
    from runtime.client.client import Client

FLUSH_TIMEOUT_S: Final = 30.0
LOOK_EVERY_S: Final = 0.02
QUARANTINE_AGE_S: Final = 7 * 86400.0
TEMP_AGE_S: Final = 3600.0

# ── writing what waits ──────────────────────────────────────────────────────────────────────────


def is_flushed(client: Client) -> bool:
    """Start all deferred writes; True if every file tier holds all that is worth keeping there."""
    from actors import messages as m
    from supervision.messages import new_ref

    answer = client.ask("cache_meta", m.PersistNow(new_ref()))
    return isinstance(answer, m.PersistState) and answer.is_all


def flush(
    client: Client, timeout_s: float = FLUSH_TIMEOUT_S, go_on: Callable[[], None] | None = None
) -> None:
    """Wait until all is written; raises NoReply if a disk is not done in time.

    ``go_on`` is called at each look, and may raise to end the wait.
    """
    deadline = time.monotonic() + timeout_s
    while not is_flushed(client):
        if time.monotonic() > deadline:
            raise errors.NoReply(
                f"not everything is on disk after {timeout_s:.0f} s; see `cache stat` for a tier "
                "that is closed or slow"
            )
        if go_on is not None:
            go_on()
        time.sleep(LOOK_EVERY_S)  # noqa: TID251  # a thread that waits for a node, not an actor


# ── checking ────────────────────────────────────────────────────────────────────────────────────


def new_result() -> dict[str, Any]:
    """The counters of a check, at 0."""
    return {"rows": 0, "bytes": 0, "proved": 0, "damaged": []}


def count(result: dict[str, Any], tier: str, report: RowReport, *, repaired: bool) -> None:
    """Add one row that was checked."""
    result["rows"] += 1
    result["bytes"] += report.nbytes
    result["proved"] += report.is_proved
    if report.damage is not None:
        result["damaged"].append({"tier": tier, "repaired": repaired} | report.to_dict())


def verified(
    cache: OnlineCacheAdmin, progress: Callable[[float], None], *, repair: bool
) -> dict[str, Any]:
    """Read every row and check its digest; with ``repair``, damaged ones go to quarantine.

    ``progress`` is called with shares from 0 to 1, and may raise to end the check.
    """
    result = new_result()
    for checked in cache.verify(progress):
        is_bad = checked.report.damage is not None
        repaired = is_bad and repair and cache.reject(checked)
        count(result, checked.tier, checked.report, repaired=repaired)
    return result


# ── clearing up ─────────────────────────────────────────────────────────────────────────────────


def cleared(cache: OnlineCacheAdmin, quarantine_age_s: float = QUARANTINE_AGE_S) -> dict[str, int]:
    """Remove superseded tails, old quarantined files and abandoned temp files."""
    from actors.messages import Removal
    from runtime.client.cache.admin import clean_directory

    removed = cache.remove_all(Removal.SUPERSEDED)
    files = {"quarantined_files": 0, "temp_files": 0, "bytes": 0}
    for directory in cache.directories.values():
        for key, value in clean_directory(directory, quarantine_age_s, TEMP_AGE_S).items():
            files[key] += value
    return removed.to_dict() | files | {"bytes": removed.nbytes + files["bytes"]}


def wiped(cache: OnlineCacheAdmin, model: str | None) -> Removed:
    """Remove all rows, or all rows of a model, and what only its context holds."""
    from actors.messages import Removal
    from runtime.client.cache.admin import Removed

    cache.forget_live(model)
    total = Removed()
    for namespace in [None] if model is None else cache.roots_of(model):
        removed = cache.remove_all(Removal.ALL, namespace)
        total.rows += removed.rows
        total.nbytes += removed.nbytes
        total.leased += removed.leased
    return total
