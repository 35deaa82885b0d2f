"""Our own API: which explanations are kept, for whom; bodies and queries that are refused."""

from __future__ import annotations

import json

import pytest

from runtime.gateway.explained import Explained
from runtime.gateway.keys import Key
from runtime.gateway.wire import own
from runtime.gateway.wire.failure import Refused
from runtime.gateway.wire.wanted import Head, Wanted
from tests.support.completions import completion

pytestmark = pytest.mark.pure

WANTED = Wanted(model="", kind="prompt", inputs=("x",), remarks=("said",), rules=("sort-tools",))
ALICE, BOB = Key("alice"), Key("bob")


def head(name: str, *, explains: bool = True) -> Head:
    return Head(id=name, created=7, model="demo", explains=explains)


def test_an_explanation_is_found_by_every_name_of_its_key() -> None:
    kept = Explained()
    kept.note(ALICE, "req_1", head("a1"), WANTED, {0: completion("x"), 1: completion("y")})
    found = kept.find(ALICE, "req_1")
    assert found is not None
    for name in ("a1", "chatcmpl-a1", "msg_a1", "resp_a1"):
        assert kept.find(ALICE, name) == found
    assert kept.find(BOB, "req_1") is kept.find(BOB, "a1") is kept.find(ALICE, "a2") is None
    plain = json.loads(found)
    assert [one["index"] for one in plain["replies"]] == [0, 1]
    assert plain["replies"][0]["cache"]["rules"] == ["sort-tools"]
    assert "said" in plain["replies"][0]["cache"]["note"]


def test_nothing_is_kept_of_what_is_not_explained_or_did_not_end() -> None:
    kept = Explained()
    kept.note(ALICE, "req_1", head("a1", explains=False), WANTED, {0: completion("x")})
    kept.note(ALICE, "req_2", head("a2"), WANTED, {})
    assert len(kept) == 0


def test_the_oldest_go_and_leave_nothing() -> None:
    kept = Explained(max_explained=3)
    for number in range(10):
        kept.note(ALICE, f"req_{number}", head(f"a{number}"), WANTED, {0: completion("x")})
    assert len(kept) == len(kept._answers) == 3
    assert kept.find(ALICE, "req_6") is None
    assert kept.find(ALICE, "req_9") is not None
    size = kept._n_bytes // 3
    small = Explained(max_bytes=size * 2 + 10)
    for number in range(10):
        small.note(ALICE, f"req_{number}", head(f"a{number}"), WANTED, {0: completion("x")})
    assert len(small) == 2
    assert small._n_bytes == sum(len(one.body) for one in small._kept.values())
    small.note(ALICE, "req_9", head("a9"), WANTED, {0: completion("x")})
    assert len(small) == 2, "the same answer is kept once"


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"cursor": "-1"}, {"cursor": "9" * 30},
     {"older_than": "-1"}, {"newer_than": "nan"}, {"older_than": "inf"}, {"limit": "\u0663"}],
)  # fmt: skip
def test_wrong_queries_are_refused_by_name(query: dict[str, str]) -> None:
    with pytest.raises(Refused) as caught:
        own.filter_of(query)
    assert caught.value.failure.param == next(iter(query))


def test_a_query_is_a_filter() -> None:
    given = {"model": "demo", "tier": "", "older_than": "90.5", "limit": "7", "cursor": "3"}
    found = own.filter_of(given)
    assert (found.model, found.tier, found.older_than, found.newer_than) == (
        "demo", None, 90.5, None,
    )  # fmt: skip
    assert (found.limit, found.cursor) == (7, 3)
    assert own.filter_of({}).limit == own.ROWS_SHOWN


@pytest.mark.parametrize("body", [b"{}", b'{"model": ""}', b'{"all": false}', b'{"all": 1}', b""])
def test_a_wipe_that_names_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        own.read_wipe(body)


def test_a_wipe_of_all_is_said() -> None:
    assert own.read_wipe(b'{"all": true}') is None
    assert own.read_wipe(b'{"model": "demo", "all": null}') == "demo"
