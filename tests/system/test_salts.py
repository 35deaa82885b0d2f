"""A salt through a whole node: cold beside others, warm again after a crash and a restart."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime import AsyncNode, Node, RequestOptions, errors
from tests.support.runtime_nodes import PROMPT, LeakCheck, Streaming, kill, pid_of, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

A, B = b"a" * 32, b"b" * 64
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Tell me a story about a fox."},
]


@pytest.fixture(scope="module")
def both(module_node: Node) -> Node:
    """A node with the stub and the embedded model."""
    module_node.load("stub", "stub", backend="stub", n_seq_max=8, n_ctx=16_384)
    module_node.client.ready("demo")
    return module_node


def warm(node: Node, prompt: str, salt: bytes | None = None) -> int:
    """How much of a prompt is warm; the one token with which all prompts begin does not count."""
    n_tokens = node.match_prefix("stub", prompt, salt=salt).n_tokens
    return n_tokens if n_tokens > 1 else 0


def test_a_warm_prompt_is_cold_with_another_salt_live_and_stored(both: Node) -> None:
    prompt = f"1 {PROMPT}"
    done = both.complete("stub", prompt, max_tokens=4, salt=A)
    n_tokens = done.usage.prompt_tokens
    for _ in ("live", "stored"):
        assert warm(both, prompt, A) >= n_tokens - 1
        assert (warm(both, prompt, B), warm(both, prompt)) == (0, 0)
        both.evict("stub")
    assert both.complete("stub", prompt, max_tokens=4, salt=B).usage.cached_tokens <= 1
    plain = both.complete("stub", prompt, options=RequestOptions(max_tokens=4))
    assert plain.usage.cached_tokens <= 1
    assert plain.text == done.text
    again = both.complete("stub", prompt, options=RequestOptions(max_tokens=4, salt=A))
    assert again.usage.cached_tokens >= n_tokens - 1
    with pytest.raises(errors.InvalidRequest, match="65 bytes"):
        both.complete("stub", prompt, salt=b"x" * 65)


def test_requests_at_once_compute_the_same_prompt_for_each_salt(both: Node) -> None:
    prompt = f"2 {PROMPT}" * 4
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(both.complete, "stub", prompt, max_tokens=4, salt=salt)
            for salt in (A, B, None)
        ]
        assert max(one.result().usage.cached_tokens for one in asked) <= 1


def test_sessions_and_finish_keys_are_those_of_a_salt(both: Node) -> None:
    done = both.complete("stub", "A fox.", session="s", max_tokens=4, salt=A)
    with pytest.raises(errors.InvalidRequest, match="nothing to continue"):
        both.continue_session("stub", "s", " And", max_tokens=2, salt=B)
    with pytest.raises(errors.InvalidRequest, match="nothing to continue"):
        both.complete("stub", " And", parent_key=done.finish_key, continues=True, max_tokens=2)
    more = {"parent_key": done.finish_key, "continues": True, "max_tokens": 2}
    assert both.complete("stub", " And", **more, salt=A).usage.prompt_tokens > 4
    assert both.continue_session("stub", "s", " And", max_tokens=2, salt=A).tokens
    assert not both.end_session("stub", "s", salt=B)
    assert not both.end_session("stub", "s")
    assert both.end_session("stub", "s", salt=A)


def test_conversations_of_other_salts_are_not_compared(both: Node) -> None:
    edited = [TALK[0], {"role": "user", "content": "Tell me a story about an owl."}]
    both.chat("demo", TALK, max_tokens=4, salt=A)
    for salt in (B, None):
        other = both.chat("demo", edited, max_tokens=4, salt=salt)
        assert other.cache.diverged is None
        assert other.usage.cached_tokens <= 1
    found = both.chat("demo", edited, max_tokens=4, salt=A).cache.diverged
    assert found is not None
    assert found.part in ("messages[1]", "messages[1].content")


def test_a_reply_comes_back_as_its_tokens_with_its_own_salt_only(both: Node) -> None:
    def replays() -> int:
        return int(both.model_info("demo").details["replays"])

    text = "Once upon a time there was a heron. " * 3
    text += both.complete("demo", text, max_tokens=12, salt=A).text
    before = replays()
    both.complete("demo", f"{text} And", max_tokens=2, salt=B)
    both.complete("demo", f"{text} And", max_tokens=2)
    assert replays() == before
    both.complete("demo", f"{text} And", max_tokens=2, salt=A)
    assert replays() == before + 1


@pytest.mark.parametrize("actor", ["model:stub", "inflight"])
def test_a_request_that_resumes_after_a_crash_keeps_its_salt(both: Node, actor: str) -> None:
    prompt = f"{actor} {PROMPT}"
    whole = both.complete("stub", prompt, max_tokens=1500, salt=B)
    stream = Streaming(both, "stub", 1500, prompt, salt=A)
    kill(pid_of(both, actor))
    resumed = stream.whole()
    assert resumed.tokens == whole.tokens
    pid_of(both, actor)
    assert warm(both, prompt, A) >= whole.usage.prompt_tokens - 1
    assert warm(both, prompt) == 0
    done = both.complete("stub", f"{prompt} {actor}", max_tokens=1)
    assert done.usage.cached_tokens <= 1


def becomes_warm(node: Node, n_tokens: int) -> None:
    """Wait until the disk is scanned."""
    eventually(
        lambda: warm(node, PROMPT, A) >= n_tokens, within_s=20, what="rows of the disk are found"
    )


def test_the_same_salt_is_warm_after_a_restart_and_others_are_cold(tmp_path: Path) -> None:
    with LeakCheck() as leaks:
        for cached in (0, len(PROMPT)):
            with started(tmp_path) as node:
                leaks.watch(node)
                node.load("stub", "stub", backend="stub")
                becomes_warm(node, cached)
                assert (warm(node, PROMPT, B), warm(node, PROMPT)) == (0, 0)
                done = node.complete("stub", PROMPT, max_tokens=4, salt=A)
                assert done.usage.cached_tokens >= cached


def test_the_asyncio_client_has_the_same_salts(both: Node, module_home: Path) -> None:
    prompt = f"3 {PROMPT}"

    async def work() -> None:
        async with AsyncNode.attach(both.port, runtime_dir=module_home / "run") as node:
            await node.complete("stub", prompt, max_tokens=2, salt=A, session="aio")
            assert (await node.match_prefix("stub", prompt, salt=A)).n_tokens >= len(prompt)
            assert (await node.match_prefix("stub", prompt, salt=B)).n_tokens <= 1
            assert not await node.end_session("stub", "aio", salt=B)
            assert await node.end_session("stub", "aio", salt=A)

    asyncio.run(work())
