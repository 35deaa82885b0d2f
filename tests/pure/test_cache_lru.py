"""The map that keeps what was used last: a table by example, and one law."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.lru import LruMap

pytestmark = pytest.mark.pure

# limit and most entries; what is done, in order; the keys that are kept, least recently used first.
# "a3" puts a value of size 3 under the key a, "a?" gets it, "a!" asks whether it is there.
TABLE = """
10  -  a3 b3 c3           -> abc
10  -  a3 b3 c3 d1        -> abcd
10  -  a3 b3 c3 d2        -> bcd
10  -  a3 b3 c3 a? d2     -> cad
10  -  a3 b3 c3 a! d2     -> bcd
10  -  a3 b3 c3 x? d2     -> bcd
10  -  a3 b3 a1 c3 d3     -> bacd
10  -  a3 b3 c11          ->
10  -  a3 b3 a11          ->
10  2  a3 b3 c3           -> bc
10  2  a3 a3 a3 b1        -> ab
 0  -  a1                 ->
 0  -  a0 b0              -> ab
"""
CASES = [line.split("->") for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("done", "kept"), CASES, ids=[" ".join(one[0].split()) for one in CASES])
def test_what_was_used_last_is_kept_within_the_limits(done: str, kept: str) -> None:
    limit, most, *steps = done.split()
    entries: LruMap[str, str] = LruMap(
        int(limit), lambda value: int(value[1:]), None if most == "-" else int(most)
    )
    for step in steps:
        if step[1:] == "?":
            entries.get(step[0])
        elif step[1:] == "!":
            assert step[0] in entries
        else:
            entries.put(step[0], step)
    assert "".join(value[0] for value in entries.values()) == kept.strip()


def test_without_sizes_the_limit_counts_entries() -> None:
    entries: LruMap[str, str] = LruMap(2)
    for key in "abc":
        entries.put(key, key)
    assert list(entries.values()) == ["b", "c"]
    entries.clear()
    assert len(entries) == 0
    entries.put("d", "d")
    assert entries.get("d") == "d"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=40), st.integers(0, 12))
def test_sizes_add_up_and_nothing_older_outlives_something_newer(
    puts: list[tuple[int, int]], limit: int
) -> None:
    entries: LruMap[int, tuple[int, int]] = LruMap(limit, lambda value: value[1])
    latest: list[tuple[int, int]] = []
    for key, size in puts:
        entries.put(key, (key, size))
        latest = [one for one in latest if one[0] != key] + [(key, size)]
    kept = list(entries.values())
    assert kept == latest[len(latest) - len(kept) :]
    assert sum(size for _, size in kept) <= limit
