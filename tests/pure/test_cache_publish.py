"""Row files: publishing, opening, rescanning."""

from __future__ import annotations

import os
import stat

import pytest

from cache.errors import BadField, CorruptRow, KeyMismatch, MissingRow
from cache.filesystem import PosixFilesystem
from cache.keys import child_key, namespace_key
from cache.publish import (
    QUARANTINE,
    delete_row,
    open_row,
    quarantine_row,
    row_path,
    write_row,
)
from cache.rows import STATE_AT, RowHeader, RowIdentity, encode_header, encode_meta
from cache.scan import rescan
from cache.tokens import pack

pytestmark = pytest.mark.pure

ROOT = namespace_key([("model", "files")])
FS = PosixFilesystem()
META = encode_meta({"model": "files"})


def slab(number: int, payload: bytes = b"kv" * 1000, meta: bytes = META) -> tuple[bytes, bytes]:
    """Key and arena bytes (unsealed) of a one-token row."""
    tokens = pack([number])
    key = child_key(ROOT, tokens)
    return key, encode_header(
        RowHeader(RowIdentity(key, ROOT, ROOT, 0, tokens), len(payload)), meta
    ) + payload


def test_a_row_is_one_file_and_comes_back_verified(tmp_path):
    key, row = slab(1)
    path, size = write_row(FS, tmp_path, row)
    assert path == row_path(tmp_path, key)
    assert os.path.relpath(path, tmp_path) == f"{key.hex()[:2]}/{key.hex()}.kvb"
    assert os.path.getsize(path) == size == len(row)
    opened = open_row(FS, tmp_path, key)
    assert opened.payload == b"kv" * 1000
    assert opened.payload.readonly
    assert opened.header.id.tokens == pack([1])
    assert opened.header.sealed
    opened.close()


def test_files_are_private(tmp_path):
    root = tmp_path / "tier"
    path, _ = write_row(FS, root, slab(1)[1])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o700


def test_publishing_again_keeps_the_first_file(tmp_path):
    _, row = slab(1)
    path, _ = write_row(FS, tmp_path, row)
    inode = os.stat(path).st_ino
    assert write_row(FS, tmp_path, row)[0] == path
    assert os.stat(path).st_ino == inode
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


def test_a_corrupt_file_in_the_way_is_quarantined_and_replaced(tmp_path):
    key, row = slab(1)
    path, _ = write_row(FS, tmp_path, row)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    write_row(FS, tmp_path, row)
    open_row(FS, tmp_path, key).close()
    assert os.listdir(tmp_path / QUARANTINE) == [os.path.basename(path)]


def test_no_byte_of_a_file_can_change_unnoticed(tmp_path):
    key, row = slab(1, b"kv" * 20)
    path, size = write_row(FS, tmp_path, row)
    with open(path, "rb") as file:
        good = file.read()
    for at in range(size):
        bad = bytearray(good)
        bad[at] ^= 0x10
        with open(path, "wb") as file:
            file.write(bad)
        if STATE_AT <= at < 256:
            open_row(FS, tmp_path, key).close()
        else:
            with pytest.raises(CorruptRow):
                open_row(FS, tmp_path, key)


def test_a_file_of_another_size_or_name_is_refused(tmp_path):
    key, row = slab(1)
    path, size = write_row(FS, tmp_path, row)
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(BadField):
        open_row(FS, tmp_path, key)
    os.truncate(path, size - 1)
    with pytest.raises(CorruptRow):
        open_row(FS, tmp_path, key)
    os.truncate(path, 0)
    with pytest.raises(CorruptRow):
        open_row(FS, tmp_path, key)
    os.unlink(path)
    other = write_row(FS, tmp_path, slab(2)[1])[0]
    os.rename(other, path)
    with pytest.raises(KeyMismatch):
        open_row(FS, tmp_path, key)


def test_a_missing_file_is_a_missing_row(tmp_path):
    with pytest.raises(MissingRow):
        open_row(FS, tmp_path, bytes(32))


def test_a_deleted_row_stays_readable_through_existing_mappings(tmp_path):
    key, row = slab(1)
    write_row(FS, tmp_path, row)
    opened = open_row(FS, tmp_path, key)
    assert delete_row(FS, tmp_path, key)
    assert not delete_row(FS, tmp_path, key)
    assert opened.payload == b"kv" * 1000
    opened.close()


def test_quarantine_moves_a_file_out_of_the_way(tmp_path):
    key, row = slab(1)
    write_row(FS, tmp_path, row)
    assert quarantine_row(FS, tmp_path, key)
    assert not quarantine_row(FS, tmp_path, key)
    with pytest.raises(MissingRow):
        open_row(FS, tmp_path, key)


def test_only_a_valid_row_is_ever_written(tmp_path):
    with pytest.raises(CorruptRow):
        write_row(FS, tmp_path, b"rubbish" * 100)
    assert os.listdir(tmp_path) == []


def test_a_rescan_adopts_rows_removes_temps_and_quarantines_the_rest(tmp_path):
    keys = []
    for number in range(5):
        key, row = slab(number, meta=encode_meta({"note": "x" * 9000 * (number % 2)}))
        keys.append(key)
        path, _ = write_row(FS, tmp_path, row)
    shard = os.path.dirname(path)
    bad = {"rubbish.kvb", "00" * 32 + ".kvb", "README"}
    for name in bad:
        (tmp_path / os.path.basename(shard) / name).write_bytes(b"rubbish" * 1000)
    (tmp_path / os.path.basename(shard) / "half.kvb.1.2.tmp").write_bytes(b"llamaKVB")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("left alone")
    found = rescan(FS, tmp_path)
    assert {row.header.key for row in found.rows} == set(keys)
    assert all(row.header.id.tokens == pack([keys.index(row.header.key)]) for row in found.rows)
    assert all(row.nbytes == os.path.getsize(row.path) for row in found.rows)
    assert found.temps_removed == 1
    assert set(found.quarantined) == bad == set(os.listdir(tmp_path / QUARANTINE))
    assert (tmp_path / "notes" / "mine.txt").exists()
    again = rescan(FS, tmp_path)
    assert (len(again.rows), again.temps_removed, again.quarantined) == (5, 0, ())


def test_a_rescan_of_a_new_directory_creates_it(tmp_path):
    assert rescan(FS, tmp_path / "new").rows == ()
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o700


def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(tmp_path):
    calls = []

    class Recording(PosixFilesystem):
        def __getattribute__(self, name):
            if not name.startswith("_"):
                calls.append(name)
            return super().__getattribute__(name)

    write_row(Recording(), tmp_path, slab(1)[1])
    order = [call for call in calls if call not in ("list_dir", "make_dir")]
    assert order == [
        "sync_dir",
        "create",
        "write",
        "write",
        "sync",
        "close",
        "link",
        "unlink",
        "sync_dir",
    ]
