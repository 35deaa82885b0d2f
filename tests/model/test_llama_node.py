"""Real llama.cpp under the tree: a hit is the same as cold, token for token."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from cache.policy import LivePolicy
from native.params import SamplingParams
from runtime import Node, PrefillEvent, errors
from runtime.client.cache.upkeep import is_flushed
from supervision.messages import Located, ReportStatus, StatusReported, WhereIs, new_ref
from tests.support.gguf_files import patch_number, tiny_llama
from tests.support.lora_files import tiny_lora
from tests.support.runtime_nodes import (
    PROMPT,
    LeakCheck,
    crowd_out,
    kill,
    one_thread,
    pid_of,
    started,
    status_of,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.model


@pytest.fixture
def node(emptied_node: Node) -> Node:
    return emptied_node


LONG = PROMPT * 3


def test_every_way_to_be_warm_answers_as_cold_does(node: Node, tiny_gguf: Path) -> None:
    """Prompts that end anywhere in a block, at temperature 0 and above it.

    Each in a fresh context: where free cells lie between others, the last bit of a logit differs,
    and above temperature 0 a draw may be at its edge.
    """
    for cut in (3, 63, 64, 65, 127, 128, 200, 511):
        for options in ({}, {"temperature": 0.9, "seed": cut}):
            prompt = f"{cut} {options} {LONG}"[:cut]
            answers = []
            for sources in (("none", "live"), ("ram",)):
                node.client.load("tiny", one_thread(tiny_gguf))
                for source in sources:
                    done = node.complete("tiny", prompt, max_tokens=24, **options)
                    n_prompt = done.usage.prompt_tokens
                    if answers:
                        short = n_prompt < LivePolicy().min_tokens
                        assert done.cache.source == ("ram" if short else source), done.cache
                        assert done.cache.hit.value == "exact", (cut, done.cache)
                        assert done.usage.cached_tokens >= n_prompt - 1
                    answers.append(done.tokens)
                    # The end is stored after the answer: the next one need not find it at once.
                    eventually(lambda: is_flushed(node.client), what="the end is stored")
                node.unload("tiny")
            assert answers[0] == answers[1] == answers[2], (cut, options)


def test_reuse_that_ends_inside_a_block_answers_as_cold_does(
    tiny_node: Node, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Compared with a node that caches nothing."""
    tiny_node.complete("tiny", LONG, max_tokens=40)
    prompts = [LONG[:cut] + "but then everything changed" for cut in (10, 70, 100, 300, 600)]
    with started(tmp_path / "cold", cache_ram=0, cache_disk=0) as cold_node:
        cold_node.client.load("tiny", one_thread(tiny_gguf))
        for prompt in prompts:
            warm = tiny_node.complete("tiny", prompt, max_tokens=24)
            crowd_out(cold_node, "tiny")
            cold = cold_node.complete("tiny", prompt, max_tokens=24)
            assert warm.cache.hit.value == "partial"
            assert warm.usage.cached_tokens >= len(prompt) // 8
            assert cold.usage.cached_tokens == 0
            assert warm.tokens == cold.tokens


def test_models_with_other_kv_types_never_share_rows(tiny_node: Node, tiny_gguf: Path) -> None:
    tiny_node.client.load("q8", one_thread(tiny_gguf, type_k="q8_0", type_v="q8_0"))
    tiny_node.client.load("same", one_thread(tiny_gguf, n_ctx=1024))
    tiny_node.complete("tiny", PROMPT, max_tokens=2)
    assert tiny_node.complete("q8", PROMPT, max_tokens=2).cache.hit.value == "cold"
    # A smaller context is no other namespace: the same file, build and types share their rows.
    assert tiny_node.complete("same", PROMPT, max_tokens=2).cache.hit.value == "exact"


def test_a_salt_separates_what_nodes_store(tiny_gguf: Path, tmp_path: Path) -> None:
    from runtime import RuntimeConfig

    hits = []
    for salt in ("", "tenant", ""):
        with (
            LeakCheck() as leaks,
            started(tmp_path, config=RuntimeConfig(cache_salt=salt), port=None) as node,
        ):
            leaks.watch(node)
            node.client.load("tiny", one_thread(tiny_gguf))
            eventually(
                lambda n=node: set(status_of(n, "cache_meta")["scanned"]) == {"ram", "disk"},
                what="the tiers were scanned",
            )
            hits.append(node.complete("tiny", PROMPT, max_tokens=2).cache.source)

            def persisted(n: Node = node) -> bool:
                return is_flushed(n.client)

            eventually(persisted, what="rows are on disk")
    assert hits == ["none", "none", "disk"]


def test_many_streams_at_once_answer_as_one_alone_does(tiny_node: Node) -> None:
    prompts = [f"story {index}: {PROMPT}" for index in range(6)]

    def answer(prompt: str) -> tuple[int, ...]:
        return tiny_node.complete("tiny", prompt, max_tokens=16, exact="always").tokens

    alone = [answer(prompt) for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answer, prompts)) == alone


@pytest.fixture(scope="module")
def slow_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights again, but wide enough that a long prompt takes seconds."""
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    return tiny_llama(path, n_layer=8, n_embd=512, n_head=8, n_kv=8, n_ff=1536)


@pytest.mark.parametrize("arch", ["llama", "mamba", "gemma3"])
def test_several_replies_read_their_prompt_once_on_every_kind_of_memory(
    node: Node, tmp_path: Path, arch: str
) -> None:
    """Shared cells, or the stored state of the first one."""
    path = tiny_llama(tmp_path / "model.gguf", arch=arch)
    node.client.load("x", one_thread(path, n_ctx=2048))
    prompt = list(range(5, 300))
    hot: dict[str, Any] = {"max_tokens": 5, "temperature": 1.0, "exact": "always"}
    done = node.complete_many("x", prompt, n=4, seed=8, **hot)
    assert all(one.usage.cached_tokens >= len(prompt) - 1 for one in done[1:])
    assert done[0].usage.cached_tokens == 0
    alone = [node.complete("x", prompt, seed=8 + i, **hot) for i in range(4)]
    assert [one.tokens for one in done] == [one.tokens for one in alone]


def test_status_answers_within_100_ms_while_the_model_prefills(node: Node, slow_gguf: Path) -> None:
    node.client.load("slow", one_thread(slow_gguf, n_ctx=8192))
    prefilling, finished = threading.Event(), threading.Event()

    def work() -> None:
        for event in node.stream("slow", list(range(5, 205)) * 12, max_tokens=1):
            if isinstance(event, PrefillEvent):
                prefilling.set()
        finished.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert prefilling.wait(30)
    line, times, idle = node.connection, [], []
    while not finished.is_set() and len(times) < 200:
        for actor, taken in (("model:slow", times), ("registry", idle)):
            started_at = time.perf_counter()
            answer = line.ask(actor, ReportStatus(new_ref()), timeout_s=30)
            taken.append(time.perf_counter() - started_at)
            assert isinstance(answer, StatusReported)
    was_busy = not finished.is_set() or len(times) >= 10
    thread.join()
    assert was_busy
    times.sort()
    idle.sort()
    # The median, and nearly all. What a busy machine adds, an actor without work shows.
    for share in (0.5, 0.9):
        at = int(len(times) * share)
        assert times[at] < 0.1 + 3 * idle[at], (times[at], idle[at])


def test_cancelling_a_long_prefill_frees_the_model_at_once(node: Node, slow_gguf: Path) -> None:
    node.client.load("slow", one_thread(slow_gguf, n_ctx=8192, n_batch=2048))
    stream = node.stream("slow", list(range(5, 205)) * 30, max_tokens=1)
    for event in stream:
        assert isinstance(event, PrefillEvent)
        break
    stream.close()
    eventually(
        lambda: status_of(node, "model:slow")["running"] == 0, what="the abandoned request is gone"
    )
    # At the end of its prompt it would have generated its token.
    assert status_of(node, "model:slow")["tokens_generated"] == 0
    assert node.complete("slow", [7, 8, 9], max_tokens=2).tokens


def test_raw_messages_reach_a_model_by_its_address(tiny_node: Node) -> None:
    line = tiny_node.connection
    found = line.ask("registry", WhereIs(new_ref(), "model:tiny"), timeout_s=30)
    assert isinstance(found, Located)
    assert found.entry.address is not None
    request = m.Complete(
        ref=new_ref(),
        model="tiny",
        prompt=m.TextPrompt(PROMPT),
        max_tokens=5,
        sampling=SamplingParams(temperature=0.7, seed=3),
    )
    seen: list[object] = []
    for message in line.stream(found.entry.address, request, idle_timeout_s=30):
        seen.append(message)
        # Inflight accepts and the model delivers: two processes, so in either order.
        if {type(one) for one in seen} >= {m.Accepted, m.Completed}:
            break
        assert not isinstance(message, m.CompletionFailed)
    (completed,) = (one for one in seen if isinstance(one, m.Completed))
    assert completed.usage.completion_tokens == 5
    assert {getattr(message, "ref", None) for message in seen} == {request.ref}


# ── files that are not models ────────────────────────────────────────────────────────────────


def test_files_that_are_no_models_are_refused_and_the_node_continues(
    tiny_node: Node, tiny_gguf: Path, tmp_path: Path
) -> None:
    whole = tiny_gguf.read_bytes()
    text = tmp_path / "text.gguf"
    text.write_text("This is no model.\n" * 500)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    for path, kind in (
        (tmp_path / "none.gguf", "ModelNotFound"),
        (tmp_path, "NotAGguf"),
        (text, "NotAGguf"),
        (cut, "TruncatedGguf"),
    ):
        with pytest.raises(errors.ModelLoadFailed) as caught:
            tiny_node.load("bad", path)
        assert str(path) in str(caught.value)
        if kind != "NotAGguf" or path == text:
            assert caught.value.kind == kind
    assert tiny_node.complete("tiny", "still here", max_tokens=2).tokens
    assert [model.id for model in tiny_node.models()] == ["tiny"]


def test_a_malformed_model_kills_only_the_process_that_tried(
    tiny_node: Node, tmp_path: Path
) -> None:
    bad = tiny_llama(tmp_path / "bad.gguf")
    patch_number(bad, "llama.attention.head_count", 0)
    with pytest.raises(errors.ModelLoadFailed):
        tiny_node.load("bad", bad)
    assert tiny_node.complete("tiny", "still here", max_tokens=2).tokens
    assert tiny_node.tree().find("model:bad") is None
    tiny_node.load("bad", tiny_llama(tmp_path / "good.gguf"))  # the id is free


# ── rows that are wrong ──────────────────────────────────────────────────────────────────────


def test_a_rotten_file_is_quarantined_and_costs_only_time(tiny_gguf: Path, tmp_path: Path) -> None:
    def settled(n: Node) -> bool:
        return is_flushed(n.client)

    with started(tmp_path) as node:
        node.client.load("tiny", one_thread(tiny_gguf))
        cold = node.complete("tiny", LONG, max_tokens=8)
        eventually(lambda: settled(node), what="rows are on disk")
    rows = sorted((tmp_path / "cache").rglob("*.kvb"))
    assert len(rows) > 4
    for path in rows:
        data = bytearray(path.read_bytes())
        data[-5] ^= 0x40  # one bit of the payload of each
        path.chmod(0o600)
        path.write_bytes(data)
    with started(tmp_path) as node:
        node.client.load("tiny", one_thread(tiny_gguf))
        eventually(
            lambda: "disk" in status_of(node, "cache_meta")["scanned"], what="disk was scanned"
        )
        done = node.complete("tiny", LONG, max_tokens=8)
        assert done.tokens == cold.tokens
        assert done.usage.cached_tokens == 0
        assert done.cache.miss_reason == "row_rejected"
        eventually(
            lambda: any((tmp_path / "cache").rglob("quarantine/*.kvb")), what="it is kept aside"
        )
        again = node.complete("tiny", LONG, max_tokens=8)
        assert again.tokens == cold.tokens
        assert again.usage.cached_tokens > 0  # saved again at once


def test_the_budget_of_the_ram_tier_holds_while_models_fill_it(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    with started(tmp_path, cache_ram="1MiB", cache_disk=0) as node:
        node.client.load("tiny", one_thread(tiny_gguf))
        for index in range(12):
            node.complete("tiny", f"{index} {LONG}", max_tokens=4)
            ram = status_of(node, "cache_meta")["tiers"]["ram"]
            assert ram["used_bytes"] <= ram["budget_bytes"] <= 1 << 20
        eventually(lambda: is_flushed(node.client), what="the ends of replies are stored")
        meta = status_of(node, "cache_meta")
        assert meta["evictions"] > 0
        assert meta["leases"] == meta["reservations"] == 0


def test_a_node_without_any_cache_still_answers(tiny_gguf: Path, tmp_path: Path) -> None:
    with started(tmp_path, cache_ram=0, cache_disk=0) as node:
        node.client.load("tiny", one_thread(tiny_gguf))
        for prompt in (PROMPT, PROMPT[5:]):
            done = node.complete("tiny", prompt, max_tokens=4)
            assert done.cache.miss_reason == "cache_off"
            assert len(done.tokens) == 4
        assert node.complete("tiny", PROMPT, max_tokens=4).cache.source == "live"


def test_a_killed_model_is_restarted_and_finds_its_rows(tiny_node: Node) -> None:
    cold = tiny_node.complete("tiny", LONG, max_tokens=8)
    for _ in range(3):
        eventually(lambda: is_flushed(tiny_node.client), what="the end is stored")
        # Else the reply that came just now runs again, as inflight does not know that it has ended.
        eventually(lambda: status_of(tiny_node, "inflight")["in_flight"] == 0, what="it has ended")
        kill(pid_of(tiny_node, "model:tiny"))
        warm = tiny_node.complete("tiny", LONG, max_tokens=8)
        assert warm.tokens == cold.tokens
        assert warm.cache.hit.value == "exact"
        assert warm.cache.source == "ram"


def test_a_stored_prompt_gives_its_first_token_without_a_decode(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    """Its logits lie in the last row, in RAM for another process and on disk for another node."""
    options = {"max_tokens": 1, "temperature": 1.0, "seed": 5}
    with started(tmp_path) as node:
        node.client.load("tiny", one_thread(tiny_gguf))
        cold = node.complete("tiny", LONG, **options)
        assert cold.usage.cached_tokens == 0
        eventually(lambda: is_flushed(node.client), what="the end is stored")
        kill(pid_of(node, "model:tiny"))
        warm = node.complete("tiny", LONG, **options)
        assert (warm.cache.source, warm.cache.hit.value) == ("ram", "exact")
        assert warm.usage.cached_tokens == warm.usage.prompt_tokens  # nothing was left to decode
        assert warm.tokens == cold.tokens
        eventually(lambda: is_flushed(node.client), what="rows are on disk")
    with started(tmp_path) as node:
        node.client.load("tiny", one_thread(tiny_gguf))
        eventually(
            lambda: "disk" in status_of(node, "cache_meta")["scanned"], what="disk was scanned"
        )
        again = node.complete("tiny", LONG, **options)
        assert (again.cache.source, again.cache.hit.value) == ("disk", "exact")
        assert again.usage.cached_tokens == again.usage.prompt_tokens
        assert again.tokens == cold.tokens
        longer = node.complete("tiny", LONG + " and so on", max_tokens=4)
        assert longer.usage.cached_tokens >= cold.usage.prompt_tokens - 2


def test_loading_notes_a_long_context_and_names_files_that_are_no_models(
    node: Node, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Notes on the context, and files that are no models, by name and with what to do."""
    params = {"n_threads": 1, "n_ctx": 9000}
    status = node.load("long", tiny_gguf, **params)
    try:
        assert len(status.notes) == 1
        assert "n_ctx 9000 is more than the 8192 tokens" in status.notes[0]
        adapter = tiny_lora(tmp_path / "lora.gguf")
        with pytest.raises(errors.ModelLoadFailed, match="this is a LoRA adapter") as refused:
            node.load("lora", adapter)
        assert refused.value.kind == "NotAModel"
        with pytest.raises(errors.InvalidRequest, match="it is a model, not an adapter"):
            node.load_adapter("long", tiny_gguf)
        with pytest.raises(errors.ModelLoadFailed, match="this is a LoRA adapter"):
            node.load("draft", tiny_gguf, draft_path=str(adapter), n_threads=1)
        with pytest.raises(errors.ModelLoadFailed, match="it is a model, not an adapter"):
            node.load("lora", tiny_gguf, lora=[[str(tiny_gguf), 1.0]], n_threads=1)
    finally:
        node.unload("long")
