"""Stepping aside on real libllama, for memory that can be cut and memory that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import messages as m
from cache import tokens as token_bytes
from cache.policy import SAVE_ALL, LivePolicy
from native.backend import Backend
from native.llama import LlamaBackend
from native.params import ModelParams, SamplingParams
from runtime.embedded import path as embedded_path
from tests.support.cached_engine import CALLER, Cache, CachedEngine
from tests.support.gguf_files import ARCHITECTURES, tiny_llama

pytestmark = pytest.mark.model

N_CTX = 512
APART = LivePolicy(max_idle=0)
LONG = [32 + (i * 37 + i * i) % 90 for i in range(70)]
OTHER = [33 + (i * 41 + i * i) % 90 for i in range(400)]


@pytest.fixture(params=["embedded", *ARCHITECTURES])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "embedded":
        return embedded_path()
    n_layer = 6 if request.param == "gemma3" else 4
    return tiny_llama(tmp_path / "tiny.gguf", arch=request.param, n_layer=n_layer)


def load(path: Path) -> Backend:
    return LlamaBackend.load(path, ModelParams(n_ctx=N_CTX, n_threads=1))


def asked(
    backend: Backend, name: str, prompt: list[int], max_tokens: int, priority: m.Priority
) -> m.Run:
    """A request that ends by its number of tokens only."""
    never = tuple((token, float("-inf")) for token in sorted(backend.info.eog_tokens))
    sampling = SamplingParams(temperature=0.8, seed=3, logit_bias=never)
    text = m.TokenPrompt(token_bytes.pack(prompt))
    complete = m.Complete(
        name, "m", text, max_tokens=max_tokens, sampling=sampling, priority=priority
    )
    return m.Run(name, CALLER, complete)


def slow(backend: Backend) -> m.Run:
    return asked(backend, "slow", LONG, 150, m.Priority.BACKGROUND)


def quick(backend: Backend) -> m.Run:
    return asked(backend, "quick", OTHER, 4, m.Priority.INTERACTIVE)


def test_a_reply_that_stepped_aside_goes_on_as_if_it_had_not(path: Path, tmp_path: Path) -> None:
    """It is alone in every step, before and after, so that all of it is computed as alone."""
    cache = Cache(tmp_path / "arena")
    with CachedEngine(cache, save=SAVE_ALL, live=APART, backend=load(path), name="model:a") as one:
        one.commands.put(slow(one.backend))
        one.ends(1)
        expected = one.said["slow"]
        assert one.engine.counts()["steps_aside"] == 0
    (tmp_path / "second").mkdir()
    cache = Cache(tmp_path / "second" / "arena")
    is_asked: list[bool] = []
    rows = 0

    def on_event(engine: CachedEngine, message: object) -> None:
        is_slow = isinstance(message, m.TokensDelivered) and message.ref == "slow"
        if is_slow and message.index >= 50 and not is_asked:
            is_asked.append(True)
            engine.commands.put(quick(engine.backend))

    backend = load(path)
    decode = backend.decode

    def counted(batch: object) -> None:
        nonlocal rows
        decode(batch)  # type: ignore[arg-type]
        rows += len(batch)  # type: ignore[arg-type]

    backend.decode = counted  # type: ignore[method-assign]
    with CachedEngine(
        cache, save=SAVE_ALL, live=APART, backend=backend, on_event=on_event
    ) as engine:
        engine.commands.put(slow(engine.backend))
        ends = engine.ends(2)
        assert engine.engine.counts()["steps_aside"] == 1
    assert not [one for one in ends.values() if isinstance(one, m.CompletionFailed)]
    assert rows == 70 + 149 + 400 + 3, "what was computed before is not computed again"
    assert engine.said["slow"] == expected
