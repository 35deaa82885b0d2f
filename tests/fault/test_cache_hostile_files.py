"""Anything else than whole rows in a tier's directory: refused, put aside, and harmless.

Bits, lengths and names are tried one after another, all of them. Every row here is 600 bytes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from blake3 import blake3

from cache import rows, text_marks
from cache.arena import SUPERBLOCK, ArenaReader, SlabWriter, create_arena, scan_arena
from cache.errors import (
    BadArena,
    BadField,
    CorruptRow,
    KeyMismatch,
    MissingRow,
    TierUnavailable,
)
from cache.filesystem import LOCK_FILE, PosixFilesystem, lock_directory
from cache.keys import child_key, namespace_key
from cache.publish import QUARANTINE, QUARANTINE_KEPT, open_row, quarantine_row, row_path, write_row
from cache.rows import RowHeader, RowIdentity, encode_header, encode_meta
from cache.scan import rescan
from cache.tokens import pack

pytestmark = pytest.mark.fault

FS = PosixFilesystem()
ROOT = namespace_key([("model", "hostile")])
OTHER = namespace_key([("model", "another")])
PAYLOAD = bytes(range(100, 200)) * 2
MUTABLE = range(rows.STATE_AT, rows.HEADER_BYTES)  # in a file: the state of a slab, unused


def slab(number: int, root: bytes = ROOT, meta: bytes = b"") -> tuple[bytes, bytes]:
    """Key and arena bytes of a row of one token."""
    tokens = pack([number])
    key = child_key(root, tokens)
    return key, encode_header(
        RowHeader(RowIdentity(key, root, root, 0, tokens), len(PAYLOAD)), meta
    ) + PAYLOAD


def put(folder: Path, number: int, root: bytes = ROOT, meta: bytes = b"") -> tuple[bytes, Path]:
    key, row = slab(number, root, meta)
    return key, Path(write_row(FS, folder, row)[0])


def is_refused(root: Path, key: bytes) -> bool:
    try:
        open_row(FS, root, key).close()
    except CorruptRow:
        return True
    return False


def assert_heals(root: Path, key: bytes, row: bytes) -> None:
    """The row can be saved again at once, and a scan then finds it and nothing else."""
    write_row(FS, root, row)
    open_row(FS, root, key).close()
    assert [found.header.key for found in rescan(FS, root).rows] == [key]


# ── bytes ────────────────────────────────────────────────────────────────────────────────────


def test_no_bit_of_a_file_can_flip_unnoticed(tmp_path: Path) -> None:
    key, path = put(tmp_path, 1, meta=encode_meta({"model": "hostile"}))
    good = path.read_bytes()
    unnoticed = set()
    fd = os.open(path, os.O_RDWR)
    for at, byte in enumerate(good):
        for bit in range(8):
            os.pwrite(fd, bytes((byte ^ 1 << bit,)), at)
            if not is_refused(tmp_path, key):
                unnoticed.add(at)
        os.pwrite(fd, bytes((byte,)), at)
    os.close(fd)
    assert unnoticed == set(MUTABLE)
    opened = open_row(FS, tmp_path, key)
    assert opened.payload == PAYLOAD
    opened.close()


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """An arena with one row, sealed as promoted rows are; its file and the row's offset."""
    path = str(tmp_path / "arena")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    page = create_arena(fd, 1 << 16).page_bytes
    key, row = slab(1, meta=encode_meta({"model": "hostile"}))
    header = rows.parse_header(row)
    with SlabWriter(path, page, page) as writer:
        writer.begin(header, rows.row_meta(row, header))
        writer.payload[:] = PAYLOAD
        writer.publish(sealed=True)
    assert key == header.key
    yield path, page
    os.close(fd)


def test_no_bit_of_a_slab_can_flip_unnoticed_where_a_check_promises_it(
    arena: tuple[str, int],
) -> None:
    """The head always, also by a reader that has proved it before; the payload of a sealed row."""
    path, offset = arena
    with ArenaReader(path) as known:
        header, _ = known.row(offset)
        fd = os.open(path, os.O_RDWR)
        unnoticed = set()
        for at in range(header.row_bytes):
            byte = os.pread(fd, 1, offset + at)[0]
            for bit in range(8):
                os.pwrite(fd, bytes((byte ^ 1 << bit,)), offset + at)
                with ArenaReader(path) as fresh:
                    try:
                        row = fresh.slab(offset)
                        rows.verify(row, rows.parse_header(row))
                        unnoticed.add(at)
                    except CorruptRow:
                        if at < rows.CHECKSUM_AT:  # what a head that was proved before is known by
                            with pytest.raises(CorruptRow):
                                known.row(offset)
            os.pwrite(fd, bytes((byte,)), offset + at)
        os.close(fd)
        assert not {at for at in unnoticed if at not in MUTABLE}
        assert known.row(offset)[1] == PAYLOAD


def test_a_damaged_superblock_is_no_arena_or_the_same_one(arena: tuple[str, int]) -> None:
    path, offset = arena
    with ArenaReader(path) as reader:
        layout = reader.layout
    fd = os.open(path, os.O_RDWR)
    for at in range(SUPERBLOCK.size):
        byte = os.pread(fd, 1, at)[0]
        for bit in range(8):
            os.pwrite(fd, bytes((byte ^ 1 << bit,)), at)
            try:
                with ArenaReader(path) as reader:
                    changed = reader.layout
                    if offset < changed.size_bytes:
                        reader.row(offset)
                assert changed.size_bytes <= layout.size_bytes  # nothing behind the end is read
                list(scan_arena(path))
            except (BadArena, CorruptRow):
                continue
        os.pwrite(fd, bytes((byte,)), at)
    os.close(fd)


def test_no_length_but_the_whole_is_a_row(tmp_path: Path) -> None:
    key, path = put(tmp_path, 1)
    good = path.read_bytes()
    for length in range(len(good)):
        os.truncate(path, length)
        assert is_refused(tmp_path, key), length
        if length % 16 == 0 or length > len(good) - 3:  # a scan reads heads and sizes only
            assert rescan(FS, tmp_path).rows == ()
            os.rename(tmp_path / QUARANTINE / path.name, path)
        path.write_bytes(good)
    for more in (1, 4096):
        path.write_bytes(good + bytes(more))
        assert is_refused(tmp_path, key), more
    assert rescan(FS, tmp_path).rows == ()
    assert_heals(tmp_path, key, slab(1)[1])


# ── files of others ──────────────────────────────────────────────────────────────────────────


def test_files_that_were_swapped_are_both_refused(tmp_path: Path) -> None:
    (one, first), (two, second) = put(tmp_path, 1), put(tmp_path, 2)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    for key in (one, two):
        with pytest.raises(KeyMismatch):
            open_row(FS, tmp_path, key)
    assert set(rescan(FS, tmp_path).quarantined) == {first.name, second.name}
    put(tmp_path, 1)
    put(tmp_path, 2)
    assert len(rescan(FS, tmp_path).rows) == 2


def test_a_row_of_another_model_under_this_name_is_refused(tmp_path: Path) -> None:
    """Also one with this model's namespace: its key then does not follow from its content."""
    key, path = put(tmp_path, 1)
    _, other = put(tmp_path, 1, root=OTHER)
    other.rename(path)
    with pytest.raises(KeyMismatch):
        open_row(FS, tmp_path, key)
    lying = bytearray(path.read_bytes())
    for foreign, ours in ((OTHER, ROOT), (child_key(OTHER, pack([1])), key)):
        while (at := lying.find(foreign)) >= 0:
            lying[at : at + 32] = ours
    path.write_bytes(lying)
    with pytest.raises(CorruptRow):  # the checksum
        open_row(FS, tmp_path, key)
    header = rows.parse_header(slab(1)[1])
    lying[header.tokens_offset] ^= 1
    fields = bytes(lying[rows.HEADER_BYTES : header.payload_offset])
    checksum = blake3(bytes(lying[: rows.CHECKSUM_AT]) + fields).digest()
    lying[rows.CHECKSUM_AT : rows.RESERVED_AT] = checksum
    path.write_bytes(lying)
    with pytest.raises(KeyMismatch):
        open_row(FS, tmp_path, key)
    assert_heals(tmp_path, key, slab(1)[1])


def link(path: Path, home: Path) -> None:
    """To a whole row, elsewhere."""
    target = home / "elsewhere"
    target.mkdir()
    put(target, 1)
    path.symlink_to(row_path(target, slab(1)[0]))


def pipe(path: Path, home: Path) -> None:
    os.mkfifo(path)


def listener(path: Path, home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)
        try:  # the whole path may be too long for a socket
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


def folder(path: Path, home: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("left alone")


def endless(path: Path, home: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path, home: Path) -> None:
    path.symlink_to(path)


ODD = [link, pipe, listener, folder, endless, loop]


@pytest.mark.parametrize("make", ODD)
def test_what_has_a_rows_name_and_is_no_file_is_put_aside(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    """By a scan, by a reader that a lookup has sent there, and by the writer of that row."""
    root = tmp_path / "rows"
    key, path = put(root, 1)
    for put_aside in (
        lambda: rescan(FS, root),
        lambda: is_refused(root, key) and quarantine_row(FS, root, key),
        lambda: write_row(FS, root, slab(1)[1]),
    ):
        path.unlink(missing_ok=True)
        home = tmp_path / f"home{len(os.listdir(tmp_path))}"
        home.mkdir()
        make(path, home)
        assert put_aside()
        assert not path.exists() or path.is_file()
        assert not path.is_symlink()
        assert_heals(root, key, slab(1)[1])
        if make is link:
            assert len(rescan(FS, home / "elsewhere").rows) == 1


@pytest.mark.parametrize("make", ODD)
def test_what_has_the_name_of_a_temp_file_or_folder_goes_without_touching_others(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    """Through a shard that is a link, files elsewhere would be removed."""
    root = tmp_path / "rows"
    key, path = put(root, 1)
    make(path.with_suffix(".1.2.tmp"), tmp_path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("draft.tmp", "letter.kvb", *(f"note{n}" for n in range(2 * QUARANTINE_KEPT))):
        (theirs / name).write_text("mine")
    free = [f"{n:02x}" for n in range(256) if f"{n:02x}" != path.parent.name]
    (root / free[0]).symlink_to(theirs)
    (root / free[1]).write_text("a file with a folder's name")
    (root / QUARANTINE).symlink_to(theirs)
    found = rescan(FS, root)
    assert [row.header.key for row in found.rows] == [key]
    assert {free[0], free[1]} <= set(found.quarantined)
    assert len(os.listdir(theirs)) == 2 + 2 * QUARANTINE_KEPT
    assert sorted(os.listdir(path.parent)) == [path.name]
    again = rescan(FS, root)
    assert (len(again.rows), again.temps_removed, again.quarantined) == (1, 0, ())


def test_the_quarantine_takes_anything_and_stays_small(tmp_path: Path) -> None:
    """Twice the same name, directories of that name, a file in the quarantine's own place."""
    key, path = put(tmp_path, 1)
    (tmp_path / QUARANTINE).write_text("in the way")
    for round_ in range(3 * QUARANTINE_KEPT):
        if path.exists():
            path.unlink()
        if round_ % 3 == 0:
            path.mkdir()
        else:
            path.write_bytes(b"rubbish")
        assert quarantine_row(FS, tmp_path, key)
        put(tmp_path, round_ + 2)
    kept = [entry for entry in os.scandir(tmp_path / QUARANTINE) if entry.is_file()]
    assert len(kept) <= QUARANTINE_KEPT
    assert_one_can_write(tmp_path, key)


def assert_one_can_write(root: Path, key: bytes) -> None:
    write_row(FS, root, slab(1)[1])
    open_row(FS, root, key).close()


def test_a_file_with_two_names_counts_for_the_right_one(tmp_path: Path) -> None:
    key, path = put(tmp_path, 1)
    wrong = Path(row_path(tmp_path, slab(2)[0]))
    wrong.parent.mkdir(exist_ok=True)
    os.link(path, wrong)
    os.link(path, tmp_path / "outside")
    found = rescan(FS, tmp_path)
    assert [row.header.key for row in found.rows] == [key]
    assert found.quarantined == (wrong.name,)
    assert_one_can_write(tmp_path, key)
    assert (tmp_path / "outside").exists()


def test_a_lock_that_is_a_link_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic links") as refused:
        lock_directory(str(tmp_path))
    assert refused.value.errno == errno.ELOOP
    assert not (tmp_path / "theirs").exists()


# ── owners and modes ─────────────────────────────────────────────────────────────────────────


class NotOurs(PosixFilesystem):
    """Refuses some paths as the kernel does another user's files (root may read all)."""

    def __init__(self, *paths: Path) -> None:
        self.closed = {str(path) for path in paths}

    def _look(self, path: str) -> None:
        if path in self.closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    def read_head(self, path: str, nbytes: int) -> tuple[bytes, int]:
        self._look(path)
        return super().read_head(path, nbytes)

    def map(self, path: str) -> memoryview:
        self._look(path)
        return super().map(path)

    def list_dir(self, path: str) -> list[str]:
        self._look(path)
        return super().list_dir(path)

    def rename(self, source: str, target: str) -> None:
        self._look(os.path.dirname(source))
        super().rename(source, target)


def test_a_file_that_may_not_be_read_costs_only_itself(tmp_path: Path) -> None:
    (one, first), (two, _) = put(tmp_path, 1), put(tmp_path, 2)
    files = NotOurs(first)
    with pytest.raises(BadField, match="by this user"):
        open_row(files, tmp_path, one)
    found = rescan(files, tmp_path)
    assert [row.header.key for row in found.rows] == [two]
    assert found.quarantined == (first.name,)
    with pytest.raises(MissingRow):
        open_row(FS, tmp_path, one)


def test_a_directory_that_may_not_be_read_is_a_refusal(tmp_path: Path) -> None:
    key, path = put(tmp_path, 1)
    for closed in (tmp_path, path.parent):
        with pytest.raises(TierUnavailable) as refused:
            rescan(NotOurs(closed, path), tmp_path)
        assert str(tmp_path) in str(refused.value)
    assert len(rescan(FS, tmp_path).rows) == 1
    with pytest.raises(TierUnavailable):
        quarantine_row(NotOurs(path.parent), tmp_path, key)


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o644, 0o666, 0o777, 0o4755])
def test_a_row_is_judged_by_its_bytes_whatever_its_mode(tmp_path: Path, mode: int) -> None:
    key, path = put(tmp_path, 1)
    path.chmod(mode)
    if os.access(path, os.R_OK):
        open_row(FS, tmp_path, key).close()
        assert len(rescan(FS, tmp_path).rows) == 1
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
    assert is_refused(tmp_path, key)


# ── metadata ─────────────────────────────────────────────────────────────────────────────────

HUGE = {
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "a list of 4 billion": b"\x81\xa1x\xdd\xff\xff\xff\xff",
    "a text of 4 GB": b"\x81\xa1x\xdb\xff\xff\xff\xff",
    "bytes of 4 GB": b"\x81\xa1x\xc6\xff\xff\xff\xff",
    "an extension of 4 GB": b"\x81\xa1x\xc9\xff\xff\xff\xff\x05",
    "lists, 60,000 deep": b"\x81\xa1x" + b"\x91" * 60_000,
    "maps, 60,000 deep": b"\x81\xa1x" * 20_000,
    "many lists of many": b"\x81\xa1x\xdc\xea\x60" + b"\x90" * 60_000,
    "no map": b"\x90",
    "two maps": b"\x80\x80",
    "keys that are no text": b"\x81\x93\x01\x02\x03\x01",
    "a text that is no unicode": b"\x81\xa1x\xa2\xff\xfe",
    "never used": b"\xc1",
    "a time before time": b"\x81\xa1x\xc7\x0c\xff\xff\xff\xff\xff\x80\x00\x00\x00\x00\x00\x00\x00",
}
KEY = text_marks.META_KEY
WRONG = {
    "marks of a wrong type": {KEY: 3, "model": ["x"], "logits_bytes": "many"},
    "marks as text": {KEY: "x" * 100},
    "marks as a list": {KEY: [b"x"] * 9},
    "marks that are rubbish": {KEY: b"\xff" * 999},
    "marks cut short": {KEY: b"\x01" * 7},
    "numbers out of range": {"logits_bytes": -(1 << 62), "model": 1 << 63},
}


@pytest.mark.parametrize("name", [*HUGE, *WRONG])
def test_wrong_metadata_is_harmless(tmp_path: Path, name: str) -> None:
    """With a checksum that fits. The row is served; what reads its metadata finds nothing there."""
    meta = HUGE[name] if name in HUGE else msgpack.packb(WRONG[name])
    key, path = put(tmp_path, 1, meta=meta)
    opened = open_row(FS, tmp_path, key)
    assert opened.payload == PAYLOAD
    opened.close()
    (found,) = rescan(FS, tmp_path).rows
    assert found.meta == meta
    marks = text_marks.TextMarks()
    marks.adopt(found.header.id, text_marks.marks_in(found.meta))
    assert len(list(marks.find(b"\xff" * 3600))) == 0
    try:
        assert isinstance(rows.decode_meta(meta), dict)
    except BadField:
        assert name in HUGE
    assert path.exists()
