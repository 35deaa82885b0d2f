"""A cache directory that no node uses: list, show, verify, wipe.

Reading is possible beside a node; a change takes the directory's lock first, and so is refused
while a node holds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import TierUnavailable
from cache.filesystem import PosixFilesystem, lock_directory
from cache.publish import quarantine_row
from runtime import errors
from runtime.client.cache import row_files as cache_files
from runtime.client.cache.admin import Removed, only, parse_digits
from runtime.client.cache.row_files import RowReport, rows_root, walk
from runtime.client.cache.upkeep import count, new_result
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from runtime.client.cache.filters import RowFilter


@contextlib.contextmanager
def held(cache_dir: Path) -> Iterator[Path]:
    """The directory of the rows, locked like a node locks it."""
    if not cache_dir.is_dir():
        raise ConfigError("cache_dir", f"there is no directory {cache_dir}")
    try:
        fd = lock_directory(str(cache_dir))
    except OSError as error:
        raise errors.LlamaActorsError(
            f"{cache_dir} is in use by a node, or cannot be locked ({error.strerror}); leave "
            "--cache-dir out to ask that node"
        ) from error
    try:
        yield rows_root(cache_dir)
    finally:
        os.close(fd)


def _existing(cache_dir: Path) -> Path:
    if not cache_dir.is_dir():
        raise ConfigError("cache_dir", f"there is no directory {cache_dir}")
    return rows_root(cache_dir)


def listed(cache_dir: Path, wanted: RowFilter) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows for ``ls``, each with its position, in the order of their keys."""
    if wanted.tier is not None:
        raise errors.InvalidRequest("--tier needs a node; a directory is one tier by itself")
    paths = walk(_existing(cache_dir)).rows
    for at, path in enumerate(paths[wanted.cursor :], wanted.cursor):
        try:
            report = cache_files.read_head(path)
        except OSError:
            continue
        header = report.header
        if header is None:
            continue  # verify finds it
        plain = {
            "key": header.key.hex(),
            "namespace": header.id.root.hex(),
            "model": report.meta.get("model"),
            "start": header.id.start,
            "tokens": header.id.n_tokens,
            "bytes": header.row_bytes,
            "tiers": ["file"],
            "reason": header.reason.name.lower(),
            "created_unix_s": header.created_unix_s,
            "leases": 0,
            "superseded": False,
        }
        is_meant = wanted.model is None or plain["model"] == wanted.model
        if is_meant and header.id.root.hex().startswith(wanted.namespace or ""):
            yield plain, at


def shown(cache_dir: Path, digits: str) -> RowReport:
    """The row whose key begins with these digits, checked to its last byte."""
    parse_digits(digits[: len(digits) // 2 * 2])
    paths = walk(_existing(cache_dir)).rows
    found = [path for path in paths if os.path.basename(path).startswith(digits)]
    return cache_files.check_file(only(found, digits, lambda path: cache_files.key_of(path) or b""))


def verified(cache_dir: Path, progress: Callable[[float], None], *, repair: bool) -> dict[str, Any]:
    """Check every file; with ``repair`` damaged ones go to quarantine."""
    with held(cache_dir) if repair else contextlib.nullcontext(_existing(cache_dir)) as root:
        result = new_result()
        paths = walk(root).rows
        for done, path in enumerate(paths):
            progress(done / len(paths))
            with contextlib.suppress(FileNotFoundError):
                report = cache_files.check_file(path)
                is_bad = report.damage is not None
                repaired = is_bad and repair and _quarantine(root, path)
                count(result, "file", report, repaired=repaired)
        return result


def _quarantine(root: Path, path: str) -> bool:
    key = cache_files.key_of(path)
    try:
        return key is not None and quarantine_row(PosixFilesystem(), root, key)
    except TierUnavailable as error:
        raise errors.LlamaActorsError(str(error)) from error


def wiped(root: Path, model: str | None) -> Removed:
    """Remove rows, temps and quarantined files (of one model: its rows); the caller holds it."""
    found = walk(root)
    if model is None:
        rows, nbytes = cache_files.remove_files(found.rows)
        _, rest = cache_files.remove_files(found.temps + found.quarantined)
        return Removed(rows, nbytes + rest)
    rows, nbytes = cache_files.remove_files(
        path for path in found.rows if cache_files.read_head(path).meta.get("model") == model
    )
    return Removed(rows, nbytes)
