"""What the files of a killed node hold, read by the benchmark of a day of agents."""

from __future__ import annotations

import pytest

from bench.day_rows import StoredRows
from cache.rows import RowHeader, RowIdentity, encode_header, seal
from cache.tokens import pack

pytestmark = pytest.mark.pure

ROOT = bytes(range(32))


def chain(*parts):
    """The identities of rows that follow one another."""
    found, parent, start = [], ROOT, 0
    for tokens in parts:
        row = RowIdentity.after(parent, ROOT, start, pack(tokens))
        found.append(row)
        parent, start = row.key, row.end
    return found


def store(folder, rows, payloads):
    for row, payload in zip(rows, payloads, strict=True):
        head = encode_header(RowHeader(row, len(payload)))
        (folder / f"{row.key.hex()}.kvb").write_bytes(seal(head, payload) + payload)


def test_a_prompt_can_use_part_of_a_row_unless_states_cannot_be_cut(tmp_path):
    store(tmp_path, chain([1, 2], [3, 4], [5, 6]), [b"a", b"b", b""])
    prompt = [1, 2, 3, 4, 5, 9]
    assert StoredRows(tmp_path, can_cut=True).usable(prompt) == 5
    assert StoredRows(tmp_path, can_cut=False).usable(prompt) == 4


def test_a_row_without_payload_is_no_state(tmp_path):
    store(tmp_path, chain([1, 2], [3, 4]), [b"a", b""])
    assert StoredRows(tmp_path, can_cut=False).usable([1, 2, 3, 4, 5]) == 2


def test_the_last_token_of_a_prompt_is_computed_in_any_case(tmp_path):
    store(tmp_path, chain([1, 2], [3, 4]), [b"a", b"b"])
    assert StoredRows(tmp_path, can_cut=True).usable([1, 2, 3, 4]) == 3


def test_a_row_whose_beginning_is_missing_holds_nothing(tmp_path):
    store(tmp_path, chain([1, 2], [3, 4])[1:], [b"b"])
    stored = StoredRows(tmp_path, can_cut=True)
    assert (stored.n_rows, stored.usable([1, 2, 3, 4, 5])) == (1, 0)


def test_a_file_that_is_no_row_is_left_out(tmp_path):
    (tmp_path / "00.kvb").write_bytes(b"nothing")
    assert StoredRows(tmp_path, can_cut=True).n_rows == 0
