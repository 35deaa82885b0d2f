"""Blocks of a match as message bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.answers import RowRequest
from cache.errors import CorruptRow
from cache.index import CacheIndex
from cache.keys import namespace_key
from cache.refs import pack_blocks, unpack_blocks
from cache.rows import RowIdentity
from cache.tokens import count, cut, pack

pytestmark = pytest.mark.pure

ROOT = namespace_key([("model", "a")])


def stored(n_tokens: int, block: int = 64) -> tuple[CacheIndex, bytes]:
    index = CacheIndex(block, {"ram": 1 << 40, "disk": 1 << 40})
    tokens, parent = pack(range(n_tokens)), ROOT
    for at in range(0, n_tokens, block):
        own = cut(tokens, at, at + block)
        row = RowRequest(RowIdentity.after(parent, ROOT, at, own), 1_500_000)
        tier = "disk" if at % (2 * block) else "ram"
        index.adopt(0, tier, row, 4096 + at * (1 << 20) if tier == "ram" else None)
        parent = row.key
    return index, tokens


@given(st.integers(1, 300), st.integers(0, 300), st.booleans())
def test_blocks_come_back_as_they_were(n_stored, n_asked, with_keys):
    index, tokens = stored(n_stored)
    prompt = cut(tokens, 0, n_asked) + pack([7, 7, 7])
    match = index.lookup(0, "m", ROOT, prompt)
    packed = pack_blocks(match.blocks, with_keys=with_keys)
    known = () if with_keys else (ROOT, prompt)
    assert tuple(unpack_blocks(packed, *known)) == match.blocks


def test_fifteen_hundred_blocks_fit_into_a_message():
    index, tokens = stored(1500 * 64)
    match = index.lookup(0, "m", ROOT, tokens)
    assert len(match.blocks) == 1500
    packed = pack_blocks(match.blocks)
    assert len(packed) < 40_000
    assert tuple(unpack_blocks(packed, ROOT, tokens)) == match.blocks


def test_no_blocks_pack_to_no_blocks():
    assert unpack_blocks(pack_blocks([])) == []


def test_missing_tokens_are_an_error_not_a_wrong_key():
    index, tokens = stored(200)
    packed = pack_blocks(index.lookup(0, "m", ROOT, tokens).blocks)
    with pytest.raises(CorruptRow):
        unpack_blocks(packed, ROOT, cut(tokens, 0, count(tokens) - 1))
    with pytest.raises(CorruptRow):
        unpack_blocks(packed)


@given(st.binary(max_size=80))
def test_any_bytes_are_blocks_or_corrupt(noise):
    try:
        assert isinstance(unpack_blocks(noise, ROOT, pack(range(100))), list)
    except CorruptRow:
        return


@given(st.integers(0, 10_000))
def test_every_truncation_is_noticed(at):
    index, tokens = stored(150)
    packed = pack_blocks(index.lookup(0, "m", ROOT, tokens).blocks, with_keys=True)
    whole = {len(packed) - 58 * n for n in range(4)}
    if (at := at % len(packed)) not in whole:
        with pytest.raises(CorruptRow):
            unpack_blocks(packed[:at])
