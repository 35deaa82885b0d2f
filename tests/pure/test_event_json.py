"""Events and completions that were JSON on their way are what they were."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from actors.messages.completion import CacheReport, Divergence, HitKind
from actors.messages.exact import Exact
from cache.answers import Miss, MissReason
from native.backend import Logprobs
from runtime.client.event_json import NAMES, event_json, event_of
from runtime.client.results import (
    CompletionEvent,
    Event,
    PrefillEvent,
    TokenEvent,
    ToolCallEvent,
)
from tests.support.completions import call_span, completion, thought

pytestmark = pytest.mark.pure

LOGPROBS = (Logprobs(-0.5, ((3, -0.5), (4, float("-inf")))), None)
CALL = ToolCallEvent(0, "abc123def", "weather", '{"in": "Ulm"}', is_end=True)
REPORT = CacheReport(
    HitKind.PARTIAL, "ram", 1.5, Miss(MissReason.DIVERGES, 64), 0.25, "note", Exact.PREFIX,
    Divergence("tools[2]", None, 80, 20, None, 7),
)  # fmt: skip
WHOLE = replace(
    completion("é", spans=(thought("hm", b"\xff\x00"), call_span("{}"))),
    calls=(CALL,), cache=REPORT, logprobs=LOGPROBS, limit="context", note="why",
)  # fmt: skip


@pytest.mark.parametrize(
    "event",
    [
        PrefillEvent(3, 20, 1),
        TokenEvent(-2, (1, 2), "é\n", LOGPROBS, "prompt"),
        TokenEvent(0, (), "x", (), "thinking"),
        CALL,
        thought("hm", b"\xff\x00"),
        CompletionEvent(completion("plain")),
        CompletionEvent(WHOLE),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    plain = json.loads(event_json(5, event))
    assert plain["reply"] == 5
    plain["later"] = "a field of a newer gateway"
    assert event_of(NAMES[type(event)].decode(), plain) == event


def test_an_unknown_event_is_none_and_a_wrong_one_raises() -> None:
    assert event_of("weather", {}) is None
    for name in ("token", "completion", "span", "prefill"):
        with pytest.raises((KeyError, TypeError, ValueError)):
            event_of(name, {"completion": {}})
