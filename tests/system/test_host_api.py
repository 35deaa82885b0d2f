"""Everything a model can do, asked from the host: one node with the embedded model and a stub."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from native._stub_adapters import MAGIC
from runtime import Completion, CompletionEvent, Node, PrefillEvent, SpanEvent, TokenEvent, errors
from runtime.embedded import path as embedded_path
from tests.support.runtime_nodes import LeakCheck, kill, one_thread, pid_of, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

STORY = "Once upon a time there was a small fox"
ASKED = [{"role": "user", "content": "Tell me a story about a fox."}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, slow_gguf: Path) -> Iterator[Node]:
    with LeakCheck() as leaks, started(tmp_path_factory.mktemp("host")) as node:
        node.load("demo", n_threads=1)
        node.load("stub", "stub", backend="stub")
        node.client.load("slow", one_thread(slow_gguf, n_ctx=8192, n_seq_max=1))
        leaks.watch(node)
        yield node
        leaks.watch(node)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_is_warm_from_its_second_turn_on(host: Node) -> None:
    first = host.chat("demo", ASKED, max_tokens=40, session="talk")
    assert first.text
    said = {"role": "assistant", "content": first.text}
    more = [*ASKED, said, {"role": "user", "content": "And then?"}]
    second = host.chat("demo", more, max_tokens=10, session="talk")
    held = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.cached_tokens >= held - 1
    alone = host.chat("demo", more, max_tokens=10)
    assert alone.text == second.text
    (listed,) = [one for one in host.list_sessions("demo") if one.name == "talk"]
    assert (listed.salt, listed.is_running) == (b"", False)
    assert listed.n_tokens >= second.usage.prompt_tokens
    assert host.end_session("demo", "talk")
    assert not host.end_session("demo", "talk")


def test_a_session_continues_with_only_what_is_new(host: Node) -> None:
    read = host.prefill_only("demo", STORY, session="tale")
    assert read.finish_reason == "prefilled"
    assert (read.text, read.usage.completion_tokens) == ("", 0)
    first = host.continue_session("demo", "tale", " named Pip.", max_tokens=12)
    whole = host.complete("demo", STORY + " named Pip.", max_tokens=12)
    assert first.text == whole.text
    assert first.usage.cached_tokens >= read.usage.prompt_tokens - 1
    host.end_session("demo", "tale")
    with pytest.raises(errors.InvalidRequest, match="session"):
        host.continue_session("demo", "tale", " and", max_tokens=2)


def test_a_prefill_can_be_continued_by_its_key(host: Node) -> None:
    read = host.prefill_only("demo", STORY)
    done = host.complete(
        "demo", " named Pip.", parent_key=read.finish_key, continues=True, max_tokens=8
    )
    assert done.text == host.complete("demo", STORY + " named Pip.", max_tokens=8).text


def test_replies_follow_their_schema(host: Node) -> None:
    done = host.complete("demo", STORY, json_schema=SCHEMA, max_tokens=200, temperature=0.8, seed=5)
    assert done.finish_reason == "stop"
    found = json.loads(done.text)
    assert set(found) == {"n"}
    assert 0 <= found["n"] <= 9
    grammar = 'root ::= "yes" | "no"'
    assert host.complete("demo", STORY, grammar=grammar).text in ("yes", "no")
    with pytest.raises(errors.InvalidRequest, match="grammar"):
        host.complete("demo", STORY, grammar="root ::= (")


def test_log_probabilities_come_with_each_token(host: Node) -> None:
    events = list(host.stream("demo", STORY, max_tokens=6, logprobs=True, top_logprobs=3))
    done = events[-1]
    assert isinstance(done, CompletionEvent)
    told = [one for e in events if isinstance(e, TokenEvent) for one in e.logprobs]
    assert done.completion.logprobs == tuple(told)
    for token, one in zip(done.completion.tokens, told, strict=True):
        assert one is not None
        assert one.top[0] == (token, one.chosen)  # greedy
        assert math.exp(one.chosen) <= 1.0
        assert len(one.top) == 3
    plain = done.completion.to_dict()["logprobs"]
    assert len(plain) == 6
    assert set(plain[0]) == {"token", "logprob", "top_logprobs"}


def test_guessing_ahead_changes_no_text(host: Node) -> None:
    prompt = "Pip liked to play in the park. " * 8
    plain = host.complete("demo", prompt, max_tokens=40)
    guessed = host.complete("demo", prompt, max_tokens=40, speculation="ngram")
    assert guessed.tokens == plain.tokens
    assert guessed.usage.drafted_tokens >= guessed.usage.accepted_tokens
    assert plain.usage.drafted_tokens == 0
    with pytest.raises(errors.NotSupported, match="draft_path"):
        host.complete("demo", STORY, speculation="draft")


@pytest.fixture(scope="module")
def story(host: Node) -> str:
    return host.complete("demo", STORY, max_tokens=60).text


@pytest.fixture(scope="module")
def marked(host: Node, story: str) -> Iterator[str]:
    """The embedded model with markers that its story happens to contain."""
    words = story.split()
    assert len(words) >= 12
    thought = [f"{words[1]} {words[2]}", words[5]]
    call = [f"{words[7]} {words[8]}", words[10]]
    host.load(
        "marked", embedded_path(), n_threads=1, thinking_markers=thought, tool_call_markers=call
    )
    yield "marked"
    host.unload("marked")


def test_thoughts_and_calls_are_events_of_their_own(host: Node, story: str, marked: str) -> None:
    events = list(host.stream(marked, STORY, max_tokens=60, thinking=True, tool_calls=True))
    spans = [event for event in events if isinstance(event, SpanEvent)]
    done = events[-1]
    assert isinstance(done, CompletionEvent)
    completion = done.completion
    assert completion.spans == tuple(spans)
    assert [span.kind for span in spans][:2] == ["thinking", "tool_call"]
    assert completion.thinking == "".join(s.text for s in spans if s.kind == "thinking")
    calls = [span for span in spans if span.kind == "tool_call"]
    assert [call.text for call in completion.tool_calls] == [span.text for span in calls]
    assert {call.name for call in completion.tool_calls} == {""}
    assert spans[0].content.decode() in story
    assert spans[0].body in spans[0].content
    kinds = {event.kind for event in events if isinstance(event, TokenEvent)}
    assert kinds == {"text", "thinking", "tool_call"}
    visible = [e.text for e in events if isinstance(e, TokenEvent) and e.kind == "text"]
    assert completion.text == "".join(visible)
    assert completion.to_dict()["spans"][0]["kind"] == "thinking"
    assert host.verify_thinking(marked, spans[0].body, spans[0].signature)
    assert not host.verify_thinking(marked, spans[0].body + b".", spans[0].signature)


# ── handles ──────────────────────────────────────────────────────────────────────────────────────

LONG = list(range(5, 205)) * 30
"""The slow model reads it for seconds."""


def test_a_stream_is_cancelled_from_another_thread_in_mid_prefill(host: Node) -> None:
    with host.stream("slow", LONG, max_tokens=50) as stream:
        for event in stream:
            if isinstance(event, PrefillEvent):
                break
        assert stream.request_id is not None
        began = time.monotonic()
        canceller = threading.Thread(target=stream.cancel)
        canceller.start()
        *rest, end = stream
        took_s = time.monotonic() - began
        canceller.join()
    assert isinstance(end, CompletionEvent)
    assert end.completion.finish_reason == "cancelled"
    assert end.completion.usage.completion_tokens == 0
    assert all(e.done < len(LONG) for e in rest if isinstance(e, PrefillEvent))
    assert took_s < 10.0  # 12 to 36 ms on a machine with nothing else to do


def test_a_queued_stream_can_be_cancelled(host: Node) -> None:
    ends: list[Completion] = []
    with host.stream("slow", LONG[1:], max_tokens=50) as first:
        next(first)  # the one place is taken
        queued = host.stream("slow", [7, 8, 9], max_tokens=50)
        assert queued.request_id is None

        def read() -> None:
            ends.extend(e.completion for e in queued if isinstance(e, CompletionEvent))

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: queued.request_id, what="it is accepted")
        eventually(lambda: host.pending_len("slow") == 1, what="it waits")
        assert host.queue_depth("slow") == 2
        assert host.phase("slow") == "prefilling"
        queued.cancel()
        reader.join(60)
    assert [end.finish_reason for end in ends] == ["cancelled"]
    eventually(lambda: host.queue_depth("slow") == 0, what="leaving cancelled the first")


def test_a_session_has_one_request_at_a_time(host: Node) -> None:
    with host.stream("slow", LONG[2:], max_tokens=5, session="one") as first:
        next(first)
        with pytest.raises(errors.SessionBusy):
            host.complete("slow", [7, 8, 9], max_tokens=2, session="one")
    eventually(lambda: host.queue_depth("slow") == 0, what="leaving cancelled the first")


# ── questions ────────────────────────────────────────────────────────────────────────────────────


def test_texts_become_tokens_and_tokens_texts(host: Node) -> None:
    ids = host.tokenize("demo", STORY)
    assert ids[1:] == host.tokenize("demo", STORY, add_special=False)
    assert host.detokenize("demo", ids) == STORY
    assert host.detokenize("demo", []) == ""
    assert host.detokenize("demo", ids, special=True).endswith(STORY)
    assert host.detokenize("demo", ids, special=True) != STORY
    control = host.tokenize("demo", "<|user|>", add_special=False, parse_special=True)
    assert len(control) == 1
    assert len(host.tokenize("demo", "<|user|>", add_special=False)) > 1
    with pytest.raises(errors.InvalidRequest, match="vocabulary"):
        host.detokenize("demo", [10**6])


def test_answers_in_many_pages_are_joined(host: Node) -> None:
    text = "fox and owl. " * 20_000
    ids = host.tokenize("demo", text, add_special=False)
    assert len(ids) > 50_000
    assert host.detokenize("demo", ids) == text
    talk = [{"role": "user", "content": text}]
    prompt = host.apply_chat_template("demo", talk)
    assert text in prompt.text
    assert len(prompt.tokens) > 50_000


def test_a_conversation_shows_what_the_model_will_read(host: Node) -> None:
    prompt = host.apply_chat_template("demo", ASKED)
    assert prompt.text == "<|user|>\nTell me a story about a fox.<|end|>\n<|assistant|>\n"
    done = host.chat("demo", ASKED, max_tokens=1)
    assert done.usage.prompt_tokens == len(prompt.tokens)
    without = host.apply_chat_template("demo", ASKED, add_generation_prompt=False)
    assert prompt.text.startswith(without.text)
    with pytest.raises(errors.InvalidRequest, match="role"):
        host.chat("demo", [{"content": "x"}])
    with pytest.raises(errors.NotSupported, match="chat template"):
        host.chat("stub", ASKED)


def test_embeddings_are_one_unit_long_and_one_for_each_input(host: Node) -> None:
    ids = host.tokenize("demo", "an owl")
    found = host.embed("demo", ["a fox", ids])
    assert found.rows == (1, 1)
    assert len(found.vectors) == 2
    assert all(len(vector) == found.n_embd for vector in found.vectors)
    assert math.isclose(math.sqrt(sum(x * x for x in found.vectors[0])), 1.0, rel_tol=1e-5)
    assert found.vectors[1] == host.embed("demo", "an owl").vectors[0]
    each = host.embed("demo", ["a fox", ids], pooling="none", normalise=False)
    assert each.rows == (len(host.tokenize("demo", "a fox")), len(ids))
    assert len(each.of(1)) == len(ids)
    with pytest.raises(errors.InvalidRequest, match="pooling"):
        host.embed("demo", "x", pooling="sum")


def test_guesses_of_others_are_judged(host: Node) -> None:
    prefix = host.tokenize("demo", STORY)
    draft = host.draft_tokens("demo", prefix, 6)
    assert len(draft) == 6
    assert host.verify("demo", prefix, draft).accepted == 6
    wrong = [*draft[:3], draft[3] + 1, *draft[4:]]
    verdict = host.verify("demo", prefix, wrong)
    assert (verdict.accepted, verdict.next_token) == (3, draft[3])
    assert host.verify("demo", prefix, draft, k=2).accepted == 2


def test_what_is_warm_can_be_asked_and_given_up(host: Node) -> None:
    prompt = "The owl told nobody about the map in the old tree. " * 4
    assert host.match_prefix("demo", prompt).n_tokens <= 1
    done = host.complete("demo", prompt, max_tokens=2)
    warm = host.match_prefix("demo", prompt)
    assert warm.live == done.usage.prompt_tokens
    assert host.evict("demo") >= 1
    stored = host.match_prefix("demo", prompt)
    assert stored.live == 0
    assert stored.stored == host.list_cached_prefixes("demo", prompt) >= warm.live - 1
    assert host.evict("demo") == 0


def test_adapters_come_scale_and_go(host: Node, tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.write_bytes(MAGIC + b"1")
    one = host.load_adapter("stub", path, scale=0.5)
    assert (one.path, one.scale) == (str(path), 0.5)
    assert host.list_adapters("stub") == (one,)
    (scaled,) = host.set_adapter_scale("stub", one.id, 2.0)
    assert scaled.scale == 2.0
    assert host.unload_adapter("stub", one.id) == ()
    with pytest.raises(errors.InvalidRequest, match="adapter"):
        host.unload_adapter("stub", one.id)


def test_a_model_reports_what_it_is_and_did(host: Node) -> None:
    info = host.model_info("demo")
    assert info.id == "demo"
    assert info.details["n_vocab"] > 1000
    done = host.complete("demo", STORY, max_tokens=2)
    assert host.last_cache_hit("demo") == {
        "hit": done.cache.hit.value,
        "source": done.cache.source,
        "cached_tokens": done.usage.cached_tokens,
    }
    # The result is sent before the engine has released the request.
    eventually(lambda: host.phase("demo") == "idle", what="the model is idle")
    eventually(
        lambda: host.queue_depth() == host.queue_depth("demo") == host.pending_len("demo") == 0,
        what="nothing is queued",
    )
    with pytest.raises(errors.NotSupported, match="no_gpu"):
        host.vram_info("demo")


def test_a_missing_model_is_named(host: Node) -> None:
    for ask in (
        lambda: host.tokenize("nobody", "x"),
        lambda: host.embed("nobody", "x"),
        lambda: host.phase("nobody"),
        lambda: host.chat("nobody", ASKED),
        lambda: host.verify("nobody", [1], [2]),
    ):
        with pytest.raises(errors.ModelUnknown, match="nobody"):
            ask()


def test_a_question_waits_for_a_model_that_restarts(host: Node) -> None:
    ids = host.tokenize("demo", STORY)
    kill(pid_of(host, "model:demo"))
    assert host.tokenize("demo", STORY) == ids
    kill(pid_of(host, "model:demo"))
    assert host.verify("demo", ids, [1]).accepted in (0, 1)


def test_a_load_reports_its_progress(host: Node) -> None:
    shares: list[float] = []
    host.load("again", embedded_path(), n_threads=1, progress=shares.append)
    host.unload("again")
    assert shares == sorted(shares)
    assert 0.0 < shares[0] <= shares[-1] <= 1.0


def test_unloading_can_wait_for_what_runs(host: Node) -> None:
    host.load("short", "short", backend="stub")
    with host.stream("short", "x" * 500, max_tokens=200) as stream:
        next(stream)
        unloader = threading.Thread(target=host.unload, args=("short",), kwargs={"drain_s": 20.0})
        unloader.start()
        (end,) = [event for event in stream if isinstance(event, CompletionEvent)]
        unloader.join(60)
    assert end.completion.finish_reason == "length"
    eventually(lambda: "short" not in {model.id for model in host.models()}, what="it is gone")
