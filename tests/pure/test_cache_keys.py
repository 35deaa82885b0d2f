"""Tokens as bytes, and the key chain."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cache import keys, tokens

pytestmark = pytest.mark.pure

ids = st.lists(st.integers(0, 2**32 - 1), max_size=40)
near = st.lists(st.integers(0, 1), max_size=3000)
values = st.text(max_size=5) | st.binary(max_size=5) | st.integers()
parts = st.dictionaries(st.text(max_size=4), values, max_size=4)


@given(ids)
def test_packing_is_undone_by_unpacking(numbers):
    packed = tokens.pack(numbers)
    assert packed == b"".join(number.to_bytes(4, "little") for number in numbers)
    assert tokens.unpack(packed) == numbers
    assert tokens.count(packed) == len(numbers)


@pytest.mark.parametrize("bad", [[-1], [2**32], ["x"], [1.5]])
def test_what_is_no_token_id_is_refused(bad):
    with pytest.raises(ValueError, match="token ids"):
        tokens.pack(bad)


def test_bytes_that_are_not_whole_ids_are_refused():
    with pytest.raises(ValueError, match="not whole"):
        tokens.unpack(b"12345")


@given(near, near)
def test_common_prefix_counts_like_a_loop(a, b):
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert tokens.common_prefix(tokens.pack(a), tokens.pack(b)) == expected


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2000), st.data())
def test_common_prefix_finds_the_token_that_differs_in_one_bit(numbers, data):
    at = data.draw(st.integers(0, len(numbers) - 1))
    other = list(numbers)
    other[at] ^= 1 << data.draw(st.integers(0, 31))
    assert tokens.common_prefix(tokens.pack(numbers), tokens.pack(other)) == at


@given(parts, st.randoms())
def test_a_namespace_key_does_not_depend_on_the_order_of_its_parts(named, random):
    items = list(named.items())
    random.shuffle(items)
    assert keys.namespace_key(items) == keys.namespace_key(named.items())
    assert len(keys.namespace_key(items)) == keys.KEY_BYTES


@given(parts, parts)
def test_two_namespaces_share_a_key_only_if_they_are_equal(a, b):
    def typed(named):
        return {name: (type(value), value) for name, value in named.items()}

    same = keys.namespace_key(a.items()) == keys.namespace_key(b.items())
    assert same == (typed(a) == typed(b))


@given(parts, st.data())
def test_changing_any_part_changes_the_namespace_key(named, data):
    if not named:
        return
    name = data.draw(st.sampled_from(sorted(named)))
    changed = dict(named)
    changed[name] = data.draw(
        values.filter(lambda v: (type(v), v) != (type(named[name]), named[name]))
    )
    assert keys.namespace_key(changed.items()) != keys.namespace_key(named.items())


def test_values_of_different_types_never_encode_alike():
    made = {keys.namespace_key([("a", value)]) for value in (1, "1", b"1")}
    assert len(made) == 3


def test_bytes_may_not_move_between_a_name_and_its_value():
    assert keys.namespace_key([("ab", "c")]) != keys.namespace_key([("a", "bc")])


def test_a_part_named_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        keys.namespace_key([("a", 1), ("a", 1)])


@pytest.mark.parametrize("value", [None, 1.0, True, ["x"]])
def test_a_part_of_another_type_is_refused(value):
    with pytest.raises(TypeError, match="must be"):
        keys.namespace_key([("a", value)])


def test_the_chain_is_plain_blake3_of_parent_and_tokens():
    root = keys.namespace_key([("model", "x")])
    packed = tokens.pack(range(10))
    first = blake3(root + packed[:16]).digest()
    second = blake3(first + packed[16:32]).digest()
    assert keys.chain_keys(root, packed, 4) == [first, second]


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_chains_agree_exactly_on_the_shared_full_blocks(a, b):
    root = bytes(32)
    left = keys.chain_keys(root, tokens.pack(a), 3)
    right = keys.chain_keys(root, tokens.pack(b), 3)
    shared = tokens.common_prefix(tokens.pack(a), tokens.pack(b)) // 3
    for at, (x, y) in enumerate(zip(left, right, strict=False)):
        assert (x == y) == (at < shared)


@given(ids, st.integers(1, 7))
def test_splitting_loses_no_token(numbers, block):
    blocks, tail = keys.split(tokens.pack(numbers), block)
    assert b"".join(blocks) + tail == tokens.pack(numbers)
    assert all(tokens.count(part) == block for part in blocks)
    assert tokens.count(tail) < block


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.integers(0, 60), st.integers(0, 60))
def test_token_ids_are_the_same_as_numbers_and_as_bytes(
    ids: list[int], start: int, stop: int
) -> None:
    known = tokens.TokenIds(ids)
    assert known.packed == tokens.pack(ids)
    assert tokens.TokenIds.unpacked(known.packed) == known
    assert list(known) == known.column().tolist() == ids
    assert len(known) == len(ids)
    assert known[start:stop] == tokens.TokenIds(ids[start:stop])
    assert known[start:stop].packed == tokens.pack(ids[start:stop])
    assert known[:start] + known[start:] == known
    assert hash(known) == hash(tokens.TokenIds(tuple(ids)))
    grown = known.column()
    grown.append(7)
    assert list(known) == ids
    with pytest.raises(ValueError, match="token ids"):
        tokens.TokenIds([*ids, -1])
    with pytest.raises(ValueError, match="4-byte"):
        tokens.TokenIds.unpacked(known.packed + b"\0")
