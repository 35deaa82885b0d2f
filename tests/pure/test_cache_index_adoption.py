"""Rows that a scan finds on their way into the index: lazily, paced, in slices."""

from __future__ import annotations

import os
from collections import deque

import pytest

from actors import messages as m
from actors.storage import row_import as adoption
from actors.storage.row_import import RowImport
from actors.storage.tier_worker import MESSAGES_KEPT, MESSAGES_UNDERWAY, TierWorker
from cache.answers import RowRequest
from cache.filesystem import PosixFilesystem
from cache.index import CacheIndex
from cache.keys import namespace_key
from cache.publish import QUARANTINE, row_path, write_row
from cache.rows import RowHeader, RowIdentity, encode_header
from cache.scan import DirectoryScan
from cache.tokens import pack

pytestmark = pytest.mark.pure

ROOT = namespace_key([("model", "adoption")])


def stored(number: int) -> m.StoredRow:
    tokens = pack([number])
    return m.StoredRow.of(RowIdentity.after(ROOT, ROOT, 0, tokens), 1000, None)


class Ticking:
    """A clock that advances with each reading."""

    def __init__(self, step_s: float) -> None:
        self.now, self._step_s = 100.0, step_s

    def monotonic(self) -> float:
        self.now += self._step_s
        return self.now


def test_found_rows_are_taken_in_a_slice_at_a_time_and_in_order(monkeypatch):
    monkeypatch.setattr(adoption, "time", Ticking(adoption.SLICE_S / 3))
    index, said, gone = CacheIndex(4, {"disk": 10**9}), [], []
    queue = RowImport(index, gone.extend, lambda one: said.append((one, index.snapshot().rows)))
    first = m.RowsFound("disk", tuple(map(stored, range(100))), last=False)
    second = m.RowsFound("disk", tuple(map(stored, range(100, 150))), last=True)
    changed = m.TierChanged("disk", True, True, "")
    for message in (first, second, changed):
        queue.put(message)
    sizes = []
    while not queue.is_idle:
        queue.step()
        sizes.append(index.snapshot().rows)
    assert len(sizes) > 3
    assert max(b - a for a, b in zip([0, *sizes], sizes, strict=False)) < 100
    assert said == [(first, 100), (second, 150), (changed, 150)]
    assert gone == []


def test_what_a_found_row_displaces_is_disposed_of():
    index, gone = CacheIndex(4, {"disk": 2_000}), []
    queue = RowImport(index, gone.extend, lambda _: None)
    queue.put(m.RowsFound("disk", tuple(map(stored, range(5))), last=True))
    while not queue.is_idle:
        queue.step()
        assert index.snapshot().tiers["disk"].used_bytes <= 2_000
    assert len({one.key for one in gone}) == 3
    index.check_integrity()


def test_a_scan_reads_no_file_before_its_row_is_asked_for_and_no_payload_at_all(tmp_path):
    files = PosixFilesystem()
    for number in range(5):
        tokens = pack([number])
        head = RowHeader(RowIdentity.after(ROOT, ROOT, 0, tokens), 1 << 20)
        write_row(files, tmp_path, encode_header(head) + bytes(1 << 20))
    read = []

    class Counting(PosixFilesystem):
        def read_head(self, path, nbytes):
            found = super().read_head(path, nbytes)
            read.append(len(found[0]))
            return found

    rows = iter(DirectoryScan(Counting(), tmp_path))
    assert read == []
    next(rows)
    assert len(read) == 1
    assert len(list(rows)) == 4
    assert max(read) <= 4096


def test_what_is_no_regular_file_is_put_aside_and_never_waited_for(tmp_path):
    key = stored(1).key
    path = row_path(tmp_path, key)
    os.makedirs(os.path.dirname(path))
    os.symlink("/etc/hostname", path)
    os.mkfifo(path.replace(".kvb", "x.kvb"))
    os.mkdir(row_path(tmp_path, bytes(32)).replace("/00/", f"/{key.hex()[:2]}/"))
    scan = DirectoryScan(PosixFilesystem(), tmp_path)
    assert list(scan) == []
    assert len(scan.quarantined) == 3
    assert len(os.listdir(tmp_path / QUARANTINE)) == 3


class Reporter(TierWorker):
    """Without a process: what it would do is written down."""

    def __init__(self) -> None:
        self._unreported, self._looks_again = deque(), False
        self.sent, self.timers, self.waiting, self.is_up = [], [], 0, True
        self._has_room = type("Room", (), {"set": self.open, "clear": self.close})()
        self.is_open = True

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def backlog(self, target):
        return self.waiting

    def tell(self, target, message):
        self.waiting += self.is_up
        self.sent += [message] * self.is_up
        return self.is_up

    def after(self, seconds, payload):
        self.timers.append(payload)


def test_findings_go_out_in_order_as_fast_as_they_are_taken_and_the_scan_waits():
    reporter = Reporter()
    many = list(range(MESSAGES_UNDERWAY + MESSAGES_KEPT + 10))
    reporter.handle_events(many)
    assert reporter.sent == many[:MESSAGES_UNDERWAY]
    assert not reporter.is_open
    assert len(reporter.timers) == 1
    while reporter.timers:
        reporter.waiting = 0
        reporter.handle_timer(reporter.timers.pop())
    assert reporter.sent == many
    assert reporter.is_open


def test_findings_wait_for_cache_meta_without_a_timer():
    reporter = Reporter()
    reporter.is_up = False
    reporter.handle_events(["row"])
    assert (reporter.sent, reporter.timers) == ([], [])
    reporter.is_up = True
    reporter.directory_changed(())
    assert reporter.sent == ["row"]


def test_a_row_request_and_a_stored_row_mean_the_same():
    row = stored(7)
    index = CacheIndex(4, {"disk": 10**9})
    queue = RowImport(index, lambda _: None, lambda _: None)
    queue.put(m.RowsFound("disk", (row,), last=True))
    queue.step()
    request = RowRequest(row.identity, 1000)
    assert index.reserve(0, "m", [request], "disk").answers[0].reason.value == "already_present"
