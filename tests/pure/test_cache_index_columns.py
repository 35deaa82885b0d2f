"""What the index is built of: slots, the way from keys to them, sorted siblings, the queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import siblings
from cache.answers import RowRequest
from cache.errors import InvariantBroken
from cache.keymap import KeyMap
from cache.keys import child_key, namespace_key
from cache.nodes import NIL, Nodes
from cache.ranking import EvictionQueue
from cache.rows import RowIdentity, SaveReason
from cache.tokens import pack
from tests.support.examples import examples

pytestmark = pytest.mark.pure

ROOT = namespace_key([("model", "columns")])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=300))
def test_a_key_map_is_a_dict_however_its_keys_collide(steps):
    keys = [b""] + [number.to_bytes(32, "big") for number in range(41)]
    found = KeyMap(keys.__getitem__, bits=0)
    model = {}
    for is_added, number in steps:
        key, at = keys[number + 1], number + 1
        if is_added and key not in model:
            found.add(key, at)
            model[key] = at
        elif not is_added and key in model:
            found.remove(key)
            del model[key]
        assert all(found.find(one) == model.get(one, 0) for one in keys[1:])


def test_a_key_map_holds_a_hundred_thousand_keys_and_lets_them_go():
    keys = [b"", *(number.to_bytes(32, "little") for number in range(100_000))]
    found = KeyMap(keys.__getitem__)
    for at in range(1, len(keys)):
        found.add(keys[at], at)
    assert all(found.find(keys[at]) == at for at in range(1, len(keys)))
    for at in range(1, len(keys), 2):
        found.remove(keys[at])
    assert all(found.find(keys[at]) == (0 if at % 2 else at) for at in range(1, len(keys)))


def child(nodes: Nodes, parent: int, ids: list[int]) -> int:
    tokens = pack(ids)
    key = child_key(nodes.key(parent), tokens)
    at = nodes.use(key)
    request = RowRequest(RowIdentity(key, ROOT, ROOT, 0, tokens), 1000, SaveReason.COLD)
    nodes.fill(at, request, parent, parent, 0.0)
    return at


token_lists = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)


@given(st.lists(st.tuples(st.booleans(), token_lists), max_size=80), st.lists(token_lists))
def test_siblings_are_a_sorted_list(steps, queries):
    nodes = Nodes(4)
    parent = nodes.use(ROOT)
    model: dict[bytes, int] = {}
    for is_added, ids in steps:
        tokens = pack(ids)
        if is_added and tokens not in model:
            new = model[tokens] = child(nodes, parent, ids)
            order = sorted(model)
            place = order.index(tokens)
            expected = (
                model[order[place - 1]] if place else NIL,
                model[order[place + 1]] if place + 1 < len(order) else NIL,
            )
            assert siblings.insert(nodes, parent, new) == expected
        elif not is_added and tokens in model:
            siblings.remove(nodes, parent, model.pop(tokens))
        assert [nodes.tokens(at) for at in siblings.of(nodes, parent)] == sorted(model)
    for ids in queries:
        tokens = pack(ids)
        below = [at for at in siblings.of(nodes, parent) if nodes.tokens(at) < tokens]
        others = [at for at in siblings.of(nodes, parent) if nodes.tokens(at) >= tokens]
        expected = (below[-1] if below else NIL, others[0] if others else NIL)
        assert siblings.around(nodes, parent, tokens) == expected


def test_siblings_that_come_in_order_do_not_make_a_list_of_the_tree():
    nodes = Nodes(4)
    parent = nodes.use(ROOT)
    for number in range(5_000):
        siblings.insert(nodes, parent, child(nodes, parent, [number >> 8, number & 255]))
    depth, level = 0, [nodes.child[parent]]
    while level:
        depth += 1
        level = [below for at in level for below in (nodes.left[at], nodes.right[at]) if below]
    assert depth < 50  # 13 if it were perfect, 5,000 if it were a list


ranks = st.floats(-5, 5) | st.just(float("-inf"))


@examples(200)
@given(st.lists(st.none() | st.tuples(st.integers(1, 30), ranks | st.none()), max_size=120))
def test_the_eviction_queue_gives_the_lowest_rank_and_no_row_twice(steps):
    nodes = Nodes(4)
    queue = EvictionQueue(nodes)
    model: dict[int, float] = {}
    for step in steps:
        if step is not None:
            at, rank = step
            if rank is None:
                queue.discard(at)
                model.pop(at, None)
            else:
                queue.offer(at, rank)
                model[at] = min(rank, model.get(at, rank))
        elif model:
            rank, at = queue.pop()
            assert rank == min(model.values()) == model.pop(at)
        else:
            assert queue.pop() is None
        assert len(queue) == len(model)
        queue.check_integrity()


def test_what_takes_the_place_of_a_discarded_slot_may_have_to_rise():
    queue = EvictionQueue(Nodes(4))
    for at, rank in enumerate([1, 10, 2, 11, 12, 3], start=1):  # 4 and 5 hang below 2, 6 below 3
        queue.offer(at, float(rank))
    queue.discard(4)  # 6 moves there, and is worth less than 2
    queue.check_integrity()
    assert [queue.pop()[1] for _ in range(5)] == [1, 3, 6, 2, 5]


def test_a_queue_out_of_order_is_noticed():
    queue = EvictionQueue(Nodes(4))
    for at in range(1, 5):
        queue.offer(at, float(at))
    queue._rank[1] = 9.0
    with pytest.raises(InvariantBroken, match="out of order"):
        queue.check_integrity()


def test_slots_are_used_again_and_a_node_in_use_is_not_freed():
    nodes = Nodes(4)
    keys = [number.to_bytes(32, "little") for number in range(3_000)]
    slots = [nodes.use(key) for key in keys]
    assert slots == list(range(1, 3_001))
    assert nodes.use(keys[7]) == slots[7]
    for key in keys[::2]:
        nodes.free(nodes.find(key))
    assert len(nodes) == 1_500
    assert [nodes.find(key) for key in keys[:4]] == [0, 2, 0, 4]
    again = nodes.use(bytes(31) + b"x")
    assert again in slots[::2]
    assert nodes.key(again) == bytes(31) + b"x"
    nodes.copies[again] = 1
    with pytest.raises(InvariantBroken):
        nodes.free(again)


def test_a_row_comes_back_as_it_was_asked_for():
    nodes = Nodes(64)
    tokens = pack(range(17))
    for at in (nodes.use(number.to_bytes(32, "little")) for number in range(2_000)):
        root = nodes.use(ROOT)
        request = RowRequest(
            RowIdentity(nodes.key(at), ROOT, ROOT, 1 << 31, tokens),
            (1 << 62) + at,
            SaveReason.SHUTDOWN,
        )
        nodes.fill(at, request, root, root, 0.5)
        assert nodes.request(at) == request
