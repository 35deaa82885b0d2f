"""Whatever bytes a file holds, reading its header ends quickly, in a summary or a named error."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from native.errors import ModelFileError, ModelNotFound, NotAGguf, TruncatedGguf
from native.gguf_header import all_splits, check_gguf
from tests.support.examples import examples
from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.pure

_quick = examples(300, HealthCheck.function_scoped_fixture)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_llama(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def outcome(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        check_gguf(path)
        result = "ok"
    except ModelFileError as error:
        result = type(error).__name__ if error.path == str(path) else "wrong path"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20
    assert result != "wrong path"
    return result


def test_a_real_file_is_summarised(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(good)
    summary = check_gguf(path)
    assert (summary.architecture, summary.version, summary.n_splits) == ("llama", 3, 1)
    assert summary.file_bytes == len(good)
    assert summary.metadata["llama.block_count"] == 2
    assert 0 < summary.data_offset < len(good)


@_quick
@given(content=st.binary(max_size=400))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    assert outcome(tmp_path / "m", content) == "NotAGguf" or content[:4] == b"GGUF"


@_quick
@given(tail=st.binary(max_size=300), version=st.sampled_from([2, 3]))
def test_random_bytes_behind_a_good_magic_end_in_a_named_error(
    tmp_path: Path, tail: bytes, version: int
) -> None:
    outcome(tmp_path / "m", b"GGUF" + struct.pack("<I", version) + tail)


@_quick
@given(data=st.data())
def test_a_damaged_header_ends_in_a_summary_or_a_named_error(
    tmp_path: Path, good: bytes, data: st.DataObject
) -> None:
    head = bytearray(good[:12_000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(head) - 9))
        head[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    outcome(tmp_path / "m", bytes(head) + good[12_000:])


@pytest.mark.parametrize("huge", [1 << 31, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("place", ["tensors", "keys", "key length", "array length"])
def test_hostile_counts_cost_nothing(tmp_path: Path, huge: int, place: str) -> None:
    head = b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"k"
    content = {
        "tensors": head + struct.pack("<QQ", huge, 0),
        "keys": head + struct.pack("<QQ", 0, huge),
        "key length": head + struct.pack("<QQQ", 0, 1, huge),
        "array length": head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, huge),
    }[place]
    assert outcome(tmp_path / "m", content.ljust(64, b"\0")) in {"NotAGguf", "TruncatedGguf"}


def test_every_shorter_file_is_truncated(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "m"
    for n in [*range(24, 400, 7), *range(400, len(good), 9_973), len(good) - 1]:
        path.write_bytes(good[:n])
        with pytest.raises(TruncatedGguf) as caught:
            check_gguf(path)
        assert caught.value.actual == n < caught.value.expected


def test_versions_that_are_not_supported_are_named(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "m"
    for version in (0, 1, 4, 0x03000000):  # the last one: a big-endian file
        path.write_bytes(good[:4] + struct.pack("<I", version) + good[8:])
        with pytest.raises(NotAGguf, match="version"):
            check_gguf(path)


def test_what_is_no_readable_file_is_not_found(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo, tmp_path / "none", "nul\0byte"):
        with pytest.raises(ModelNotFound):
            check_gguf(path)


def test_all_splits_of_a_model_must_be_there(tmp_path: Path, good: bytes) -> None:
    def with_count(n: int) -> bytes:
        key = b"split.count"
        extra = struct.pack("<Q", len(key)) + key + struct.pack("<IH", 2, n)
        n_kv = struct.unpack_from("<Q", good, 16)[0]
        body = good[:16] + struct.pack("<Q", n_kv + 1) + extra + good[24:]
        return body + bytes(64)  # the padding before the data moved

    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(with_count(2))
    summary = check_gguf(first)
    assert summary.n_splits == 2
    with pytest.raises(ModelNotFound):
        all_splits(first, summary)
    second = tmp_path / "m-00002-of-00002.gguf"
    second.write_bytes(with_count(2))
    assert all_splits(first, summary) == [first, second]
    with pytest.raises(NotAGguf):
        all_splits(second, check_gguf(second))
