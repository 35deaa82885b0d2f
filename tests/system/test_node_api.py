"""The host API on the stub backend: real processes, no native code."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime import CompletionEvent, Node, PrefillEvent, TokenEvent, errors
from tests.support.runtime_nodes import PROMPT, LeakCheck, Streaming, crowd_out, started, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


@pytest.fixture
def node(emptied_node: Node) -> Node:
    return emptied_node


def test_a_completion_is_typed_and_whole(stub_node: Node) -> None:
    done = stub_node.complete("stub", PROMPT, max_tokens=12)
    assert done.finish_reason == "length"
    assert len(done.tokens) == done.usage.completion_tokens == 12
    assert done.text
    assert done.cache.hit.value == "cold"
    assert done.cache.source == "none"
    assert done.cache.miss_reason is not None
    assert done.finish_key is not None
    assert len(bytes.fromhex(done.finish_key)) == 32
    assert done.timings.ttft_ms > 0
    plain = done.to_dict()
    assert plain["usage"] == {
        "prompt_tokens": done.usage.prompt_tokens,
        "cached_tokens": 0,
        "completion_tokens": 12,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
    }


def test_the_same_prompt_hits_exactly_and_answers_the_same(stub_node: Node) -> None:
    cold = stub_node.complete("stub", PROMPT, max_tokens=12)
    for source in ("live", "ram"):
        warm = stub_node.complete("stub", PROMPT, max_tokens=12)
        assert warm.cache.hit.value == "exact"
        assert warm.cache.source == source
        assert warm.cache.miss_reason is None
        assert warm.usage.cached_tokens >= cold.usage.prompt_tokens - 1
        assert warm.text == cold.text
        crowd_out(stub_node, "stub")


def test_a_prompt_that_diverges_anywhere_reuses_all_before_it(stub_node: Node) -> None:
    whole = stub_node.complete("stub", PROMPT, max_tokens=2).usage.prompt_tokens
    for cut in (30, 64, 65, 100, 200):
        other = PROMPT[:cut] + "\x01" + PROMPT[cut + 1 :]
        done = stub_node.complete("stub", other, max_tokens=2)
        # The stub has one token a byte and a BOS before them.
        assert done.usage.prompt_tokens == whole
        assert done.usage.cached_tokens == cut + 1
        assert done.cache.hit.value == "partial"


def test_parent_key_resumes_where_the_turn_before_ended(stub_node: Node) -> None:
    first = stub_node.complete("stub", PROMPT, max_tokens=10)
    second = stub_node.complete(
        "stub", PROMPT + first.text + " and then", max_tokens=5, parent_key=first.finish_key
    )
    held = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert second.usage.cached_tokens == held
    assert second.cache.note is None


def test_an_unknown_parent_key_costs_a_note_and_not_the_request(stub_node: Node) -> None:
    stub_node.complete("stub", PROMPT, max_tokens=2)
    done = stub_node.complete("stub", PROMPT, max_tokens=2, parent_key="ab" * 32)
    assert done.cache.hit.value == "exact"
    assert done.cache.note is not None
    assert "not in the cache" in done.cache.note


def test_a_parent_key_of_another_text_costs_a_note(stub_node: Node) -> None:
    other = stub_node.complete("stub", "something else entirely", max_tokens=2)
    done = stub_node.complete("stub", PROMPT, max_tokens=2, parent_key=other.finish_key)
    assert done.cache.note is not None
    assert "does not begin with" in done.cache.note


def test_a_stream_yields_progress_tokens_and_one_end(stub_node: Node) -> None:
    events = list(stub_node.stream("stub", PROMPT * 3, max_tokens=9))
    ends = [event for event in events if isinstance(event, CompletionEvent)]
    assert ends == [events[-1]]
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    assert "".join(event.text for event in tokens) == ends[0].completion.text
    indexes = [event.index + offset for event in tokens for offset in range(len(event.tokens))]
    assert indexes == list(range(9))
    assert any(isinstance(event, PrefillEvent) for event in events)


def test_a_request_that_was_left_ends_though_its_thread_reads_no_more(stub_node: Node) -> None:
    left, asked = threading.Event(), threading.Event()

    def leave() -> None:
        stream = stub_node.stream("stub", PROMPT, max_tokens=3000)
        next(event for event in stream if isinstance(event, TokenEvent))
        stream.close()
        left.set()
        asked.wait(60)  # and nothing of what came for this thread is read

    thread = threading.Thread(target=leave)
    thread.start()
    try:
        assert left.wait(30)
        eventually(lambda: status_of(stub_node, "inflight")["in_flight"] == 0, within_s=30)
    finally:
        asked.set()
        thread.join(30)


def test_leaving_a_stream_early_cancels_the_request(stub_node: Node) -> None:
    stream = stub_node.stream("stub", PROMPT, max_tokens=3000)
    for event in stream:
        if isinstance(event, TokenEvent):
            break
    stream.close()

    def idle() -> bool:
        in_flight = status_of(stub_node, "inflight")["in_flight"]
        return in_flight == status_of(stub_node, "model:stub")["running"] == 0

    eventually(idle, within_s=30, what="the request was cancelled")
    assert status_of(stub_node, "model:stub")["tokens_generated"] < 3000


def test_a_stop_string_ends_the_text_before_it(stub_node: Node) -> None:
    text = stub_node.complete("stub", PROMPT, max_tokens=20).text
    stop = text[7:9]
    done = stub_node.complete("stub", PROMPT, max_tokens=20, stop=[stop])
    assert done.finish_reason == "stop"
    assert done.stop_sequence == stop
    assert done.text == text[: text.index(stop)]


def test_sampling_is_positional_and_seeded(stub_node: Node) -> None:
    options = {"max_tokens": 12, "temperature": 0.9}
    one = stub_node.complete("stub", PROMPT, seed=1, **options)
    again = stub_node.complete("stub", PROMPT, seed=1, **options)
    other = stub_node.complete("stub", PROMPT, seed=2, **options)
    assert one.text == again.text
    assert one.text != other.text


def test_token_ids_are_accepted_as_a_prompt(stub_node: Node) -> None:
    ids = list(range(1, 80))
    done = stub_node.complete("stub", ids, max_tokens=3)
    assert done.usage.prompt_tokens == 79
    again = stub_node.complete("stub", ids, max_tokens=3)
    assert again.cache.hit.value == "exact"


def test_replies_of_one_prompt_compute_it_once(stub_node: Node) -> None:
    """Where memory can be shared, and where it cannot: there from the rows of the first one."""
    stub_node.load("whole", "uncuttable", backend="stub")
    hot = {"max_tokens": 9, "temperature": 1.0}
    for model, n_again in (("stub", 0), ("whole", 1)):
        prompt = f"{model} shares {PROMPT}"
        done = stub_node.complete_many(model, prompt, n=5, seed=3, **hot)
        n_prompt = done[0].usage.prompt_tokens
        assert [one.usage.cached_tokens for one in done[1:]] == [n_prompt - n_again] * 4
        alone = [stub_node.complete(model, prompt, seed=3 + i, **hot) for i in range(5)]
        assert [one.tokens for one in done] == [one.tokens for one in alone]
        assert len({one.text for one in done}) == 5


def test_a_list_of_prompts_is_answered_in_its_order(stub_node: Node) -> None:
    prompts = [f"{index}: {PROMPT}" for index in range(5)]
    alone = [stub_node.complete("stub", prompt, max_tokens=6).text for prompt in prompts]
    done = stub_node.complete_many("stub", prompts, max_tokens=6)
    assert [one.text for one in done] == alone
    ids = [stub_node.tokenize("stub", prompt) for prompt in prompts]
    mixed = [ids[0], prompts[1], ids[2]]
    twice = stub_node.complete_many("stub", mixed, n=2, max_tokens=6)
    assert [one.text for one in twice] == [text for text in alone[:3] for _ in range(2)]


def test_more_replies_than_sequences_wait_and_all_end(node: Node) -> None:
    node.load("stub", "stub", backend="stub", n_seq_max=2)
    done = node.complete_many("stub", PROMPT, n=9, max_tokens=20, temperature=1.0)
    assert [len(one.tokens) for one in done] == [20] * 9


def test_a_deadline_is_that_of_all_replies_together(stub_node: Node) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        stub_node.complete_many("stub", "x " * 900, n=3, timeout_s=0.001)
    assert stub_node.complete("stub", PROMPT, max_tokens=2).tokens


def test_an_echo_is_the_prompt_before_the_reply(stub_node: Node) -> None:
    plain = stub_node.complete("stub", PROMPT, max_tokens=4, logprobs=1)
    done = stub_node.complete("stub", PROMPT, max_tokens=4, logprobs=1, echo=True)
    ids = tuple(stub_node.tokenize("stub", PROMPT))
    assert done.text == PROMPT + plain.text
    assert done.tokens == ids + plain.tokens
    assert plain.logprobs is not None
    assert done.logprobs == (None,) * len(ids) + plain.logprobs
    assert done.to_dict()["logprobs"][: len(ids)] == [None] * len(ids)
    assert done.usage.completion_tokens == 4
    events = list(stub_node.stream("stub", PROMPT, max_tokens=4, echo=True))
    first = events[0]
    assert isinstance(first, TokenEvent)
    assert (first.kind, first.text, first.index) == ("prompt", PROMPT, -len(ids))
    assert (first.tokens, first.logprobs) == (ids, ())
    shown = "".join(one.text for one in events if isinstance(one, TokenEvent))
    assert shown == PROMPT + plain.text
    of_ids = stub_node.complete("stub", [72, 105], max_tokens=1, echo=True)
    assert of_ids.text.startswith("Hi")
    assert of_ids.tokens[:2] == (72, 105)
    read = stub_node.complete("stub", PROMPT, max_tokens=0, echo=True)
    assert (read.text, read.tokens, read.logprobs) == (PROMPT, ids, None)
    several = stub_node.complete_many("stub", PROMPT, n=2, max_tokens=4, echo=True)
    assert [one.text for one in several] == [PROMPT + plain.text] * 2


def test_ignoring_the_end_generates_all_that_was_asked_for(stub_node: Node) -> None:
    ended = PROMPT + "\x04"
    assert stub_node.complete("stub", ended, max_tokens=30).finish_reason == "stop"
    done = stub_node.complete("stub", ended, max_tokens=30, ignore_eos=True)
    assert (done.finish_reason, len(done.tokens)) == ("length", 30)


def test_a_bias_of_a_text_is_resolved_by_the_model_and_named_if_it_cannot_be(
    stub_node: Node,
) -> None:
    done = stub_node.complete("stub", PROMPT, max_tokens=3, logit_bias={"zebra": 1e4})
    assert set(done.text) <= set("zebra")
    with pytest.raises(errors.InvalidRequest, match="logit_bias"):
        stub_node.complete("stub", PROMPT, logit_bias={"": 1.0})


def test_several_threads_share_one_node(stub_node: Node) -> None:
    prompts = [f"{index}: {PROMPT}" for index in range(8)]
    alone = [stub_node.complete("stub", prompt, max_tokens=8).text for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda p: stub_node.complete("stub", p, max_tokens=8), prompts * 3)
        )
    assert [done.text for done in together] == alone * 3


def test_more_requests_than_sequences_wait_and_all_end(node: Node) -> None:
    node.load("stub", "stub", backend="stub", n_seq_max=2)
    with ThreadPoolExecutor(10) as pool:
        done = list(
            pool.map(lambda i: node.complete("stub", f"{i} {PROMPT}", max_tokens=30), range(10))
        )
    assert all(len(one.tokens) == 30 for one in done)


def test_a_second_process_attaches_to_a_running_node(stub_node: Node, module_home: Path) -> None:
    other = Node.attach(stub_node.port, runtime_dir=module_home / "run")
    with other:
        assert [model.id for model in other.models()] == ["stub"]
        assert other.complete("stub", "hello", max_tokens=2).tokens
    assert stub_node.complete("stub", "hello", max_tokens=2).tokens  # closing did not stop it


def test_the_tree_shows_every_actor_of_the_design(stub_node: Node) -> None:
    tree = stub_node.tree()
    assert tree.kind == "launcher"
    root = tree.children[0]
    assert root.id == "root"
    assert [child.id for child in root.children] == [
        "cache",
        "registry",
        "inflight",
        "models",
        "residency",
        "scheduler",
    ]
    cache = tree.find("cache")
    models = tree.find("models")
    assert cache is not None
    assert models is not None
    assert [c.id for c in cache.children] == ["cache_meta", "ram_tier", "tier:disk", "writer"]
    assert [c.id for c in models.children] == ["model:stub"]
    plain = tree.to_dict()
    assert set(plain) >= {"id", "kind", "pid", "state", "restarts", "children"}


def test_two_nodes_on_one_machine_do_not_disturb_each_other(tmp_path: Path) -> None:
    with (
        LeakCheck() as leaks,
        started(tmp_path / "a") as one,
        started(tmp_path / "b") as two,
    ):
        leaks.watch(one)
        leaks.watch(two)
        one.load("stub", "stub", backend="stub")
        two.load("stub", "stub", backend="stub")
        assert one.complete("stub", PROMPT, max_tokens=3).cache.hit.value == "cold"
        assert two.complete("stub", PROMPT, max_tokens=3).cache.hit.value == "cold"
        one.stop()
        assert two.complete("stub", PROMPT, max_tokens=3).cache.hit.value == "exact"


def test_a_prompt_bigger_than_a_message_travels_beside_it(node: Node) -> None:
    node.load("stub", "stub", backend="stub", n_ctx=200_000)
    prompt = "a rather long prompt. " * 3200
    done = node.complete("stub", prompt, max_tokens=2)
    assert done.usage.prompt_tokens > 1 << 16
    again = node.complete("stub", prompt, max_tokens=2)
    assert again.cache.hit.value == "exact"


# ── bad input ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "options", "error", "says"),
    [
        ("", {}, errors.InvalidRequest, "empty"),
        ([], {}, errors.InvalidRequest, "no tokens"),
        ([-1], {}, errors.InvalidRequest, "token"),
        ([10**6], {}, errors.InvalidRequest, "vocabulary"),
        ("x", {"max_tokens": 1.5}, errors.InvalidRequest, "whole number"),
        ("x", {"max_tokens": -5}, errors.InvalidRequest, "whole number"),
        ("x", {"temperature": -1.0}, errors.InvalidRequest, "temperature"),
        ("x", {"top_p": 7.0}, errors.InvalidRequest, "top_p"),
        ("x", {"parent_key": "zz"}, errors.InvalidRequest, "64 hex digits"),
        ("x" * 9000, {}, errors.PromptTooLong, "n_ctx"),
    ],
)
def test_bad_requests_are_refused_with_a_sentence_and_lose_nothing(
    stub_node: Node, prompt: str, options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        stub_node.complete("stub", prompt, **options)
    assert stub_node.complete("stub", "still here", max_tokens=2).tokens


def test_unknown_and_unloaded_models_are_named(stub_node: Node) -> None:
    with pytest.raises(errors.ModelUnknown, match="load it first"):
        stub_node.complete("nobody", "x")
    with pytest.raises(errors.ModelUnknown, match="nobody"):
        stub_node.unload("nobody")
    stub_node.unload("stub")
    # Inflight may be notified a moment later than the caller; then its error has the same cause.
    with pytest.raises((errors.ModelUnknown, errors.ModelUnloaded), match="stub"):
        stub_node.complete("stub", "x", timeout_s=5)
    stub_node.load("stub", "stub", backend="stub")  # the id is free again
    assert stub_node.complete("stub", "x", max_tokens=1).tokens


def test_a_path_that_is_given_for_demo_is_loaded(tmp_path: Path, tiny_gguf: Path) -> None:
    with LeakCheck() as leaks, started(tmp_path, models={"demo": tiny_gguf}) as node:
        leaks.watch(node)
        assert node.model_info("demo").details["path"] == str(tiny_gguf)


def test_a_second_load_of_an_id_is_refused(stub_node: Node) -> None:
    with pytest.raises(errors.ModelAlreadyLoaded, match="unload it first"):
        stub_node.load("stub", "stub", backend="stub")
    assert stub_node.complete("stub", "x", max_tokens=1).tokens


def test_a_bad_option_of_a_model_is_named(node: Node) -> None:
    with pytest.raises(errors.ConfigError, match="n_cxt"):
        node.load("stub", "stub", backend="stub", n_cxt=10)
    with pytest.raises(errors.ConfigError, match="n_ctx"):
        node.load("stub", "stub", backend="stub", n_ctx=-3)
    with pytest.raises(errors.ConfigError, match="model id"):
        node.load("a b", "stub", backend="stub")


def test_a_deadline_ends_a_request_that_is_too_slow(stub_node: Node) -> None:
    with pytest.raises(errors.DeadlineExceeded, match="timeout_s"):
        stub_node.complete("stub", PROMPT, max_tokens=4000, timeout_s=0.05)
    assert stub_node.complete("stub", "x", max_tokens=1).tokens


def test_unloading_ends_running_requests_with_a_reason(stub_node: Node) -> None:
    stream = Streaming(stub_node, "stub", 3500)
    stub_node.unload("stub")
    assert stream.end() == [errors.ModelUnloaded]


def test_attaching_without_a_node_raises_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(errors.NodeNotRunning, match="runtime serve"):
        Node.attach(45_999, runtime_dir=tmp_path)


def test_an_admin_port_in_use_is_named(stub_node: Node, tmp_path: Path) -> None:
    with pytest.raises(errors.NodeStartFailed, match="--admin-port"):
        Node.start(port=stub_node.port, runtime_dir=tmp_path / "other", cache_disk=0)
    assert stub_node.complete("stub", "x", max_tokens=1).tokens


def test_more_shared_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.NodeStartFailed, match="cache_ram"):
        Node.start(cache_ram="64TiB", runtime_dir=tmp_path, cache_disk=0)


def test_a_cache_directory_belongs_to_one_node(
    stub_node: Node, module_home: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.NodeStartFailed, match="another node uses it"):
        Node.start(
            cache_dir=module_home / "cache", runtime_dir=tmp_path / "other", cache_ram="32MiB"
        )
    assert stub_node.complete("stub", "x", max_tokens=1).tokens


def test_a_second_node_goes_without_the_default_cache_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    options = {"cache_ram": "32MiB"}
    with (
        LeakCheck() as leaks,
        Node.start(runtime_dir=tmp_path / "a", **options) as one,
        Node.start(runtime_dir=tmp_path / "b", **options) as two,
    ):
        leaks.watch(one)
        leaks.watch(two)
        assert one.tree().find("tier:disk") is not None
        assert two.tree().find("tier:disk") is None
        two.load("stub", "stub", backend="stub")
        assert two.complete("stub", "x", max_tokens=1).tokens
