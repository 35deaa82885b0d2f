"""The power fails at any instant: each row is absent or whole, and what was promised is there."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import pytest

from cache.errors import CacheError, MissingRow
from cache.filesystem import PosixFilesystem
from cache.keys import child_key, namespace_key
from cache.publish import delete_row, open_row, row_path, write_rows
from cache.rows import RowHeader, RowIdentity, encode_header
from cache.scan import rescan
from cache.tokens import pack
from tests.support.power import LosingDisk

pytestmark = pytest.mark.fault

ROOT = namespace_key([("model", "power")])
FS = PosixFilesystem()
TRIES = 12  # what else may be on the disk, for each instant


def row(number: int) -> tuple[bytes, bytes, bytes]:
    """(key, slab, payload) of a row of its own."""
    tokens = pack([number])
    payload = random.Random(number).randbytes(300 + 997 * number)
    key = child_key(ROOT, tokens)
    head = encode_header(RowHeader(RowIdentity(key, ROOT, ROOT, 0, tokens), len(payload)))
    return key, head + payload, payload


ROWS = [row(number) for number in range(4)]


def publish(disk: LosingDisk, root: Path) -> set[bytes]:
    """Two batches and a removal; the keys that were promised to be durable before the loss."""
    promised: set[bytes] = set()
    try:
        for batch in (ROWS[:3], ROWS[3:]):
            outcomes = write_rows(disk, root, [slab for _, slab, _ in batch])
            promised |= {one.key for one in outcomes if not isinstance(one, CacheError)}
        promised.discard(ROWS[0][0])  # from here on it may be gone or not
        delete_row(disk, root, ROWS[0][0])
    except LosingDisk.Lost:
        pass
    return promised


def check(left: Path, promised: set[bytes]) -> None:
    """What a node would find there."""
    found = rescan(FS, left) if left.is_dir() else None
    adopted = {one.header.key for one in found.rows} if found else set()
    for key, _, payload in ROWS:
        try:
            opened = open_row(FS, left, key)
        except (MissingRow, CacheError):
            assert key not in promised, "a row that was promised is lost"
            continue
        assert opened.payload == payload
        opened.close()
        assert key in adopted
    names = [one.name for one in left.rglob("*") if one.is_file()] if left.is_dir() else []
    assert not [name for name in names if name.endswith(".tmp")]


def test_whenever_the_power_fails_rows_are_absent_or_whole_and_promises_hold(tmp_path: Path):
    total = 0
    for stop_at in itertools.count():
        root = tmp_path / f"disk-{stop_at}"
        root.mkdir()
        disk = LosingDisk(stop_at)
        promised = publish(disk, root)
        for seed in range(TRIES):
            left = tmp_path / f"left-{stop_at}-{seed}"
            chooser = random.Random(1000 * stop_at + seed)
            # The extremes first: nothing that was not synced, and all of its names without bytes.
            extremes = {0: lambda most: most, 1: lambda _most: 0}
            choose = extremes.get(seed, lambda most, c=chooser: c.randint(0, most))  # type: ignore[misc]
            disk.after_power_loss(root, left, choose)
            check(left, promised)
            shutil.rmtree(left)
            total += 1
        shutil.rmtree(root)
        if disk.calls < stop_at:
            break
    assert promised == {key for key, _, _ in ROWS[1:]}, "nothing was lost at the end"
    assert stop_at > 20
    assert total > 250


def test_the_simulation_can_lose_what_was_not_synced(tmp_path: Path):
    """Without the syncs of the protocol a promise is broken: the test above can fail."""

    class Careless(LosingDisk):
        def sync(self, fd: int) -> None:
            del fd

    root = tmp_path / "disk"
    root.mkdir()
    disk = Careless(10_000)
    promised = publish(disk, root)
    left = tmp_path / "left"
    disk.after_power_loss(root, left, lambda most: most and 0)
    assert promised
    with pytest.raises((AssertionError, CacheError)):
        check(left, promised)
    assert (root / row_path(root, ROWS[1][0])).exists()
