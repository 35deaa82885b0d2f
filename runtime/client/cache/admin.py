"""The cache of a running node: long queries, split into small messages.

Reading files and hashing happen here, in the process that asks; ``cache_meta`` only answers bounded
messages in between its lookups.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from actors import messages as m
from actors.messages.actor_ids import model_of
from cache.answers import RAM
from cache.arena import ArenaReader
from cache.errors import CacheError
from cache.facts import NamespaceFacts, RowFacts
from cache.publish import row_path
from runtime import errors
from runtime.client.cache import row_files as cache_files
from runtime.client.cache.row_files import RowReport
from runtime.client.client import Client
from supervision.messages import new_ref

CACHE_META = "cache_meta"
RAM_TIER = "ram_tier"
PASSES = 8  # rows that come while everything is removed are removed too, in bounded passes
Answer = TypeVar("Answer")


@dataclass(slots=True)
class Removed:
    """The result of a removal."""

    rows: int = 0
    nbytes: int = 0
    leased: int = 0
    """Rows that stayed, because a request reads them."""

    def to_dict(self) -> dict[str, int]:
        """The JSON object that the command prints."""
        return {"rows": self.rows, "bytes": self.nbytes, "left_because_read": self.leased}


@dataclass(frozen=True, slots=True)
class Checked:
    """One row that ``verify`` has checked."""

    tier: str
    key: bytes | None
    report: RowReport


class OnlineCacheAdmin:
    """The cache of one node, for its administration. Close it: it maps the arena."""

    def __init__(self, client: Client, actors: dict[str, Any] | None = None) -> None:
        self._client = client
        self.actors: dict[str, Any] = client.reports() if actors is None else actors
        self.directories: dict[str, str] = {}
        self._arena: ArenaReader | None = None
        self._models: list[str] = []
        """Ids of the models' actors."""
        for entry in client.directory():
            if entry.id.startswith("model:"):
                self._models.append(entry.id)
            elif entry.is_up and (entry.id == RAM_TIER or entry.id.startswith("tier:")):
                with contextlib.suppress(errors.NoReply):  # it restarts: as if it had no rows
                    self._look_into(client.ask(entry.id, m.DescribeTier(new_ref())))

    def _look_into(self, tier: object) -> None:
        if not isinstance(tier, m.TierDescribed):
            return
        if tier.directory is not None:
            self.directories[tier.tier] = tier.directory
        if tier.arena is not None:
            with contextlib.suppress(OSError, CacheError):
                self._arena = ArenaReader(tier.arena)

    def close(self) -> None:
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def rows(
        self,
        *,
        cursor: int = 0,
        prefix: bytes = b"",
        root: bytes | None = None,
        tier: str | None = None,
        limit: int = 1 << 16,
    ) -> Iterator[tuple[list[RowFacts], int]]:
        """Pages of at most ``limit`` rows, each with the cursor after it (0: the end)."""
        while True:
            ask = m.ListRows(new_ref(), cursor, prefix, root, tier, limit)
            page = self._ask(ask, m.RowsListed)
            cursor = page.cursor
            yield list(page.rows), cursor
            if not cursor:
                return

    def find(self, digits: str) -> RowFacts:
        """The one row whose key begins with these hex digits."""
        if len(digits) == 64:
            shown = self._ask(m.ShowRow(new_ref(), parse_digits(digits)), m.RowShown)
            found = [shown.row] if shown.row is not None else []
        else:
            prefix = parse_digits(digits[: len(digits) // 2 * 2])
            pages = (page for page, _ in self.rows(prefix=prefix))
            found = [row for page in pages for row in page if row.key.hex().startswith(digits)]
        return only(found, digits, lambda row: row.key)

    def children(self, key: bytes) -> int:
        return self._ask(m.ShowRow(new_ref(), key), m.RowShown).children

    def namespaces(self) -> list[NamespaceFacts]:
        """Every model, in every way it was ever loaded, that has rows."""
        found: list[NamespaceFacts] = []
        cursor = 0
        while True:
            page = self._ask(m.ListNamespaces(new_ref(), cursor), m.NamespacesListed)
            found += page.namespaces
            cursor = page.cursor
            if not cursor:
                return found

    def models(self) -> dict[bytes, str]:
        """The model's name for every namespace whose first row can be read."""
        names: dict[bytes, str] = {}
        for namespace in self.namespaces():
            report = self.head(namespace.sample) if namespace.sample is not None else None
            if report is not None and "model" in report.meta:
                names[namespace.root] = str(report.meta["model"])
        return names

    def roots_of(self, model: str) -> list[bytes]:
        """The namespaces of a model's name: one for each way it was ever loaded."""
        roots = [root for root, name in self.models().items() if name == model]
        if not roots:
            raise errors.InvalidRequest(f"no rows of a model {model!r} are stored; see `cache ls`")
        return roots

    def head(self, row: RowFacts) -> RowReport | None:
        """The row's own header, from the fastest copy that can be read; None: from none."""
        for tier, offset in row.tiers:
            if tier == RAM and self._arena is not None and offset is not None:
                report = cache_files.read_slab(self._arena, offset)
                if report is not None and report.key == row.key:
                    return report
            elif tier in self.directories:
                with contextlib.suppress(OSError):
                    return cache_files.read_head(row_path(self.directories[tier], row.key))
        return None

    # ── verifying ────────────────────────────────────────────────────────────────────────────

    def verify(self, progress: Callable[[float], None]) -> Iterator[Checked]:
        """Every file of every tier in full, then every row of the arena by its digest, if any."""
        todo = [
            (tier, path)
            for tier, directory in sorted(self.directories.items())
            for path in cache_files.walk(directory).rows
        ]
        n_ram = self._rows_in_ram()
        total = max(1, len(todo) + n_ram)
        for done, (tier, path) in enumerate(todo):
            progress(done / total)
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                yield Checked(tier, cache_files.key_of(path), cache_files.check_file(path))
        done = len(todo)
        for page, _ in self.rows(tier=RAM):
            for row in page:
                done += 1
                progress(done / total)
                report = self._check_slab(row)
                if report is not None:
                    yield Checked(RAM, row.key, report)

    def _rows_in_ram(self) -> int:
        tiers = (self.actors.get(CACHE_META) or {}).get("tiers", {})
        return int(tiers.get(RAM, {}).get("rows", 0))

    def _check_slab(self, row: RowFacts) -> RowReport | None:
        offset = dict(row.tiers).get(RAM)
        if self._arena is None or offset is None:
            return None
        report = cache_files.check_slab(self._arena, offset, row.key)
        if report.damage is None:
            return report
        # It may have been evicted between the listing and the check; then nothing is wrong.
        now = self._ask(m.ShowRow(new_ref(), row.key), m.RowShown).row
        is_there = now is not None and dict(now.tiers).get(RAM) == offset
        return report if is_there else None

    def reject(self, checked: Checked) -> bool:
        """Take a damaged row out of the index; a file is quarantined, and can be saved again."""
        if checked.key is None:
            return False
        self._client.connection.tell(
            CACHE_META, m.RowRejected(checked.key, checked.tier, checked.report.damage or "")
        )
        return True

    # ── removing ─────────────────────────────────────────────────────────────────────────────

    def remove_tree(self, key: bytes) -> Removed:
        """A row and everything that continues it."""
        removed, cursor = Removed(), 0
        while True:
            answer = self._remove(m.Removal.TREE, key, cursor)
            removed.rows += answer.rows
            removed.nbytes += answer.nbytes
            removed.leased = answer.leased
            cursor = answer.cursor
            if not cursor:
                return removed

    def remove_all(self, what: m.Removal, root: bytes | None = None) -> Removed:
        """All rows (of a namespace), or all superseded ones, until a pass finds no more."""
        removed = Removed()
        for _ in range(PASSES):
            cursor = rows = leased = 0
            while True:
                answer = self._remove(what, root, cursor)
                rows += answer.rows
                leased += answer.leased
                removed.nbytes += answer.nbytes
                cursor = answer.cursor
                if not cursor:
                    break
            removed.rows += rows
            removed.leased = leased
            if not rows:
                break
        return removed

    def forget_live(self, model: str | None) -> None:
        """Make models drop what only their contexts hold, so that it is not stored afterwards."""
        for child in self._models:
            if model in (None, model_of(child)):
                self._client.connection.tell(child, m.ForgetLive())
                self._client.ask(child, m.EvictLive(new_ref()))  # answered after it was done

    def _remove(self, what: m.Removal, key: bytes | None, cursor: int) -> m.RowsRemoved:
        return self._ask(m.RemoveRows(new_ref(), what, key, cursor), m.RowsRemoved)

    def _ask(self, message: object, kind: type[Answer]) -> Answer:
        answer = self._client.ask(CACHE_META, message)
        if not isinstance(answer, kind):
            raise errors.NoReply(f"{CACHE_META} answered {type(answer).__name__}, which is a bug")
        return answer


def parse_digits(digits: str) -> bytes:
    """Hex digits of a key, or of the beginning of one."""
    try:
        return bytes.fromhex(digits)
    except ValueError as error:
        raise errors.InvalidRequest(
            f"{digits[:16]!r} is not a key: give 4 to 64 hex digits, as `cache ls` shows them"
        ) from error


Found = TypeVar("Found")


def only(found: list[Found], digits: str, key: Callable[[Found], bytes]) -> Found:
    """The one row found; raises InvalidRequest for none or several."""
    if not found:
        raise errors.InvalidRequest(f"no row's key begins with {digits}; see `cache ls`")
    if len(found) > 1:
        some = ", ".join(key(one).hex()[:16] for one in found[:3])
        raise errors.InvalidRequest(f"{len(found)} keys begin with {digits} ({some}, …); give more")
    return found[0]


def clean_directory(directory: str, quarantine_age_s: float, temp_age_s: float) -> dict[str, int]:
    """Remove quarantined files and temps of that age from one tier's directory."""
    found = cache_files.walk(directory)
    quarantined, quarantined_bytes = cache_files.remove_files(
        cache_files.older_than(found.quarantined, quarantine_age_s)
    )
    temps, temp_bytes = cache_files.remove_files(
        path
        for path in cache_files.older_than(found.temps, temp_age_s)
        if not _is_alive(_writer_of(path))
    )
    return {
        "quarantined_files": quarantined,
        "temp_files": temps,
        "bytes": quarantined_bytes + temp_bytes,
    }


def _writer_of(temp: str) -> int:
    """The process that writes a temp file, by its name: ``KEY.kvb.PID.N.tmp``."""
    parts = os.path.basename(temp).split(".")
    return int(parts[-3]) if len(parts) >= 3 and parts[-3].isdigit() else 0


def _is_alive(pid: int) -> bool:
    return pid > 0 and os.path.exists(f"/proc/{pid}")
