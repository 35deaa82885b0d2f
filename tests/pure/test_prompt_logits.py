"""Kept logits: bounded memory, exact bytes, and the token the backend would choose."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.kv import prompt_logits
from cache.errors import InvalidPolicy
from cache.policy import LogitsPolicy
from native.backend import Batch
from native.params import ModelParams, SamplingParams
from native.stub import StubBackend

pytestmark = pytest.mark.pure


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=40))
def test_the_memory_keeps_what_was_used_last_within_its_limit(puts: list[tuple[int, int]]) -> None:
    memory, latest = prompt_logits.logits_memory(200), []
    for name, n in puts:
        key = bytes([name])
        memory.put(key, array("f", [float(n)] * n))
        latest = [one for one in latest if one[0] != key] + [(key, n)]
    held = {key: n for key, n in latest if memory.get(key) is not None}
    assert 4 * sum(held.values()) <= 200
    assert len(memory) == len(held)
    newest_first = list(reversed(latest))
    kept = [key in held for key, _ in newest_first]
    assert kept == sorted(kept, reverse=True)  # nothing older outlived something newer
    if latest:
        assert kept[0]


def test_logits_lie_behind_the_kv_and_only_a_whole_vocabulary_counts() -> None:
    logits = array("f", [1.5, -0.0, 3.4e38, 1e-45])
    payload = memoryview(b"k" * 10 + prompt_logits.append_logits(7, logits))
    n_tokens, found = prompt_logits.read(payload, 10, 4) or (0, array("f"))
    assert n_tokens == 7
    assert found.tobytes() == logits.tobytes()
    assert prompt_logits.read(payload, 10, 3) is None
    assert prompt_logits.read(payload[:10], 10, 4) is None


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(temperature=0.8, seed=3),
        SamplingParams(temperature=1.5, seed=4, top_k=9, repetition_penalty=1.1),
        SamplingParams(temperature=1.0, seed=5, top_p=0.7, min_p=0.01),
    ],
)
def test_kept_logits_choose_what_the_backend_chooses(sampling: SamplingParams) -> None:
    backend, batch = StubBackend.load("stub", ModelParams()), Batch()
    prompt = [7, 65, 80, 65, 12]
    row = batch.extend_prefill(prompt, 0, 0, logits_last=True)
    assert row is not None
    backend.decode(batch)
    kept = backend.logits(row)
    before = kept.tobytes()
    expected = backend.sample(row, backend.new_sampler(sampling, prompt), 0)
    assert backend.sample_from(kept, backend.new_sampler(sampling, prompt), 0) == expected
    assert kept.tobytes() == before  # a penalty for one request is none for the next


def test_logits_are_stored_only_beside_enough_new_kv() -> None:
    policy = LogitsPolicy(row_share=1 / 32)
    assert policy.stores(128_000, 32 * 128_000)
    assert not policy.stores(128_000, 32 * 128_000 - 1)
    assert not policy.stores(1, 0)
    with pytest.raises(InvalidPolicy, match="row_share"):
        LogitsPolicy(row_share=2)
    with pytest.raises(InvalidPolicy, match="memory_bytes"):
        LogitsPolicy(memory_bytes=-1)
