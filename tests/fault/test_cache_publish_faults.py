"""Stop or refuse the file protocol at every step: the row is absent or valid, no temp survives."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest

from cache.errors import CacheError, MissingRow, TierUnavailable
from cache.filesystem import PosixFilesystem
from cache.keys import child_key, namespace_key
from cache.publish import TEMP_SUFFIX, open_row, row_path, write_row, write_rows
from cache.rows import RowHeader, RowIdentity, encode_header, parse_header, row_payload
from cache.scan import rescan
from cache.tokens import pack
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

ROOT = namespace_key([("model", "faults")])
FS = PosixFilesystem()


def slab(number: int, payload: bytes) -> tuple[bytes, bytes]:
    tokens = pack([number])
    key = child_key(ROOT, tokens)
    return key, encode_header(
        RowHeader(RowIdentity(key, ROOT, ROOT, 0, tokens), len(payload))
    ) + payload


class Killed(BaseException):
    """Stands for SIGKILL: nothing runs after it, no clean-up either."""


class Faulty(PosixFilesystem):
    """Counts calls and fails the n-th; a killed one fails all that follow."""

    def __init__(self, fail_at: int, error: BaseException) -> None:
        self.calls, self.fail_at, self.error = 0, fail_at, error
        self.failed_in = ""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name.startswith("_") or not callable(value):
            return value

        def guarded(*args):
            at = self.calls
            self.calls += 1
            if at == self.fail_at or (at > self.fail_at and isinstance(self.error, Killed)):
                self.failed_in = self.failed_in or name
                if name == "write" and isinstance(self.error, OSError):
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])  # a short write first
                raise self.error
            return value(*args)

        return guarded


def temps(root) -> list[str]:
    return [name for _, _, names in os.walk(root) for name in names if name.endswith(TEMP_SUFFIX)]


def count_files(root) -> int:
    return sum(len(names) for _, _, names in os.walk(root))


def is_absent_or_valid(root, key, payload) -> bool:
    try:
        row = open_row(FS, root, key)
    except MissingRow:
        return False
    assert row.payload == payload
    row.close()
    return True


@pytest.mark.parametrize(
    "error",
    [
        Killed(),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=["killed", "disk full", "disk broken"],
)
def test_a_publish_that_stops_anywhere_leaves_the_row_absent_or_valid(tmp_path, error):
    payload = b"kv" * 700
    stopped_in, outcomes, named = [], set(), []
    for fail_at in range(30):
        root = tmp_path / str(fail_at)
        key, row = slab(1, payload)
        files = Faulty(fail_at, error)
        try:
            write_row(files, root, row)
            finished = True
        except Killed:
            finished = False
        except TierUnavailable as refused:
            finished = False
            named.append((str(root) in str(refused), refused.errno))
        if not finished:
            stopped_in.append(files.failed_in)
        survived = is_absent_or_valid(root, key, payload) if root.exists() else False
        outcomes.add(survived)
        found = rescan(FS, root)
        assert temps(root) == []
        assert found.quarantined == ()
        assert [one.header.key for one in found.rows] == ([key] if survived else [])
        assert survived or not finished
        write_row(FS, root, row)
        assert is_absent_or_valid(root, key, payload)
        if files.failed_in == "":
            break
    assert files.failed_in == "", "the protocol is longer than this test thinks"
    assert {"make_dir", "create", "write", "sync", "link", "sync_dir"} <= set(stopped_in)
    assert outcomes == {True, False}
    assert set(named) == (set() if isinstance(error, Killed) else {(True, error.errno)})


def test_a_full_disk_leaves_no_temp_behind(tmp_path):
    _, row = slab(1, b"kv" * 700)
    refused = 0
    for fail_at in range(12):
        root = tmp_path / str(fail_at)
        files = Faulty(fail_at, OSError(errno.ENOSPC, "No space left on device"))
        try:
            write_row(files, root, row)
        except TierUnavailable:
            refused += 1
            assert temps(root) == []
    assert refused >= 8


def test_a_disk_that_fails_to_read_is_a_refusal_and_not_a_miss(tmp_path):
    key, row = slab(1, b"kv")
    write_row(FS, tmp_path, row)
    with pytest.raises(TierUnavailable):
        open_row(Faulty(0, OSError(errno.EIO, "Input/output error")), tmp_path, key)
    with pytest.raises(TierUnavailable):
        rescan(Faulty(1, OSError(errno.EACCES, "Permission denied")), tmp_path)


def batch_of_three() -> list[tuple[bytes, bytes]]:
    """Three rows, of which two go into one directory."""
    by_shard: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for number in range(1, 2000):
        made = slab(number, b"%d" % number * 300)
        row = by_shard.setdefault(made[0][:1], [])
        row.append(made)
        if len(row) == 2:
            other = next(rows[0] for shard, rows in by_shard.items() if shard != made[0][:1])
            return [*row, other]
    raise AssertionError("no two keys share a directory")


@pytest.mark.parametrize(
    "error",
    [Killed(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error")],
    ids=["killed", "disk full", "disk broken"],
)
def test_a_batch_that_stops_anywhere_leaves_each_row_absent_or_valid(tmp_path, error):
    rows = batch_of_three()
    finished_counts = set()
    for fail_at in range(80):
        root = tmp_path / str(fail_at)
        files = Faulty(fail_at, error)
        try:
            outcomes = write_rows(files, root, [row for _, row in rows])
        except Killed:
            outcomes = []
        else:
            assert len(outcomes) == 3
            finished_counts.add(sum(not isinstance(one, CacheError) for one in outcomes))
        there = {
            key: root.exists() and is_absent_or_valid(root, key, row_payload_of(row))
            for key, row in rows
        }
        for (key, _), outcome in zip(rows, outcomes, strict=False):
            # The bytes of a refused row are in no account, so none may be left.
            assert there[key] == (not isinstance(outcome, CacheError))
        found = rescan(FS, root)
        assert temps(root) == []
        assert found.quarantined == ()
        assert {one.header.key for one in found.rows} == {key for key in there if there[key]}
        if files.failed_in == "":
            break
    assert files.failed_in == "", "the protocol is longer than this test thinks"
    assert finished_counts == ({3} if isinstance(error, Killed) else {0, 1, 2, 3})


def row_payload_of(row: bytes) -> bytes:
    return bytes(row_payload(row, parse_header(row)))


def test_a_batch_syncs_a_directory_once_and_after_all_names_in_it(tmp_path):
    rows = batch_of_three()
    calls: list[tuple[str, str]] = []

    class Noting(PosixFilesystem):
        def link(self, source, target):
            super().link(source, target)
            calls.append(("link", os.path.dirname(target)))

        def sync(self, fd):
            super().sync(fd)
            calls.append(("sync", ""))

        def sync_dir(self, path):
            super().sync_dir(path)
            calls.append(("sync_dir", path))

    write_rows(FS, tmp_path, [slab(5000, b"x")[1]])  # so that the root is there
    for key, _ in rows:
        os.makedirs(os.path.dirname(row_path(tmp_path, key)), exist_ok=True)
    write_rows(Noting(), tmp_path, [row for _, row in rows])
    assert [name for name, _ in calls] == ["sync"] * 3 + ["link"] * 3 + ["sync_dir"] * 2
    assert {at for name, at in calls if name == "link"} == {
        at for name, at in calls if name == "sync_dir"
    }


def test_a_directory_that_could_not_be_synced_is_not_tried_again_for_the_next_row(tmp_path):
    rows = batch_of_three()

    class Forgetful(PosixFilesystem):
        """Reports a failed sync once, as kernels do."""

        failed = False

        def sync_dir(self, path):
            if not self.failed and os.path.basename(path) == rows[0][0].hex()[:2]:
                self.failed = True
                raise OSError(errno.EIO, "I/O error")
            super().sync_dir(path)

    for key, _ in rows:
        os.makedirs(os.path.dirname(row_path(tmp_path, key)), exist_ok=True)
    outcomes = write_rows(Forgetful(), tmp_path, [row for _, row in rows])
    refused = [isinstance(outcome, TierUnavailable) for outcome in outcomes]
    assert refused == [True, True, False]
    assert not any(os.path.exists(row_path(tmp_path, key)) for key, _ in rows[:2])


def test_two_writers_of_one_row_both_succeed_and_leave_one_file(tmp_path):
    key, row = slab(1, b"kv" * 50_000)
    failures = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        try:
            write_row(PosixFilesystem(), tmp_path, row)
        except CacheError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert is_absent_or_valid(tmp_path, key, b"kv" * 50_000)
    assert temps(tmp_path) == []


def test_a_writer_process_killed_at_any_instant_leaves_rows_absent_or_valid(tmp_path):
    pause = threading.Event()
    numbers = range(1, 400)
    payloads = {number: number.to_bytes(4, "little") * 5000 for number in numbers}
    survivors = set()
    for attempt in range(12):
        root = tmp_path / str(attempt)
        pid = os.fork()
        if pid == 0:
            try:
                for number in numbers:
                    write_row(FS, root, slab(number, payloads[number])[1])
            finally:
                os._exit(0)
        eventually(lambda root=root, at=attempt: count_files(root) >= 2 * at, every_s=0.0005)
        pause.wait(0.0001 * attempt)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = rescan(FS, root)
        assert temps(root) == []
        assert found.quarantined == ()
        for row in found.rows:
            number = int.from_bytes(row.header.id.tokens, "little")
            assert is_absent_or_valid(root, row.header.key, payloads[number])
        assert [n for n in numbers if is_absent_or_valid(root, slab(n, b"")[0], payloads[n])] == (
            list(range(1, len(found.rows) + 1))
        )
        survivors.add(len(found.rows))
    assert len(survivors) > 3, "the kills all hit at the same place"
