"""Replies of our own API: what bodies may ask for, and how a failure names its kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import errors
from runtime.client.options import ChatOptions
from runtime.client.results import CompletionEvent, QueuedEvent, TokenEvent
from runtime.gateway.wire import own_replies
from runtime.gateway.wire.errors import error_body
from runtime.gateway.wire.failure import Failure, Fault, Refused, failure_of
from runtime.gateway.wire.own_replies import EventsAnswer, read_chat, read_complete, read_infill
from runtime.gateway.wire.own_texts import read_embed, read_rank, read_tokenize
from runtime.gateway.wire.wanted import Head, Wanted
from tests.support.completions import completion
from tests.support.gateways import frames_of

pytestmark = pytest.mark.pure

MESSAGES = [{"role": "user", "content": "Hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "demo", **fields}).encode()


def test_options_are_those_of_the_runtime_with_its_own_defaults() -> None:
    wanted = read_complete(
        body(prompts=["a", [1, 2]], n=3, options={"top_k": 4, "logit_bias": [["x", False], [5, 1]]})
    )
    assert wanted.inputs == ("a", [1, 2])
    assert (wanted.n, wanted.n_replies, wanted.fails_late) == (3, 6, True)
    assert wanted.options == {
        "seed": 0, "parse_special": False, "top_k": 4, "logit_bias": [("x", False), (5, 1)],
    }  # fmt: skip
    assert read_complete(body(prompts=["a"], options={"seed": -1, "stop": None})).options == {
        "seed": -1, "parse_special": False,
    }  # fmt: skip
    known = own_replies._OPTIONS | own_replies._OF_CHATS
    left_out = set(ChatOptions.__dataclass_fields__) - known
    assert left_out == {
        "salt", "sampling", "queue_events", "load_events", "resumed_events", "drop_live",
        "traceparent",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("read", "fields", "param"),
    [
        (read_complete, {"prompts": []}, "prompts"),
        (read_complete, {"prompts": [["x"]]}, "prompts"),
        (read_complete, {"prompts": ["a"], "n": 0}, "n"),
        (read_complete, {"prompts": ["a"], "n": 129}, "n"),
        (read_complete, {"prompts": ["a"], "options": {"salt": "x"}}, "options.salt"),
        (read_complete, {"prompts": ["a"], "options": {"tools": []}}, "options.tools"),
        (read_infill, {"prefix": "a"}, "suffix"),
        (read_tokenize, {}, "text"),
        (read_tokenize, {"text": "a", "tokens": [1]}, "text"),
        (read_embed, {"inputs": []}, "inputs"),
        (read_embed, {"inputs": [[True]]}, "inputs"),
        (read_rank, {"query": "a", "documents": []}, "documents"),
    ],
)
def test_a_body_that_is_wrong_is_refused(read: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        read(body(**fields))
    assert refused.value.failure.param == param


def test_a_chat_template_is_for_administrators() -> None:
    asked = body(messages=MESSAGES, options={"chat_template": "{{ messages }}"})
    assert read_chat(asked, is_admin=True).options["chat_template"] == "{{ messages }}"
    with pytest.raises(Refused) as refused:
        read_chat(asked, is_admin=False)
    assert refused.value.failure.fault is Fault.FORBIDDEN


def test_a_stream_has_every_event_that_is_shown_and_one_end() -> None:
    wanted = Wanted(model="demo", kind="prompt", inputs=("a",))
    answer = EventsAnswer(Head(id="a1", created=7, model="demo"), wanted)
    stream = b"".join(
        [
            answer.begin(),
            answer.event(0, TokenEvent(0, (5,), "x")),
            answer.event(0, QueuedEvent(3)),
            answer.event(0, CompletionEvent(completion("x"))),
            answer.end(),
        ]
    )
    names = [name for name, _ in frames_of(stream)]
    assert names == ["begin", "token", "completion", "end"]
    whole = json.loads(answer.whole([completion("x")]))
    assert (whole["id"], whole["replies"][0]["text"]) == ("a1", "x")


def caused(cause: Exception) -> Exception:
    error = errors.InvalidRequest("outer")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (errors.ModelDown("m", "gone"), "ModelDown", "gone"),
        (errors.PromptTooLong("too long here", 300, 256), "PromptTooLong", "too long here"),
        (caused(errors.ModelLoadFailed("m", "NotAGguf", "no")), "ModelLoadFailed", "no"),
        (caused(errors.ConfigError("n_ctx", "no")), "ConfigError", "n_ctx: no"),
        (caused(ValueError("x")), "InvalidRequest", "outer"),
        (KeyError("x"), None, "KeyError in the gateway; the log has the details"),
    ],
)
def test_an_error_has_the_kind_and_the_text_of_the_runtime(
    error: Exception, kind: str | None, text: str
) -> None:
    found = json.loads(error_body(failure_of(error), "own"))["error"]
    assert (found["kind"], found["message"]) == (kind, text)
    other = json.loads(error_body(failure_of(error), "openai"))["error"]
    assert "kind" not in other
    assert Failure(Fault.INVALID, "x", kind="a") == Failure(Fault.INVALID, "x")
