"""What surrounds a gap, checked, and put together with the tokens of the vocabulary."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from actors.messages.errors import InvalidRequest, UnsupportedRequest
from actors.text.infill_prompt import Surroundings, infill_from, infill_tokens
from native.backend import InfillTokens
from native.params import ModelParams
from native.stub import BEGIN, StubBackend
from runtime import errors
from runtime.client.request_options import infill_request

pytestmark = pytest.mark.pure

PRE, SUF, MID, REP, SEP = range(1001, 1006)
ALL = InfillTokens(PRE, SUF, MID, REP, SEP)
BARE = InfillTokens(PRE, SUF, MID)
FILES = (("a.py", "one"), ("b.py", "two"))


def tokens(marks: InfillTokens, add_bos: bool = False, **given: Any) -> list[int]:
    backend = StubBackend.load("stub", ModelParams())
    backend.info = replace(backend.info, infill=marks, add_bos=add_bos)
    return infill_tokens(backend, Surroundings(**{"prefix": "x", "suffix": "y"} | given))


def test_prefix_and_suffix_come_before_the_middle() -> None:
    assert tokens(ALL) == [PRE, *b"x", SUF, *b"y", MID]
    assert tokens(ALL, suffix_first=True) == [SUF, *b"y", PRE, *b"x", MID]
    assert tokens(BARE, suffix="") == [PRE, *b"x", SUF, MID]
    assert tokens(BARE, prefix="", add_bos=True) == [BEGIN, PRE, SUF, *b"y", MID]


def test_other_files_come_first_behind_their_names() -> None:
    files = [SEP, *b"a.py\none", SEP, *b"b.py\ntwo"]
    gap = [PRE, *b"x", SUF, *b"y", MID]
    default = [REP, *b"myproject\n", *files, SEP, *b"filename\n", *gap]
    assert tokens(ALL, extra=FILES) == default
    assert tokens(ALL, extra=FILES, add_bos=True) == [BEGIN, *default]
    named = tokens(ALL, extra=FILES, repository="r", file="f.py")
    assert named == [REP, *b"r\n", *files, SEP, *b"f.py\n", *gap]
    assert tokens(ALL, file="f.py") == [REP, *b"myproject\n", SEP, *b"f.py\n", *gap]


def test_without_tokens_for_files_they_are_separated_by_a_line() -> None:
    between = b"\n\n--- snippet ---\n\n"
    gap = [PRE, *b"x", SUF, *b"y", MID]
    wanted = [*between, *b"one", *between, *b"two", *gap]
    assert tokens(BARE, extra=FILES, repository="r", file="f") == wanted


def test_a_model_without_the_tokens_is_refused() -> None:
    backend = StubBackend.load("stub", ModelParams())
    with pytest.raises(UnsupportedRequest, match="prefix, suffix and middle"):
        infill_tokens(backend, Surroundings("x", "y"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{", "cannot read"),
        ("[]", "a prefix and a suffix"),
        ({"prefix": "x"}, "send a suffix"),
        ({"prefix": 1, "suffix": ""}, "send a prefix"),
        ({"prefix": "", "suffix": ""}, "both empty"),
        ({"prefix": "x", "suffix": "", "extra": {}, "file": 1}, "file is no text"),
        ({"prefix": "x", "suffix": "", "extra": [{"name": "a"}]}, "extra file 0"),
        ({"prefix": "x", "suffix": "", "extra": [1]}, "extra file 0"),
        ({"prefix": "x", "suffix": "", "extra": "abc"}, "no list"),
        ({"prefix": "x", "suffix": "", "suffix_first": 1}, "suffix_first"),
        ({"prefix": "x", "suffix": "", "prompt": "x"}, "prompt is unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        infill_from(given if isinstance(given, str) else json.dumps(given))


def test_a_call_becomes_what_the_model_reads() -> None:
    for extra in (dict(FILES), FILES, [list(one) for one in FILES]):
        prepared = infill_request("m", "é", b"y", extra=extra, file="f", max_tokens=3)  # type: ignore[arg-type]
        assert prepared.request.max_tokens == 3
        assert infill_from(prepared.prompt) == Surroundings("é", "y", FILES, file="f")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prefix": 1}, "prefix is 1"),
        ({"suffix": None}, "suffix is None"),
        ({"prefix": "", "suffix": ""}, "both empty"),
        ({"extra": "text"}, "extra is 'text'"),
        ({"extra": ["ab"]}, "extra is 'ab'"),
        ({"extra": {"a": 1}}, r"extra\[a\]"),
        ({"file": 1}, "file is 1"),
        ({"suffix_first": "yes"}, "suffix_first"),
        ({"parse_special": True}, "parse_special is no option"),
        ({"continues": True, "session": "s"}, "continues is no option"),
        ({"max_token": 3}, "max_token"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=words):
        infill_request("m", **({"prefix": "x", "suffix": "y"} | given))
