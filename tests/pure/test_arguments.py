"""What callers pass becomes the value that is meant, or an error that names it."""

from __future__ import annotations

import contextlib
import fractions
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import tokens as token_bytes
from runtime.client.request_options import chat_request, prompt_request
from runtime.errors import InvalidRequest
from runtime.settings import arguments
from tests.support.senseless import SENSELESS

pytestmark = pytest.mark.pure

CHECKS: dict[str, Callable[[Any], object]] = {
    "text": lambda value: arguments.text("x", value),
    "model": arguments.model_name,
    "data": lambda value: arguments.data("x", value),
    "path": lambda value: arguments.path("x", value),
    "table": lambda value: arguments.table("x", value, "a table"),
    "size": lambda value: arguments.size("x", value),
    "flag": lambda value: arguments.flag("x", value),
    "whole": lambda value: arguments.whole("x", value, 0),
    "real": lambda value: arguments.real("x", value),
    "seconds": lambda value: arguments.seconds("x", value),
    "pause": lambda value: arguments.pause("x", value),
    "tokens": lambda value: arguments.packed_tokens("x", value),
    "prompt": lambda value: prompt_request("m", value),
    "messages": lambda value: chat_request("m", value),
    "stop": lambda value: prompt_request("m", "x", stop=value),
    "logit_bias": lambda value: prompt_request("m", "x", logit_bias=value),
    "schema": lambda value: prompt_request("m", "x", json_schema=value),
    "seed": lambda value: prompt_request("m", "x", seed=value),
    "logprobs": lambda value: prompt_request("m", "x", logprobs=value, top_logprobs=value),
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_value_is_taken_or_refused_by_name(check: str) -> None:
    untyped = {}
    for label, value in SENSELESS.items():
        try:
            CHECKS[check](value)
        except InvalidRequest:
            pass
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            untyped[label] = error
    assert untyped == {}


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
))  # fmt: skip
def test_any_plain_value_is_taken_or_refused(value: Any) -> None:
    for check in CHECKS.values():
        with contextlib.suppress(InvalidRequest):
            check(value)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_ids_of_every_integer_type_are_the_same_bytes(ids: list[int]) -> None:
    wanted = token_bytes.pack(ids)
    for given_ids in (ids, tuple(ids), numpy.array(ids), [numpy.uint32(one) for one in ids]):
        assert arguments.packed_tokens("x", given_ids) == wanted


@given(st.binary())
def test_bytes_are_utf8_or_refused(data: bytes) -> None:
    try:
        expected = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(InvalidRequest, match="not UTF-8"):
            arguments.text("x", data)
    else:
        assert arguments.text("x", data) == expected


@pytest.mark.parametrize(
    ("value", "meant"),
    [(2, 2.0), (0.5, 0.5), (numpy.float32(0.5), 0.5), (fractions.Fraction(1, 2), 0.5),
     (float("inf"), None), (1e300, None), (None, None)],
)  # fmt: skip
def test_seconds_of_every_number_type(value: Any, meant: float | None) -> None:
    assert arguments.seconds("x", value) == meant
