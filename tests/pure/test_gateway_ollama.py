"""Ollama's API as bytes: what its bodies ask for, and the lines that answer them."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import CacheReport, HitKind, Timings, Usage
from native.backend import Logprobs
from runtime.client.answers import Embeddings
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)
from runtime.gateway.facts import ModelFacts
from runtime.gateway.wire import ollama_bodies as bodies
from runtime.gateway.wire import ollama_embeddings as embeddings
from runtime.gateway.wire import ollama_models as models
from runtime.gateway.wire.errors import error_body, status_of
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.ollama import (
    Form,
    OllamaAnswer,
    command_json,
    read_chat,
    read_generate,
)
from runtime.gateway.wire.wanted import Head, Wanted

HEAD = Head(
    id="0" * 32,
    created=1_796_000_000,
    model="demo",
    pieces={1: b"He", 2: "llo é".encode(), 3: b"\xf0\x9f"},
    explains=False,
)
DEFAULTS = {"temperature": 0.8, "top_k": 40.0}
ASKED: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
START = '{"model":"demo","created_at":"2026-11-30T00:53:20Z",'
END = (
    '"done":true,"done_reason":"stop","total_duration":16500000,"load_duration":4500000,'
    '"prompt_eval_count":11,"prompt_eval_cached_count":3,"prompt_eval_duration":2000000,'
    '"eval_count":2,"eval_duration":10000000'
)


def chat_of(body: dict[str, Any]) -> Wanted:
    wanted, _ = read_chat(json.dumps(body).encode(), DEFAULTS)
    assert wanted is not None
    return wanted


def generate_of(body: dict[str, Any]) -> Wanted:
    wanted, _ = read_generate(json.dumps(body).encode(), DEFAULTS)
    assert wanted is not None
    return wanted


def answer_of(form: Form = "chat", head: Head = HEAD, **asked: Any) -> OllamaAnswer:
    if form == "chat":
        wanted, body = read_chat(json.dumps({**ASKED, **asked}).encode(), {})
    else:
        given = {"model": "demo", "prompt": "Hi", **asked}
        wanted, body = read_generate(json.dumps(given).encode(), {})
    assert wanted is not None
    return OllamaAnswer(head, body, wanted, form)


def done_of(text: str = "", **more: Any) -> Completion:
    facts: dict[str, Any] = {
        "tokens": (1, 2),
        "finish_reason": "stop",
        "finish_key": None,
        "stop_sequence": None,
        "usage": Usage(11, 3, 2),
        "cache": CacheReport(HitKind.PARTIAL, "ram", 2.0, None, 0.5),
        "timings": Timings(2.0, 5.0, 2.0, 10.0, 100.0),
    }
    return Completion(text=text, **(facts | more))


def span_of(kind: str, text: str, *, is_closed: bool = True) -> SpanEvent:
    return SpanEvent(kind, text.encode(), text.encode(), (), is_closed, b"")


def lines_of(answer: OllamaAnswer, events: Sequence[Event]) -> list[Any]:
    raw = b"".join([answer.begin(), *(answer.event(0, one) for one in events), answer.end()])
    assert raw.endswith(b"\n")
    # A client that reads text ends lines at more characters than a line feed.
    return [json.loads(one) for one in raw.decode().splitlines()]


# ── lines ───────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_is_one_object_a_line() -> None:
    answer = answer_of()
    events = [
        PrefillEvent(11, 11, 3),
        TokenEvent(0, (1,), "I ", kind="thinking"),
        TokenEvent(1, (2,), ""),
        TokenEvent(2, (2,), "Hé"),
        CompletionEvent(done_of("Hé")),
    ]
    assert [answer.event(0, one).decode() for one in events] == [
        "",
        START + '"message":{"role":"assistant","content":"","thinking":"I "},"done":false}\n',
        "",
        START + '"message":{"role":"assistant","content":"Hé"},"done":false}\n',
        START + '"message":{"role":"assistant","content":""},' + END + "}\n",
    ]
    assert answer.begin() == answer.end() == b""


def test_a_generated_text_is_one_object_a_line() -> None:
    answer = answer_of("generate")
    events = [
        TokenEvent(0, (1,), "I ", kind="thinking"),
        TokenEvent(1, (2,), "Hi"),
        CompletionEvent(done_of("Hi")),
    ]
    assert [answer.event(0, one).decode() for one in events] == [
        START + '"response":"","thinking":"I ","done":false}\n',
        START + '"response":"Hi","done":false}\n',
        START + '"response":"",' + END + "}\n",
    ]


def test_a_whole_answer_has_what_the_lines_have() -> None:
    done = done_of("Hi", spans=(span_of("thinking", "I "),))
    message = '"message":{"role":"assistant","content":"Hi","thinking":"I "},'
    assert answer_of(stream=False).whole([done]).decode() == START + message + END + "}"
    response = '"response":"Hi","thinking":"I ",'
    generated = answer_of("generate", stream=False).whole([done]).decode()
    assert generated == START + response + END + "}"


def test_a_silent_stream_sends_an_object_without_text() -> None:
    expected = START + '"message":{"role":"assistant","content":""},"done":false}\n'
    assert answer_of().keepalive().decode() == expected
    assert answer_of("generate").keepalive().decode() == START + '"response":"","done":false}\n'


def test_a_line_breaks_only_at_its_end_for_whatever_splits_it() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1eh\r\n"
    raw = answer_of().event(0, TokenEvent(0, (1,), text)).decode()
    (line,) = raw.splitlines()
    assert json.loads(line)["message"]["content"] == text


def test_a_call_comes_whole_in_one_line_with_its_arguments_as_an_object() -> None:
    answer = answer_of(tools=[{"type": "function", "function": {"name": "f"}}])
    pieces = ['{\n "a": 1', "2345678901234567890", '.50,\n "b": "x\\ny"}']
    events: list[Event] = [ToolCallEvent(0, "call_1", "f", pieces[0])]
    events += [ToolCallEvent(0, "", "", one, one is pieces[-1]) for one in pieces[1:]]
    shown = [answer.event(0, one) for one in events]
    call = (
        '{"id":"call_1","function":{"index":0,"name":"f",'
        '"arguments":{"a":12345678901234567890.50,"b":"x\\ny"}}}'
    )
    message = '"message":{"role":"assistant","content":"","tool_calls":[' + call + "]},"
    assert shown[:2] == [b"", b""]
    assert shown[2].decode() == START + message + '"done":false}\n'
    done = done_of(
        calls=(ToolCallEvent(0, "call_1", "f", "".join(pieces)),),
        spans=(span_of("tool_call", "<f>"),),
    )
    assert answer.event(0, CompletionEvent(done)).count(b"\n") == 1
    assert answer_of().whole([done]).decode() == START + message + END + "}"


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", ""])
def test_what_is_no_call_is_shown_as_text(arguments: str) -> None:
    done = done_of(
        "Well. ",
        calls=(ToolCallEvent(0, "call_1", "f", arguments),),
        spans=(span_of("tool_call", "f(a", is_closed=arguments == "[1]"),),
    )
    events = [
        TokenEvent(0, (1,), "Well. "),
        ToolCallEvent(0, "call_1", "f", arguments, is_end=True),
        CompletionEvent(done),
    ]
    lines = lines_of(answer_of(), events)
    assert [one["message"]["content"] for one in lines] == ["Well. ", "f(a", ""]
    assert not any("tool_calls" in one["message"] for one in lines)
    whole = json.loads(answer_of().whole([done]))
    assert whole["message"] == {"role": "assistant", "content": "Well. f(a"}


def test_tokens_show_their_log_probabilities() -> None:
    answer = answer_of(logprobs=True, top_logprobs=1)
    event = TokenEvent(0, (1, 3), "He", (Logprobs(-0.5, ((2, -1.0),)), None))
    (line,) = lines_of(answer, [event])
    assert line["message"]["content"] == "He"
    assert line["logprobs"] == [
        {
            "id": 1,
            "token": "He",
            "bytes": [72, 101],
            "logprob": -0.5,
            "top_logprobs": [
                {"id": 2, "token": "llo é", "bytes": list("llo é".encode()), "logprob": -1.0}
            ],
        },
        {"id": 3, "token": "\ufffd", "bytes": [240, 159], "logprob": 0.0, "top_logprobs": []},
    ]
    done = done_of("He", tokens=event.tokens, logprobs=event.logprobs)
    assert json.loads(answer.whole([done]))["logprobs"] == line["logprobs"]
    # Of a token in a call, too, whose text is shown later.
    hidden = TokenEvent(2, (1,), "<f>", (Logprobs(-0.5, ()),), "tool_call")
    (line,) = lines_of(answer, [hidden])
    assert (line["message"]["content"], len(line["logprobs"])) == ("", 1)


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("stop", "stop"), ("length", "length"), ("prefilled", "length"), ("cancelled", "stop")],
)
def test_the_last_line_names_why_it_is_the_last(reason: str, shown: str) -> None:
    (line,) = lines_of(answer_of(), [CompletionEvent(done_of(finish_reason=reason))])
    assert (line["done"], line["done_reason"]) == (True, shown)


def test_durations_are_never_zero() -> None:
    nothing = Timings(0.0, 0.0, 0.0, 0.0, 0.0)
    report = CacheReport(HitKind.EXACT, "live", 0.0, None)
    (line,) = lines_of(answer_of(), [CompletionEvent(done_of(timings=nothing, cache=report))])
    assert {value for name, value in line.items() if name.endswith("_duration")} == {1}


def test_the_last_line_explains_what_was_reused() -> None:
    head = Head(id="0", created=1, model="demo")
    (line,) = lines_of(answer_of(head=head), [CompletionEvent(done_of())])
    assert (line["cache"]["hit"], line["cache"]["reused_tokens"]) == ("partial", 3)


def test_the_name_of_a_model_is_as_the_client_wrote_it_if_it_answers() -> None:
    assert bodies.shown_name("demo", "demo") == "demo"
    assert bodies.shown_name("demo:latest", "demo") == "demo:latest"
    assert bodies.shown_name("other", "demo") == bodies.shown_name(None, "demo") == "demo:latest"
    assert bodies.full_name("qwen3:4b") == "qwen3:4b"
    assert bodies.full_name("host:5000/x") == "host:5000/x:latest"
    assert bodies.model_id("demo:latest") == bodies.model_id("demo") == "demo"


def test_a_command_is_answered_by_one_object() -> None:
    assert command_json("generate", "demo", HEAD.created, "unload").decode() == (
        START + '"response":"","done":true,"done_reason":"unload"}'
    )
    assert command_json("chat", "demo", HEAD.created, "load").decode() == (
        START + '"message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}'
    )


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def replies(draw: st.DrawFn) -> tuple[list[Event], Completion]:
    """The events of a reply with thinking, text, and calls of which some are none."""
    events: list[Event] = []
    spans: list[SpanEvent] = []
    calls: list[ToolCallEvent] = []
    text = ""
    for kind in draw(st.lists(st.sampled_from(["text", "thinking", "tool_call"]), max_size=6)):
        piece = draw(ANY_TEXT)
        if kind == "text":
            text += piece
            events.append(TokenEvent(0, (1,), piece))
        elif kind == "thinking":
            events.append(TokenEvent(0, (1,), piece, kind="thinking"))
            spans.append(span_of(kind, piece))
        else:
            index, is_closed = len(calls), draw(st.booleans())
            arguments = json.dumps({"a": piece}, ensure_ascii=False, indent=draw(st.integers(0, 2)))
            shown = arguments if is_closed else arguments[:-1]
            at = draw(st.integers(0, len(shown)))
            events.append(ToolCallEvent(index, f"c{index}", "f", shown[:at]))
            events.append(ToolCallEvent(index, "", "", shown[at:], is_closed))
            calls.append(ToolCallEvent(index, f"c{index}", "f", shown, is_closed))
            spans.append(span_of(kind, shown, is_closed=is_closed))
            events.append(spans[-1])
    done = done_of(text, spans=tuple(spans), calls=tuple(calls))
    return [*events, CompletionEvent(done)], done


@given(replies(), st.sampled_from(["chat", "generate"]))
def test_lines_joined_are_the_whole_answer(
    reply: tuple[list[Event], Completion], form: Form
) -> None:
    events, done = reply
    lines = lines_of(answer_of(form), events)
    whole = json.loads(answer_of(form).whole([done]))
    assert [one["done"] for one in lines] == [False] * (len(lines) - 1) + [True]

    def parts(of: dict[str, Any]) -> tuple[str, str, list[Any]]:
        message = of["message"] if form == "chat" else of
        text = message["content"] if form == "chat" else message["response"]
        return text, message.get("thinking", ""), message.get("tool_calls", [])

    texts, thoughts, calls = zip(*map(parts, lines), strict=True)
    joined = ("".join(texts), "".join(thoughts), [call for some in calls for call in some])
    assert joined == parts(whole)
    shown = ("message", "response", "thinking", "tool_calls")
    facts = {name: value for name, value in whole.items() if name not in shown}
    assert facts.items() <= lines[-1].items()


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────

NULLS = (
    "numa", "num_ctx", "num_batch", "num_predict", "num_keep", "seed", "top_k", "top_p", "tfs_z",
    "typical_p", "min_p", "repeat_last_n", "temperature", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "stop",
)  # fmt: skip


def test_a_chat_streams_unless_it_is_declined() -> None:
    assert chat_of(ASKED).is_stream
    assert chat_of({**ASKED, "stream": None}).is_stream
    assert not chat_of({**ASKED, "stream": False}).is_stream


def test_a_body_full_of_nulls_is_one_without_them() -> None:
    body = {
        **ASKED, "options": dict.fromkeys(NULLS), "tools": [], "think": None, "format": "",
        "keep_alive": None, "logprobs": None, "top_logprobs": None,
    }  # fmt: skip
    assert chat_of(body) == chat_of(ASKED)
    assert chat_of(ASKED).options == {
        "temperature": 0.8, "top_k": 40, "seed": -1, "max_tokens": None, "thinking": "auto",
    }  # fmt: skip


def test_options_have_the_names_of_the_runtime() -> None:
    options = {
        "temperature": 0, "top_k": 20.0, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.7, "seed": -7,
        "repeat_penalty": 1.1, "repeat_last_n": 33, "presence_penalty": 1.5,
        "frequency_penalty": 0.5, "num_predict": 100, "stop": ["\n", ""], "num_gpu": 99,
        "penalize_newline": True, "made_up": {},
    }  # fmt: skip
    assert chat_of({**ASKED, "options": options}).options == {
        "temperature": 0, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.7,
        "seed": (1 << 64) - 7, "repeat_penalty": 1.1, "repeat_last_n": 33, "presence_penalty": 1.5,
        "frequency_penalty": 0.5, "max_tokens": 100, "stop": ["\n"], "thinking": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(("given_n", "most"), [(-1, None), (-2, None), (0, None), (7, 7)])
def test_a_length_below_one_is_no_limit(given_n: int, most: int | None) -> None:
    assert chat_of({**ASKED, "options": {"num_predict": given_n}}).options["max_tokens"] == most


def test_mirostat_replaces_the_defaults_only_where_it_is_on() -> None:
    off = chat_of({**ASKED, "options": {"mirostat": 0, "mirostat_tau": 3, "mirostat_eta": 0.1}})
    assert off == chat_of(ASKED)
    on = chat_of({**ASKED, "options": {"mirostat": 2, "mirostat_tau": 3}}).options
    assert (on["mirostat"], on["mirostat_tau"], "top_k" in on) == (2, 3, False)


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"format": {"type": "object"}}, {"json_schema": {"type": "object"}}),
        ({"think": True}, {"enable_thinking": True}),
        ({"think": False}, {"enable_thinking": False}),
        ({"think": "low"}, {"reasoning_effort": "low"}),
        ({"logprobs": True}, {"n_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"n_logprobs": 20}),
        ({"top_logprobs": 5}, {}),
        ({"tools": [{"function": {"name": "f"}}]}, {"tools": [{"function": {"name": "f"}}]}),
    ],
)
def test_fields_become_keywords(field: dict[str, Any], keywords: dict[str, Any]) -> None:
    wanted = chat_of({**ASKED, **field})
    assert wanted.options == {**chat_of(ASKED).options, **keywords}
    assert wanted.needs_pieces == ("n_logprobs" in keywords)


def test_messages_lose_what_no_template_reads() -> None:
    function = {"name": "f", "arguments": {"a": 1}}
    messages = [
        {"role": "user", "content": "Hi", "images": []},
        {
            "role": "assistant",
            "thinking": "Hm",
            "tool_calls": [{"function": {"index": 0, **function}}],
        },
        {"role": "tool", "content": "1", "tool_name": "f", "tool_calls": None, "images": None},
    ]
    (found,) = chat_of({**ASKED, "messages": messages}).inputs
    assert found == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm",
            "tool_calls": [{"function": function}],
        },
        {"role": "tool", "content": "1", "tool_name": "f"},
    ]


def test_a_last_message_of_the_assistant_is_continued() -> None:
    begun = [*ASKED["messages"], {"role": "assistant", "content": "Well"}]
    assert chat_of({**ASKED, "messages": begun}).options["continue_final_message"] is True
    empty = [*ASKED["messages"], {"role": "assistant", "content": ""}]
    assert "continue_final_message" not in chat_of({**ASKED, "messages": empty}).options


def test_a_prompt_is_a_conversation_a_text_or_the_parts_around_a_gap() -> None:
    chat = generate_of({"prompt": "Hi", "system": "Be brief", "think": True})
    assert (chat.kind, chat.options["enable_thinking"]) == ("chat", True)
    assert chat.inputs == (
        [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
    )
    raw = generate_of({"prompt": "Hi", "raw": True, "think": True})
    assert (raw.kind, raw.inputs) == ("prompt", ("Hi",))
    assert not {"thinking", "enable_thinking"} & set(raw.options)
    infill = generate_of({"prompt": "a", "suffix": "b"})
    assert (infill.kind, infill.inputs) == ("infill", ({"prefix": "a", "suffix": "b"},))


def test_without_a_prompt_no_reply_is_asked_for() -> None:
    assert read_chat(b'{"model": "demo", "messages": []}', {})[0] is None
    assert read_chat(b'{"model": "demo"}', {})[0] is None
    assert read_generate(b'{"model": "demo", "prompt": "", "keep_alive": 0}', {})[0] is None


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"options": {"top_k": "many"}}, "options.top_k"),
        ({"options": {"seed": True}}, "options.seed"),
        ({"options": {"stop": [1]}}, "options.stop"),
        ({"format": "yaml"}, "format"),
        ({"think": "a little"}, "think"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"keep_alive": "5 minutes"}, "keep_alive"),
        ({"messages": [{"role": "user", "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": "Hi"}, "messages"),
    ],
)
def test_a_wrong_field_of_a_chat_is_named(field: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        read_chat(json.dumps({**ASKED, **field}).encode(), {})
    assert (refused.value.failure.param, refused.value.failure.status) == (param, 400)


@pytest.mark.parametrize("name", ["template", "context", "images", "raw"])
def test_a_wrong_field_of_a_prompt_is_named(name: str) -> None:
    fields = {"template": "{{ .Prompt }}", "context": [1], "images": ["aGk="], "raw": True}
    body = {"prompt": "Hi", name: fields[name], **({"system": "x"} if name == "raw" else {})}
    with pytest.raises(Refused) as refused:
        generate_of(body)
    assert (refused.value.failure.param, refused.value.failure.status) == (name, 400)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0), ("1h30m", 5400.0), ("300ms", 0.3), ("0", 0.0), ("0s", 0.0), (0, 0.0),
        (-1, math.inf), ("-1m", math.inf), ("-1", math.inf), (90, 90.0), ("1.5s", 1.5), (2.5, 2.5),
        ("+.5h", 1800.0), (None, None),
    ],
)  # fmt: skip
def test_durations_are_read_as_go_writes_them(text: Any, seconds: float | None) -> None:
    assert bodies.keep_alive_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5x", "5 m", "5m3", "1e3s", "-", "٣s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="invalid duration"):
        bodies.keep_alive_s(text)


# ── embeddings ──────────────────────────────────────────────────────────────────────────────────


def test_vectors_are_shown_in_the_present_and_the_older_form() -> None:
    found = Embeddings((array("f", [0.5, 0.5]), array("f", [1.0, 0.0])), (1, 1), 2, 7)
    asked = embeddings.read_embed(b'{"input": ["a", "b"]}')
    assert asked.texts == ["a", "b"]
    assert json.loads(embeddings.embed_json(asked, "demo", found, 0.25)) == {
        "model": "demo",
        "embeddings": [[0.5, 0.5], [1.0, 0.0]],
        "total_duration": 250_000_000,
        "load_duration": 1,
        "prompt_eval_count": 7,
    }
    assert json.loads(embeddings.old_embedding_json(found)) == {"embedding": [0.5, 0.5]}
    assert json.loads(embeddings.old_embedding_json(None)) == {"embedding": []}


def test_no_text_is_no_vector_and_an_empty_one_in_a_list_is_refused() -> None:
    assert embeddings.read_embed(b'{"input": ""}').texts == []
    assert embeddings.read_embed(b'{"input": []}').texts == []
    assert embeddings.read_embed(b'{"input": "a"}').texts == ["a"]
    with pytest.raises(Refused, match="empty"):
        embeddings.read_embed(b'{"input": ["a", ""]}')
    with pytest.raises(Refused, match="dimensions"):
        embeddings.read_embed(b'{"input": "a", "dimensions": -1}')


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.none() | st.integers(0, 12))
def test_a_shortened_vector_has_unit_length(vector: list[float], dimensions: int | None) -> None:
    found = embeddings.shortened(vector, dimensions)
    if not dimensions or dimensions >= len(vector):
        assert found == vector
    else:
        assert len(found) == dimensions
        length = math.sqrt(math.fsum(one * one for one in found))
        assert length == pytest.approx(1.0) or not any(vector[:dimensions]) or length < 1


@given(st.integers(0, 20), st.integers(0, 2), st.integers(0, 2), st.integers(5, 30))
def test_a_text_that_is_too_long_keeps_its_ends(n: int, before: int, after: int, most: int) -> None:
    plain = list(range(100, 100 + n))
    tokens = [1] * before + plain + [2] * after
    found = embeddings.cut(tokens, plain, most)
    assert len(found) == min(len(tokens), most)
    assert found[:before] == [1] * before
    assert found[len(found) - after :] == [2] * after
    assert found[before : len(found) - after] == plain[: len(found) - after - before]


# ── models ──────────────────────────────────────────────────────────────────────────────────────

DETAILS: dict[str, Any] = {
    "architecture": "qwen3", "description": "qwen3 8B Q4_K - Medium", "n_params": 8_190_735_360,
    "model_bytes": 5_000, "n_ctx": 4096, "n_ctx_train": 40_960, "n_embd": 4096, "n_layer": 36,
    "n_head": 32, "n_head_kv": 8, "n_vocab": 151_936, "fingerprint": "ab" * 32,
    "can_generate": True, "can_infill": True,
    "chat_template": "{% if tools %}…{% endif %}{% if enable_thinking %}<think>{% endif %}",
    "memory_taken": {"host_model": 7, "device_model": 10, "device_context": 20},
}  # fmt: skip
QWEN = ModelFacts("mine", HEAD.created, DETAILS)
SHOWN = {
    "parent_model": "", "format": "gguf", "family": "qwen3", "families": ["qwen3"],
    "parameter_size": "8.2B", "quantization_level": "Q4_K_M",
}  # fmt: skip


def test_models_are_listed_with_a_tag() -> None:
    listed = {
        "name": "mine:latest", "model": "mine:latest", "size": 5000, "digest": "ab" * 32,
        "details": SHOWN,
    }  # fmt: skip
    assert models.tags_object([QWEN]) == {
        "models": [{**listed, "modified_at": "2026-11-30T00:53:20Z"}]
    }
    runs = {"expires_at": models.FOREVER, "size_vram": 30, "context_length": 4096}
    starting = ModelFacts("other", 1, {})
    assert models.ps_object([QWEN, starting]) == {"models": [{**listed, **runs}]}
    (unknown,) = models.tags_object([starting])["models"]
    assert (len(unknown["digest"]), unknown["size"]) == (64, 0)
    assert unknown["details"]["family"] == "unknown"


def test_a_model_is_described() -> None:
    found = models.show_object(QWEN)
    assert found["capabilities"] == ["completion", "tools", "insert", "thinking"]
    assert found["model_info"] == {
        "general.architecture": "qwen3", "general.basename": "mine",
        "general.parameter_count": 8_190_735_360, "qwen3.context_length": 4096,
        "qwen3.embedding_length": 4096, "qwen3.block_count": 36, "qwen3.attention.head_count": 32,
        "qwen3.attention.head_count_kv": 8, "qwen3.vocab_size": 151_936,
    }  # fmt: skip
    assert (found["details"], found["template"]) == (SHOWN, DETAILS["chat_template"])
    assert found["parameters"].split() == ["num_ctx", "4096"]


def test_a_model_that_only_embeds_is_described() -> None:
    found = models.show_object(
        ModelFacts("bert", 1, {"can_generate": False, "n_ctx": 0, "n_ctx_train": 512})
    )
    assert found["capabilities"] == ["embedding"]
    assert found["model_info"]["unknown.context_length"] == 512


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ messages }}", ["completion"]),
        ("{% for t in tools %}", ["completion", "tools"]),
        ("{{ tools_text }}{{ message.reasoning_content }}", ["completion", "thinking"]),
        ("", ["completion"]),
    ],
)
def test_a_template_shows_what_a_model_can(template: str, found: list[str]) -> None:
    facts = ModelFacts("m", 1, {"chat_template": template})
    assert models.capabilities(facts) == found


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ("llama 7B Q4_K - Medium", "Q4_K_M"), ("llama 7B Q3_K - Large", "Q3_K_L"),
        ("llama 7B Q8_0", "Q8_0"), ("llama 1B all F32", "F32"), ("llama 1B F16", "F16"),
        ("gpt-oss 20B MXFP4 MoE", "MXFP4"), ("qwen2 1.5B IQ4_XS - 4.25 bpw", "IQ4_XS"),
        ("qwen2 1.5B BF16", "BF16"), ("something else", "unknown"),
    ],
)  # fmt: skip
def test_the_kind_of_weights_has_ollamas_name(description: str, kind: str) -> None:
    assert models.quantization(description) == kind


@pytest.mark.parametrize(
    ("n", "text"),
    [(7_000_000_000, "7.0B"), (494_032_768, "494.03M"), (260_032, "260K"), (12, "12"), (0, "0")],
)
def test_numbers_of_parameters_are_short(n: int, text: str) -> None:
    assert models.count_text(n) == text


def test_pulling_what_is_there_succeeds_at_once() -> None:
    lines = [json.loads(one) for one in models.pull_lines(QWEN, is_stream=True).splitlines()]
    assert [one["status"] for one in lines] == [
        "pulling manifest", "pulling abababababab", "verifying sha256 digest", "writing manifest",
        "success",
    ]  # fmt: skip
    assert lines[1]["total"] == lines[1]["completed"] == 5000
    assert models.pull_lines(QWEN, is_stream=False) == b'{"status":"success"}'


# ── failures ────────────────────────────────────────────────────────────────────────────────────


def test_failures_are_in_ollamas_words() -> None:
    busy = Failure(Fault.OVERLOADED, "256 requests run here")
    assert status_of(busy, "ollama") == 503
    assert json.loads(error_body(busy, "ollama")) == {
        "error": "server busy, please try again.  maximum pending requests exceeded"
    }
    other = Failure(Fault.NOT_DONE, "this node makes no models")
    assert status_of(other, "ollama") == 501
    assert answer_of().failed(other) == b'{"error":"this node makes no models"}\n'
