"""The row format: byte map, golden bytes, and the laws of its parser."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import fields, replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cache import rows
from cache.errors import (
    BadField,
    BadMagic,
    ChecksumMismatch,
    CorruptRow,
    KeyMismatch,
    Truncated,
    UnsupportedVersion,
)
from cache.keys import child_key, namespace_key
from cache.rows import RowIdentity
from cache.tokens import pack

pytestmark = pytest.mark.pure

ROOT = namespace_key([("model", "golden")])
TOKENS = pack([1, 2, 3])
ID = RowIdentity.after(ROOT, ROOT, 0, TOKENS)
META = rows.encode_meta({"model": "golden"})
PAYLOAD = bytes(range(256)) * 2
GOLDEN = "d5f7d99502e333101df477d22284f925dba89c1e6a5fd19b749c7631770fb6c0"  # BLAKE3 of the row
MUTABLE = range(rows.STATE_AT, rows.HEADER_BYTES)


def make(**changes):
    """A header; ``changes`` are to its own fields and to those of its identity."""
    names = {field.name for field in fields(RowIdentity)} & changes.keys()
    identity = replace(ID, **{name: changes.pop(name) for name in names})
    header = rows.RowHeader(
        identity,
        payload_bytes=len(PAYLOAD),
        reason=rows.SaveReason.FINISH,
        created_unix_s=1_700_000_000.5,
        state=rows.RowState.PUBLISHED,
    )
    return replace(header, **changes)


def sealed_row() -> bytes:
    return rows.seal(rows.encode_header(make(), META), PAYLOAD) + PAYLOAD


def forged(**fields) -> bytes:
    """A head whose fixed fields were changed and whose checksum was made to fit again."""
    head = bytearray(rows.encode_header(make(), META))
    for name, value in fields.items():
        offset, code = {
            "version": (8, "<H"),
            "flags": (10, "<H"),
            "reason": (12, "<B"),
            "reserved_a": (13, "<B"),
            "start": (16, "<Q"),
            "n_tokens": (24, "<I"),
            "meta_bytes": (28, "<I"),
            "key": (32, "<32s"),
            "created": (128, "<d"),
            "payload_bytes": (136, "<Q"),
            "row_bytes": (144, "<Q"),
            "reserved_b": (216, "<B"),
        }[name]
        struct.pack_into(code, head, offset, value)
    checksum = blake3(bytes(head[: rows.CHECKSUM_AT]) + head[rows.HEADER_BYTES :]).digest()
    head[rows.CHECKSUM_AT : rows.RESERVED_AT] = checksum
    return bytes(head) + PAYLOAD


def test_the_byte_map_in_the_docstring_is_the_struct():
    sizes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "f64": 8}
    codes = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "f64": "d"}
    lines = re.findall(
        r"^ +(\d+) +(\d+) (\w+) +(\w+) +(identity|observability|mutable)",
        rows.__doc__,
        re.MULTILINE,
    )
    at, code = 0, "<"
    for offset, size, kind, _, _ in lines:
        assert int(offset) == at
        assert int(size) == sizes.get(kind, int(size))
        code += codes.get(kind, f"{size}s")
        at += int(size)
    assert at == rows.HEADER_BYTES == 256
    assert code == rows.HEADER.format
    places = {name: int(offset) for offset, _, _, name, _ in lines}
    assert places["digest"] == rows.DIGEST_AT
    assert places["checksum"] == rows.CHECKSUM_AT
    assert places["state"] == rows.STATE_AT
    assert places["hits"] == rows.HITS_AT
    mutable = {name for *_, name, kind in lines if kind == "mutable"}
    assert mutable == {"state", "reserved_c", "hits", "last_used"}


def test_a_golden_row_still_has_the_same_bytes():
    row = sealed_row()
    assert row[:32].hex() == ("6c6c616d614b564201000100030000000000000000000000030000000e000000")
    assert blake3(row).hexdigest() == GOLDEN


def test_numbers_on_disk_never_change():
    assert [(reason.name, int(reason)) for reason in rows.SaveReason] == [
        ("COLD", 1),
        ("CONTINUED", 2),
        ("FINISH", 3),
        ("EVICT", 4),
        ("SHUTDOWN", 5),
    ]
    assert [int(state) for state in rows.RowState] == [0, 1, 2]


def test_a_row_comes_back_as_it_was_written():
    row = sealed_row()
    header = rows.parse_header(row)
    assert header == make(meta_bytes=len(META), sealed=True, digest=header.digest)
    assert header.id == ID
    assert rows.decode_meta(rows.row_meta(row, header)) == {"model": "golden"}
    assert rows.row_payload(row, header) == PAYLOAD
    assert header.payload_offset % rows.PAYLOAD_ALIGN == 0
    assert header.row_bytes == len(row) == rows.row_bytes(3, len(PAYLOAD), META)
    rows.verify(row, header)


@given(st.integers(1, 200), st.integers(0, 5000), st.binary(max_size=300))
def test_the_size_of_a_row_is_known_before_it_is_written(n_tokens, payload_bytes, meta):
    packed = pack(range(n_tokens))
    header = make(key=child_key(ROOT, packed), tokens=packed, payload_bytes=payload_bytes)
    head = rows.encode_header(header, meta)
    assert len(head) + payload_bytes == rows.row_bytes(n_tokens, payload_bytes, meta)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_row_or_corrupt(noise):
    for buffer in (noise, rows.MAGIC + noise, rows.MAGIC + b"\1\0" + noise):
        with pytest.raises(CorruptRow):
            rows.parse_header(buffer)


@given(
    st.lists(st.tuples(st.integers(0, 815), st.integers(0, 255)), max_size=6), st.integers(0, 900)
)
def test_damaged_rows_are_parsed_or_corrupt_never_anything_else(damage, length):
    row = bytearray(sealed_row())
    for at, value in damage:
        row[at % len(row)] = value
    try:
        header = rows.parse_header(bytes(row[:length]))
        rows.verify(bytes(row[:length]), header)
    except CorruptRow:
        return
    assert row[: rows.STATE_AT] == sealed_row()[: rows.STATE_AT]


def test_every_flipped_byte_of_a_sealed_row_is_detected_unless_declared_mutable():
    row = sealed_row()
    for at in range(len(row)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(row)
            damaged[at] ^= mask
            if at in MUTABLE:
                rows.verify(damaged, rows.parse_header(bytes(damaged)))
                continue
            with pytest.raises(CorruptRow):
                rows.verify(damaged, rows.parse_header(bytes(damaged)))


def test_every_flipped_byte_of_an_unsealed_head_is_detected_unless_declared_mutable():
    head = rows.encode_header(make(), META)
    for at in set(range(len(head))) - set(MUTABLE):
        damaged = bytearray(head + PAYLOAD)
        damaged[at] ^= 0x40
        with pytest.raises(CorruptRow):
            rows.parse_header(bytes(damaged))


def test_every_truncation_is_detected():
    row = sealed_row()
    for length in range(len(row)):
        with pytest.raises(Truncated):
            rows.parse_header(row[:length])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 2}, UnsupportedVersion),
        ({"flags": 2}, BadField),
        ({"reason": 0}, BadField),
        ({"reason": 99}, BadField),
        ({"reserved_a": 1}, BadField),
        ({"reserved_b": 1}, BadField),
        ({"n_tokens": 0}, BadField),
        ({"n_tokens": 2**32 - 1}, BadField),
        ({"meta_bytes": 2**32 - 1}, BadField),
        ({"payload_bytes": 2**64 - 1}, BadField),
        ({"row_bytes": 1}, BadField),
        ({"start": 2**63}, BadField),
        ({"created": float("nan")}, BadField),
        ({"key": bytes(32)}, KeyMismatch),
    ],
)
def test_a_forged_head_with_a_fitting_checksum_is_still_refused(fields, error):
    with pytest.raises(error):
        rows.parse_header(forged(**fields))


def test_a_forged_head_without_changes_is_accepted():
    assert rows.parse_header(forged()).id.n_tokens == 3


def test_a_row_cannot_stand_for_other_tokens():
    row = bytearray(sealed_row())
    header = rows.parse_header(bytes(row))
    row[header.tokens_offset] ^= 1
    checksum = blake3(
        bytes(row[: rows.CHECKSUM_AT]) + row[rows.HEADER_BYTES : header.payload_offset]
    ).digest()
    row[rows.CHECKSUM_AT : rows.RESERVED_AT] = checksum
    with pytest.raises(KeyMismatch):
        rows.parse_header(bytes(row))


def test_a_head_alone_parses_when_the_total_size_is_given():
    head = rows.encode_header(make(), META)
    assert rows.parse_header(head, len(head) + len(PAYLOAD)).payload_bytes == len(PAYLOAD)
    with pytest.raises(Truncated):
        rows.parse_header(head, len(head) + len(PAYLOAD) - 1)


def test_something_else_is_no_row():
    with pytest.raises(BadMagic):
        rows.parse_header(bytes(4096))


def test_an_unsealed_row_does_not_verify():
    row = rows.encode_header(make(), META) + PAYLOAD
    with pytest.raises(ChecksumMismatch, match="never sealed"):
        rows.verify(row, rows.parse_header(row))


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": bytes(32)},
        {"root": b"short"},
        {"start": -1},
        {"payload_bytes": -1},
        {"payload_bytes": 1 << 60},
        {"created_unix_s": float("inf")},
    ],
)
def test_what_cannot_be_stored_is_refused_by_the_writer(wrong):
    with pytest.raises(ValueError, match=r"key|range|finite"):
        rows.encode_header(make(**wrong), META)


@pytest.mark.parametrize("packed", [b"", b"123"])
def test_a_row_needs_whole_tokens(packed):
    with pytest.raises(ValueError, match="whole tokens"):
        rows.encode_header(make(key=child_key(ROOT, packed), tokens=packed))


def test_metadata_has_a_limit():
    with pytest.raises(ValueError, match="metadata"):
        rows.encode_meta({"x": "y" * rows.MAX_META_BYTES})
    with pytest.raises(ValueError, match="metadata"):
        rows.encode_header(make(), bytes(rows.MAX_META_BYTES + 1))


@given(st.binary(max_size=64))
def test_any_metadata_bytes_are_a_map_or_a_bad_field(noise):
    with suppress(BadField):
        assert isinstance(rows.decode_meta(noise), dict)


def test_deeply_nested_metadata_is_a_bad_field():
    with pytest.raises(BadField):
        rows.decode_meta(b"\x91" * 60_000)
