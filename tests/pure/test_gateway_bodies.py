"""Bodies: what is refused before anything is made of it, and what is not."""

from __future__ import annotations

import pytest

from runtime.gateway.wire.bodies import MAX_ITEMS, MAX_OBJECTS, read
from runtime.gateway.wire.failure import Refused

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"[" + b"{}," * MAX_OBJECTS + b"{}]", "objects and lists"),
        (b"[" + b"[]," * MAX_OBJECTS + b"[]]", "objects and lists"),
        (b"[" + b"1," * (MAX_ITEMS + 1) + b"1]", "elements"),
        (b"[" * 400_000 + b"]" * 400_000, "nested"),
    ],
    ids=["objects", "lists", "numbers", "deep"],
)
def test_more_values_than_a_request_has_are_refused(body: bytes, what: str) -> None:
    with pytest.raises(Refused, match=what):
        read(body, list[object])


def test_as_many_as_there_may_be_are_read() -> None:
    numbers: list[int] = read(b"[" + b"1," * MAX_ITEMS + b"1]", list[int])
    assert len(numbers) == MAX_ITEMS + 1
    long = b'["' + b"x" * (MAX_ITEMS + 10) + b'"]'
    assert len(read(long, list[str])[0]) == MAX_ITEMS + 10
