"""The arena in one process: layout, slabs, scans."""

from __future__ import annotations

import mmap
import os
import re
import struct

import pytest

from cache import arena
from cache.errors import BadArena, BadMagic, CorruptRow, NoArenaSpace
from cache.keys import child_key, namespace_key
from cache.rows import RowHeader, RowIdentity, RowState, encode_header, row_bytes, verify
from cache.tokens import pack

pytestmark = pytest.mark.pure

ROOT = namespace_key([("model", "a")])
PAGE = arena.arena_page_bytes()


@pytest.fixture
def path():
    fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
    arena.create_arena(fd, 256 * PAGE)
    yield f"/proc/self/fd/{fd}"
    os.close(fd)


def header(number: int, payload_bytes: int) -> RowHeader:
    return RowHeader(RowIdentity.after(ROOT, ROOT, 0, pack([number])), payload_bytes)


def write(path, offset, number, payload, *, publish=True, sealed=False, meta=b"") -> int:
    head = header(number, len(payload))
    nbytes = row_bytes(1, len(payload), meta)
    with arena.SlabWriter(path, offset, nbytes) as slab:
        slab.begin(head, meta)
        slab.payload[:] = payload
        if publish:
            assert slab.publish(sealed=sealed).state is RowState.PUBLISHED
    return nbytes


def test_the_superblock_in_the_docstring_is_the_struct():
    lines = re.findall(r"^ +(\d+) +(\d+) (bytes|u16|u32|u64) ", arena.__doc__, re.MULTILINE)
    code = "<" + "".join(
        {"u16": "H", "u32": "I", "u64": "Q"}.get(kind, f"{size}s") for _, size, kind in lines
    )
    assert code == arena.SUPERBLOCK.format
    assert int(lines[-1][0]) + int(lines[-1][1]) == arena.SUPERBLOCK.size


def test_a_row_is_read_where_it_was_written(path):
    write(path, 3 * PAGE, 7, b"kv" * 5000, meta=b"\x80")
    with arena.ArenaReader(path) as reader:
        head, payload = reader.row(3 * PAGE)
        assert payload == b"kv" * 5000
        assert payload.readonly
        assert head.id.tokens == pack([7])
        assert (head.meta_bytes, head.sealed) == (1, False)
        payload.release()


def test_a_sealed_row_proves_its_payload(path):
    write(path, PAGE, 7, b"kv" * 5000, sealed=True)
    with arena.ArenaReader(path) as reader:
        slab = reader.slab(PAGE)
        head, payload = reader.row(PAGE)
        verify(slab, head)
        payload.release()
        slab.release()


def test_a_row_that_was_begun_but_not_published_does_not_exist(path):
    write(path, PAGE, 7, b"kv", publish=False)
    with arena.ArenaReader(path) as reader, pytest.raises(CorruptRow, match="WRITING"):
        reader.row(PAGE)
    assert list(arena.scan_arena(path)) == []


def test_views_outlive_a_closed_reader(path):
    write(path, PAGE, 7, b"kv" * 100)
    reader = arena.ArenaReader(path)
    _, payload = reader.row(PAGE)
    reader.close()
    assert payload[:2] == b"kv"


def test_a_scan_finds_all_published_rows_and_their_slabs(path):
    sizes = [10, PAGE, 5 * PAGE + 1, 3]
    at, expected = 2 * PAGE, []
    for number, size in enumerate(sizes):
        nbytes = write(path, at, number, bytes([number + 1]) * size)
        whole = -(-nbytes // PAGE) * PAGE
        expected.append((at, whole, child_key(ROOT, pack([number]))))
        at += whole + (number % 2) * 4 * PAGE
    found = [(offset, nbytes, head.key) for offset, nbytes, head in arena.scan_arena(path)]
    assert found == expected


def test_a_scan_survives_rubbish_between_rows(path):
    write(path, PAGE, 1, b"a" * 100)
    write(path, 9 * PAGE, 2, b"b" * 100)
    head = header(3, 50)
    whole = encode_header(head)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, os.urandom(3 * PAGE), 2 * PAGE)
    os.pwrite(fd, whole[:100], 5 * PAGE)  # a head cut short
    os.pwrite(fd, b"llamaKVB" + os.urandom(500), 6 * PAGE)
    os.pwrite(fd, whole, 255 * PAGE + PAGE - 4096)
    os.close(fd)
    assert [head.key for _, _, head in arena.scan_arena(path)] == [
        child_key(ROOT, pack([n])) for n in (1, 2)
    ]


def test_beginning_a_slab_wipes_every_row_inside_it(path):
    for page in range(1, 6):
        write(path, page * PAGE, page, b"old")
    assert len(list(arena.scan_arena(path))) == 5
    head = header(99, 4 * PAGE)
    with arena.SlabWriter(path, PAGE, row_bytes(1, 4 * PAGE)) as slab:
        slab.begin(head)
        assert list(arena.scan_arena(path)) == []
    arena.mark_free(path, PAGE)  # nor do they come back when the new row goes
    assert list(arena.scan_arena(path)) == []


def test_bytes_inside_a_payload_are_never_taken_for_a_row(path):
    write(path, 20 * PAGE, 5, b"inner")
    with arena.ArenaReader(path) as reader:
        inner = bytes(reader.slab(20 * PAGE))
    arena.mark_free(path, 20 * PAGE)
    image = bytearray(4 * PAGE)
    at = PAGE - row_bytes(1, 0)  # so that it lies on a page boundary of the arena
    image[at : at + len(inner)] = inner
    write(path, PAGE, 6, bytes(image))
    assert [offset for offset, _, _ in arena.scan_arena(path)] == [PAGE]


def test_a_freed_row_is_not_found_again(path):
    write(path, PAGE, 1, b"a")
    arena.mark_free(path, PAGE)
    assert list(arena.scan_arena(path)) == []
    with arena.ArenaReader(path) as reader, pytest.raises(BadMagic):
        reader.row(PAGE)


def test_looking_at_an_empty_arena_takes_no_memory(path):
    before = os.stat(path).st_blocks
    assert list(arena.scan_arena(path)) == []
    assert os.stat(path).st_blocks == before


@pytest.mark.parametrize("offset", [0, 1, PAGE + 1, 256 * PAGE, -PAGE])
def test_an_offset_that_is_no_slab_is_refused_everywhere(path, offset):
    with pytest.raises(BadArena):
        arena.SlabWriter(path, offset, 10)
    with pytest.raises(BadArena):
        arena.mark_free(path, offset)
    with arena.ArenaReader(path) as reader, pytest.raises(BadArena):
        reader.row(offset)


def test_a_row_larger_than_its_slab_is_refused(path):
    head = header(1, 2 * PAGE)
    with arena.SlabWriter(path, PAGE, PAGE) as slab, pytest.raises(BadArena, match="exceeds"):
        slab.begin(head)
    with pytest.raises(BadArena):
        arena.SlabWriter(path, 255 * PAGE, 2 * PAGE)


def test_publishing_before_beginning_is_refused(path):
    with arena.SlabWriter(path, PAGE, PAGE) as slab:
        with pytest.raises(BadArena, match="begin"):
            slab.publish()
        with pytest.raises(BadArena, match="begin"):
            _ = slab.payload


def test_memory_that_is_not_there_is_an_error_and_no_signal(path, monkeypatch):
    def refuse(fd, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(NoArenaSpace) as caught:
        arena.SlabWriter(path, PAGE, 10)
    assert (caught.value.offset, caught.value.nbytes) == (PAGE, PAGE)


@pytest.mark.parametrize(
    "change",
    [
        (0, b"x"),
        (8, b"\2"),
        (12, struct.pack("<I", 100)),
        (16, struct.pack("<Q", 1 << 40)),
        (24, bytes(4)),
    ],
)
def test_something_else_is_no_arena(path, change):
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, change[1], change[0])
    with pytest.raises(BadArena):
        arena.read_layout(fd)
    os.close(fd)
    with pytest.raises(BadArena):
        arena.ArenaReader(path)


def test_a_file_too_short_for_a_superblock_is_no_arena(tmp_path):
    (tmp_path / "x").write_bytes(b"llamaARN")
    with pytest.raises(BadArena):
        arena.ArenaReader(str(tmp_path / "x"))


def test_an_arena_without_room_for_a_slab_is_refused():
    fd = os.memfd_create("tiny")
    with pytest.raises(BadArena):
        arena.create_arena(fd, PAGE)
    os.close(fd)


def test_an_ordinary_file_serves_as_arena_too(tmp_path):
    file = tmp_path / "arena"
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    layout = arena.create_arena(fd, 64 * PAGE, 32)
    assert arena.read_layout(fd) == layout == arena.ArenaLayout(64 * PAGE, PAGE, 32)
    os.close(fd)
    write(str(file), PAGE, 1, b"a" * 100)
    assert [offset for offset, _, _ in arena.scan_arena(str(file))] == [PAGE]


def test_slab_alignment_suits_this_machine():
    assert PAGE % mmap.ALLOCATIONGRANULARITY == 0
