"""The error tree in the docstring is the error tree in the code."""

from __future__ import annotations

import re

import pytest

from cache import errors

pytestmark = pytest.mark.pure


def test_the_docstring_draws_the_tree():
    tree: dict[str, set[str]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"( *)([*x-]) (\w+)", line)
        if found:
            depth = {"*": 0, "x": 1, "-": 2}[found[2]]
            path[depth:] = [found[3]]
            tree.setdefault(found[3], set())
            if depth:
                tree[path[depth - 1]].add(found[3])

    def drawn(kind: type) -> dict[str, set[str]]:
        below = kind.__subclasses__()
        out = {kind.__name__: {sub.__name__ for sub in below}}
        for sub in below:
            out |= drawn(sub)
        return out

    assert tree == drawn(errors.CacheError)


def test_a_refusing_disk_is_named_with_its_directory_and_errno():
    error = errors.TierUnavailable("/cache/here", "writing a row", OSError(28, "No space left"))
    assert (error.path, error.step, error.errno) == ("/cache/here", "writing a row", 28)
    assert "/cache/here" in str(error)
    assert "No space left" in str(error)
