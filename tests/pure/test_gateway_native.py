"""llama-server's own API: bodies in, frames and objects out."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import CacheReport, Exact, HitKind, Timings, Usage
from native.backend import Logprobs
from runtime.client.answers import Embeddings, Ranked, Ranking
from runtime.client.results import Completion, CompletionEvent, Event, PrefillEvent, TokenEvent
from runtime.gateway.facts import ModelFacts
from runtime.gateway.guard import check_origin
from runtime.gateway.wire import native_bodies, native_state, report
from runtime.gateway.wire.errors import api_of, error_body
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.metrics import Counts, metrics_text
from runtime.gateway.wire.native import NativeAnswer, read_infill, read_native
from runtime.gateway.wire.native_prompts import native_prompts
from runtime.gateway.wire.native_settings import generation_settings
from runtime.gateway.wire.openai_chat import ChatAnswer, read_chat
from runtime.gateway.wire.openai_embeddings import embeddings_json, read_embedding
from runtime.gateway.wire.wanted import Head

HEAD = Head(id="0" * 32, created=7, model="mine", pieces={5: b" Hi", 6: b"\xe5"}, explains=False)


def completion(text: str = " Hi", **changes: Any) -> Completion:
    facts: dict[str, Any] = {
        "text": text,
        "tokens": (5,),
        "finish_reason": "length",
        "finish_key": None,
        "stop_sequence": None,
        "usage": Usage(prompt_tokens=4, cached_tokens=1, completion_tokens=3),
        "cache": CacheReport(HitKind.PARTIAL, "ram", 0.0, None, 0.0, None, Exact.REPEAT, None),
        "timings": Timings(0.0, 1.0, 6.0, 8.0, 0.0, 0.0),
        "limit": "max_tokens",
    }
    return Completion(**(facts | changes))


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def answer(**fields: Any) -> NativeAnswer:
    wanted, asked = read_native(body(**({"prompt": "a"} | fields)), {})
    return NativeAnswer(HEAD, asked, wanted)


def frames(made: NativeAnswer, events: list[Event]) -> list[dict[str, Any]]:
    raw = made.begin() + b"".join(made.event(0, one) for one in events) + made.end()
    parts = raw.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(one.startswith("data: ") for one in parts)
    return [json.loads(one[6:]) for one in parts]


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("a", ["a"]),
        ("", [""]),
        ([1, 2], [[1, 2]]),
        ([1, "a", 2], [[1, "a", 2]]),
        (["a", "b"], ["a", "b"]),
        (["a", [1, 2], [3, "b"]], ["a", [1, 2], [3, "b"]]),
        ({"prompt_string": "a"}, ["a"]),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ["ab"]),
        ([[1], {"prompt_string": "a"}], [[1], "a"]),
    ],
)
def test_prompts_are_read_in_each_form(sent: Any, read: list[Any]) -> None:
    assert native_prompts(sent) == read


@pytest.mark.parametrize(
    "sent",
    [
        None,
        [],
        3,
        True,
        [True],
        [[]],
        {"content": "a"},
        {"content": [{"type": "odd"}]},
        ["a"] * 257,
    ],
)
def test_what_is_no_prompt_is_refused_by_the_name_of_its_field(sent: Any) -> None:
    with pytest.raises(Refused) as caught:
        native_prompts(sent)
    assert caught.value.failure.fault is Fault.INVALID
    assert (caught.value.failure.param or "").startswith("prompt")


@pytest.mark.parametrize(
    "sent",
    [
        {"prompt_string": "a", "multimodal_data": ["AAAA"]},
        {"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
    ],
)
def test_images_are_not_read(sent: Any) -> None:
    with pytest.raises(Refused) as caught:
        native_prompts(sent)
    assert caught.value.failure.fault is Fault.UNSUPPORTED


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────


def test_a_body_becomes_options_of_the_runtime() -> None:
    wanted, _ = read_native(
        body(
            prompt=["a", [1, 2]], n_predict=8, n_probs=3, stream=True, stop=["x", ""], seed=-1,
            cache_prompt=False, id_slot=0, samplers=["top_k", "temperature"], lora=[],
        ),
        {"temperature": 0.8},
    )  # fmt: skip
    assert wanted.inputs == ("a", [1, 2])
    assert (wanted.is_stream, wanted.needs_pieces, wanted.kind) == (True, True, "prompt")
    assert wanted.options["max_tokens"] == 8
    assert wanted.options["n_logprobs"] == 3
    assert wanted.options["stop"] == ["x"]


@pytest.mark.parametrize("n_predict", [None, -1, -2])
def test_a_reply_without_a_length_is_as_long_as_fits(n_predict: int | None) -> None:
    wanted, _ = read_native(body(prompt="a", n_predict=n_predict), {})
    assert wanted.options["max_tokens"] is None


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"n_predict": -3}, Fault.INVALID),
        ({"post_sampling_probs": True}, Fault.UNSUPPORTED),
        ({"lora": [{"id": 0, "scale": 1.0}]}, Fault.UNSUPPORTED),
        ({"image_data": [{}]}, Fault.UNSUPPORTED),
    ],
)
def test_what_cannot_be_done_is_refused(fields: dict[str, Any], fault: Fault) -> None:
    with pytest.raises(Refused) as caught:
        read_native(body(prompt="a", **fields), {})
    assert caught.value.failure.fault is fault


def test_a_default_seed_counts_where_a_request_has_none() -> None:
    assert read_native(body(prompt="a"), {"seed": 42.0})[0].options["seed"] == 42
    assert read_native(body(prompt="a", seed=-1), {"seed": 42.0})[0].options["seed"] == -1
    assert read_native(body(prompt="a"), {})[0].options["seed"] == -1


def test_an_infill_has_the_prompt_before_its_gap() -> None:
    extra = [{"filename": "a.h", "text": "x"}, {"text": "y"}]
    wanted, _ = read_infill(
        body(input_prefix="A", prompt="B", input_suffix="C", input_extra=extra), {}
    )
    assert wanted.inputs == ({"prefix": "AB", "suffix": "C", "extra": [("a.h", "x"), ("", "y")]},)


@pytest.mark.parametrize("extra", [{}, {"filename": "a"}, {"filename": 1, "text": "a"}, "a", 3])
def test_an_extra_file_has_a_text(extra: Any) -> None:
    with pytest.raises(Refused):
        read_infill(body(input_prefix="A", input_suffix="C", input_extra=[extra]), {})


@pytest.mark.parametrize("name", ["input_prefix", "input_suffix"])
def test_an_infill_needs_both_sides(name: str) -> None:
    sides = {"input_prefix": "A", "input_suffix": "C"}
    del sides[name]
    with pytest.raises(Refused, match=name):
        read_infill(body(**sides), {})


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_has_every_field() -> None:
    found = json.loads(answer(n_predict=3, return_tokens=True).whole([completion()]))
    assert found == {
        "index": 0, "content": " Hi", "tokens": [5], "id_slot": -1, "stop": True, "model": "mine",
        "tokens_predicted": 3, "tokens_evaluated": 4,
        "generation_settings": generation_settings({"max_tokens": 3, "seed": -1}),
        "prompt": "a", "has_new_line": False, "truncated": False, "stop_type": "limit",
        "stopping_word": "", "tokens_cached": 1, "timings": report.timings(completion()),
    }  # fmt: skip


def test_several_prompts_have_a_list_of_answers() -> None:
    made = answer(prompt=["a", "b"])
    found = json.loads(made.whole([completion("x"), completion("y")]))
    assert [(one["index"], one["prompt"], one["content"]) for one in found] == [
        (0, "a", "x"),
        (1, "b", "y"),
    ]


@pytest.mark.parametrize(
    ("changes", "stop_type", "word"),
    [
        ({"finish_reason": "stop", "limit": None}, "eos", ""),
        ({"finish_reason": "stop", "limit": None, "stop_sequence": "x"}, "word", "x"),
        ({"finish_reason": "prefilled", "limit": None}, "limit", ""),
        ({"finish_reason": "cancelled", "limit": None}, "none", ""),
    ],
)
def test_an_answer_states_what_ended_it(changes: dict[str, Any], stop_type: str, word: str) -> None:
    found = json.loads(answer().whole([completion(**changes)]))
    assert (found["stop_type"], found["stopping_word"]) == (stop_type, word)


def test_only_the_fields_that_are_asked_for_are_shown() -> None:
    made = answer(response_fields=["content", "generation_settings/n_predict", "none/such"])
    assert json.loads(made.whole([completion()])) == {
        "content": " Hi",
        "generation_settings/n_predict": -1,
    }


def test_a_stream_is_pieces_and_a_last_object() -> None:
    found = frames(
        answer(stream=True, return_progress=True),
        [
            PrefillEvent(2, 4, 1),
            TokenEvent(0, (5,), " Hi"),
            TokenEvent(1, (), "!"),
            TokenEvent(1, (6,), ""),
            CompletionEvent(completion(" Hi!")),
        ],
    )
    piece = {"index": 0, "stop": False, "id_slot": -1, "tokens_evaluated": 4}
    assert found[:5] == [
        {**piece, "content": "", "tokens": [], "tokens_predicted": 0,
         "prompt_progress": {"total": 4, "cache": 1, "processed": 1}},
        {**piece, "content": "", "tokens": [], "tokens_predicted": 0,
         "prompt_progress": {"total": 4, "cache": 1, "processed": 2}},
        {**piece, "content": "", "tokens": [], "tokens_predicted": 0,
         "prompt_progress": {"total": 4, "cache": 1, "processed": 4}},
        {**piece, "content": " Hi", "tokens": [5], "tokens_predicted": 1},
        {**piece, "content": "!", "tokens": [6], "tokens_predicted": 2},
    ]  # fmt: skip
    assert found[5]["stop"] is True
    assert (found[5]["content"], found[5]["tokens"], len(found)) == ("", [], 6)


def test_a_stream_shows_times_where_they_are_asked_for() -> None:
    wanted, asked = read_native(body(prompt="Once", stream=True, timings_per_token=True), {})
    ticks = iter([1.0, 1.25, 1.5])
    made = NativeAnswer(HEAD, asked, wanted, clock=lambda: next(ticks))
    events = [PrefillEvent(1, 4, 1), TokenEvent(0, (5,), " Hi"), TokenEvent(1, (6,), "!")]
    first, second = (
        json.loads(one.removeprefix(b"data: "))["timings"]
        for event in events
        for one in made.event(0, event).split(b"\n\n")[:-1]
    )
    assert (first["cache_n"], first["predicted_n"], first["predicted_ms"]) == (1, 1, 0.0)
    assert (second["predicted_n"], second["predicted_ms"]) == (2, 250.0)
    assert second["predicted_per_second"] == 4.0


@given(st.lists(st.tuples(st.sampled_from([(), (5,), (5, 6)]), st.text(max_size=3)), max_size=12))
def test_the_pieces_of_a_stream_are_the_whole_text(
    parts: list[tuple[tuple[int, ...], str]],
) -> None:
    text = "".join(text for _, text in parts)
    events: list[Event] = [TokenEvent(0, tokens, piece) for tokens, piece in parts]
    found = frames(answer(stream=True), [*events, CompletionEvent(completion(text))])
    assert "".join(one["content"] for one in found) == text
    assert [one["stop"] for one in found] == [False] * (len(found) - 1) + [True]
    assert sum(len(one["tokens"]) for one in found) == sum(len(tokens) for tokens, _ in parts)


def test_log_probabilities_come_token_by_token() -> None:
    logprobs = (Logprobs(-0.5, ((5, -0.5),)), Logprobs(-math.inf, ()))
    events: list[Event] = [TokenEvent(0, (5, 6), " Hi", logprobs)]
    found = frames(answer(stream=True, n_probs=1), events)
    assert [one["tokens"] for one in found] == [[5], [6]]
    assert [one["content"] for one in found] == ["", " Hi"]
    first, second = (one["completion_probabilities"] for one in found)
    shown = {"id": 5, "token": " Hi", "bytes": [32, 72, 105], "logprob": -0.5}
    assert first == [{**shown, "top_logprobs": [shown]}]
    assert (second[0]["logprob"], second[0]["bytes"]) == (-9999.0, [0xE5])


def test_a_stream_that_fails_ends_with_an_error() -> None:
    raw = answer(stream=True).failed(Failure(Fault.INTERNAL, "it broke"))
    assert json.loads(raw.decode().removeprefix("data: ")) == {
        "error": {"code": 500, "message": "it broke", "type": "server_error"}
    }


def test_settings_are_as_llama_server_names_them() -> None:
    found = generation_settings(
        {"top_k": 5, "typ_p": 0.5, "repeat_last_n": 3, "logit_bias": [[7, False], ["a", 1.5]],
         "stop": "x", "max_tokens": 2, "seed": 4, "n_logprobs": 6,
         "samplers": ["typ_p", "temperature"]}
    )  # fmt: skip
    assert (found["top_k"], found["typical_p"], found["repeat_last_n"]) == (5, 0.5, 3)
    assert found["logit_bias"] == [{"token": 7, "bias": None}, {"token": "a", "bias": 1.5}]
    assert (found["stop"], found["n_predict"], found["seed"], found["n_probs"]) == (["x"], 2, 4, 6)
    assert found["samplers"] == ["typ_p", "temperature"]


def test_numbers_for_one_token_add_up_and_a_ban_stays() -> None:
    pairs = [[7, -1], [7, -2], ["a", False], ["a", 5]]
    wanted, _ = read_native(body(prompt="a", logit_bias=pairs), {})
    assert wanted.options["logit_bias"] == [(7, -3.0), ("a", False)]


def test_a_chat_shows_how_far_its_prompt_is_read() -> None:
    sent = {"messages": [{"role": "user", "content": "a"}], "stream": True}
    wanted, asked = read_chat(body(**sent, return_progress=True), {})
    made = ChatAnswer(HEAD, asked, wanted)
    events = [PrefillEvent(3, 6, 2), PrefillEvent(6, 6, 2), TokenEvent(0, (5,), " Hi")]
    raw = made.begin() + b"".join(made.event(0, one) for one in events)
    shown = [json.loads(one[6:]) for one in raw.decode().split("\n\n") if one]
    reports = [one["prompt_progress"]["processed"] for one in shown if "prompt_progress" in one]
    assert reports == [2, 3, 6]


# ── the smaller questions ───────────────────────────────────────────────────────────────────────


def test_a_piece_that_is_no_text_is_its_bytes() -> None:
    raw = native_bodies.tokens_json([5, 6], [b" Hi", b"\xe5"])
    assert json.loads(raw) == {"tokens": [{"id": 5, "piece": " Hi"}, {"id": 6, "piece": [0xE5]}]}
    assert json.loads(native_bodies.tokens_json([5, 6], None)) == {"tokens": [5, 6]}


def test_a_ranking_has_two_forms() -> None:
    found = Ranking((Ranked(1, 0.5), Ranked(0, -1.0)), 9)
    documents, asked = native_bodies.read_rerank(body(query="q", documents=["a", {"text": "b"}]))
    assert documents == ["a", "b"]
    assert json.loads(native_bodies.ranking_json(asked, documents, "mine", found)) == {
        "object": "list",
        "model": "mine",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "results": [
            {"index": 1, "relevance_score": 0.5},
            {"index": 0, "relevance_score": -1.0},
        ],
    }
    texts, asked = native_bodies.read_rerank(body(query="q", texts=["a", "b"], return_text=True))
    assert json.loads(native_bodies.ranking_json(asked, texts, "mine", found)) == [
        {"index": 1, "score": 0.5, "text": "b"},
        {"index": 0, "score": -1.0, "text": "a"},
    ]


@pytest.mark.parametrize("documents", [[], None, 123, [1, 2, 3], [{"no": "text"}]])
def test_a_ranking_needs_texts(documents: Any) -> None:
    with pytest.raises(Refused):
        native_bodies.read_rerank(body(query="q", documents=documents))


def test_vectors_without_pooling_are_llama_servers_alone() -> None:
    from array import array

    found = Embeddings((array("f", [1.0]), array("f", [2.0])), (2,), 1, 2)
    assert json.loads(native_bodies.native_embeddings_json(found)) == [
        {"index": 0, "embedding": [[1.0], [2.0]]}
    ]
    with pytest.raises(Refused, match="without pooling"):
        embeddings_json(read_embedding(body(input="a")), "mine", found)


def test_a_prompt_that_is_too_long_is_named_in_the_words_of_llama_server() -> None:
    words = "prompt is too long: 300 tokens > 256"
    failure = Failure(Fault.TOO_LONG, words, n_prompt=300, n_ctx=256)
    error = json.loads(error_body(failure, api_of("/completion")))["error"]
    assert error["type"] == "exceed_context_size_error"
    assert (error["code"], error["n_prompt_tokens"], error["n_ctx"]) == (400, 300, 256)
    assert error["message"] == f"request exceeds the available context size: {words}"


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v1/stream?conv_id=x", "native"),
        ("/v1/streams/lookup", "native"),
        ("/v1", "openai"),
        ("/v1/streamers", "openai"),
        ("/stream", "openai"),
        ("/llama/v1/streams/req_1", "own"),
    ],
)
def test_whose_words_a_path_is_answered_in(path: str, api: str) -> None:
    assert api_of(path) == api


def test_slots_tell_how_many_run_and_nothing_of_them() -> None:
    facts = ModelFacts("mine", 7, {"n_ctx": 256, "n_seq_max": 2, "running": 1, "path": "/m.gguf"})
    assert [one["is_processing"] for one in native_state.slots_json(facts)] == [True, False]
    props = native_state.props_json(
        facts, {"seed": 42.0, "top_k": 40.0}, "b", shows_slots=True, shows_metrics=False
    )
    assert props["default_generation_settings"]["params"]["top_k"] == 40
    assert props["default_generation_settings"]["params"]["seed"] == 42
    assert (props["total_slots"], props["model_path"]) == (2, "/m.gguf")


def test_counts_are_those_of_the_replies() -> None:
    counts = Counts()
    counts.note(completion())
    counts.note(completion())
    counts.note_read(10, 2)
    text = metrics_text(counts, 1, 2).decode()
    values = dict(line.split(" ") for line in text.splitlines() if not line.startswith("#"))
    assert values["llamacpp:prompt_tokens_total"] == "16"
    assert values["llamacpp:prompt_tokens_cached_total"] == "2"
    assert values["llamacpp:tokens_predicted_total"] == "6"
    assert values["llamacpp:n_decode_total"] == "8"
    assert values["llamacpp:predicted_tokens_seconds"] == "375"
    for name in values:
        assert f"# HELP {name} " in text
        assert f"# TYPE {name} " in text


def test_the_rate_of_a_reply_leaves_out_its_first_token() -> None:
    found = report.timings(completion())
    assert (found["predicted_n"], found["predicted_per_token_ms"]) == (3, 4.0)
    assert (found["predicted_per_second"], found["prompt_per_second"]) == (250.0, 500.0)
    one = report.timings(completion(usage=Usage(4, 1, 1), timings=Timings(0, 1, 6, 0, 0, 0)))
    assert (one["predicted_per_second"], one["predicted_per_token_ms"]) == (0.0, 0.0)


# ── pages ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("origin", "known", "may"),
    [
        ("http://here:1", (), True),
        ("http://localhost", ("localhost",), True),
        ("http://localhost:80", ("localhost",), True),
        ("http://127.0.0.1:3000", ("localhost",), True),
        ("http://[::1]:3000", ("localhost",), True),
        ("http://localhost.evil.com", ("localhost",), False),
        ("http://notlocalhost", ("localhost",), False),
        ("null", ("localhost",), False),
        ("http://localhost", (), False),
        ("web.example", ("*",), True),
        ("https://a.example", ("https://A.example/",), True),
    ],
)
def test_pages_that_may_call(origin: str, known: tuple[str, ...], may: bool) -> None:
    if may:
        assert check_origin(origin.encode(), "here:1", known) == origin.encode()
    else:
        with pytest.raises(Refused):
            check_origin(origin.encode(), "here:1", known)
