"""A request answers the same alone and among others, read in one piece and in many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors import messages as m
from cache.policy import LivePolicy, LogitsPolicy
from native.backend import Backend, Batch
from native.llama import LlamaBackend
from native.params import ModelParams
from runtime.embedded import path as embedded_path
from tests.support.engine_runs import EngineRun, Outcome, Script, ask

pytestmark = pytest.mark.model
APART = LivePolicy(max_idle=0, min_tokens=100_000)
"""Nothing is shared, so that every request computes everything."""


@pytest.fixture(params=["tiny", "embedded"])
def path(request: pytest.FixtureRequest, tiny_gguf: Path) -> Path:
    return tiny_gguf if request.param == "tiny" else embedded_path()


def load(path: Path, **options: int) -> Backend:
    params = ModelParams(**({"n_ctx": 2048, "n_threads": 1} | options))  # type: ignore[arg-type]
    return LlamaBackend.load(path, params)


STORY = (
    "Once upon a time, there was a {} named {}. {} was very curious and lived in a warm {}. "
    "One day, {} wanted to go for a walk. The {} walked down the road and saw a tall tree."
)
WHO = ["dragon", "girl", "boy", "cat", "dog", "bird", "fox", "rabbit"]
NAMES = ["Pip", "Rose", "Tom", "Mia", "Max", "Ivy", "Oscar", "Lily"]


def requests(path: Path, n: int) -> list[m.Run]:
    """What the model is used to: random ids leave a trained model with nothing but near ties."""
    if path != embedded_path():
        rng = random.Random(7)
        prompts = [rng.choices(range(20, 200), k=rng.randint(5, 200)) for _ in range(n)]
    else:
        backend = load(path)
        prompts = []
        for i, (who, name) in enumerate(zip(WHO[:n], NAMES[:n], strict=True)):
            words = STORY.format(who, name, name, "house", name, who).split()
            prompts.append(backend.tokenize(" ".join(words[: 12 + 5 * i])))
        backend.close()
    return [ask(f"{i}", prompt, max_tokens=20) for i, prompt in enumerate(prompts)]


def play(backend: Backend, *turns: list[m.Run]) -> dict[str, Outcome]:
    def script() -> Script:
        for turn in turns:  # noqa: UP028 - a script is sent what came of each turn
            yield turn

    no_logits = LogitsPolicy(memory_bytes=0, row_share=0)
    return EngineRun(backend, policy=APART, logits=no_logits).play(script())


def differences(
    path: Path, runs: list[m.Run], some: dict[str, Outcome], others: dict[str, Outcome]
) -> int:
    """How many replies differ, each by a near tie: llama.cpp adds up in another order."""
    n = 0
    for run in runs:
        mine, theirs = some[run.request_id].tokens, others[run.request_id].tokens
        if mine == theirs:
            continue
        n += 1
        at = next(i for i, pair in enumerate(zip(mine, theirs, strict=False)) if len({*pair}) > 1)
        backend, batch = load(path), Batch()
        assert isinstance(run.request.prompt, m.TokenPrompt)
        assert isinstance(run.request.prompt.tokens, bytes)
        prompt = memoryview(run.request.prompt.tokens).cast("I").tolist()
        row = batch.extend_prefill([*prompt, *theirs[:at]], 0, 0, logits_last=True)
        assert row is not None
        backend.decode(batch)
        logits = backend.logits(row)
        backend.close()
        # Q8_0 rounds what it multiplies with, so a bit may become a hundredth.
        tie = 0.1 if path == embedded_path() else 0.01
        assert abs(logits[mine[at]] - logits[theirs[at]]) < tie, (run.request_id, at)
    return n


def test_eight_at_once_generate_what_each_generates_alone(path: Path) -> None:
    runs = requests(path, 8)
    alone = play(load(path), *[[run] for run in runs])
    together = play(load(path), runs)
    assert differences(path, runs, together, alone) <= 1


@pytest.mark.parametrize("n_batch", [1, 16, 64])
def test_a_prompt_read_in_pieces_is_answered_as_in_one(path: Path, n_batch: int) -> None:
    runs = requests(path, 4)
    whole = play(load(path), *[[run] for run in runs])
    pieces = play(
        load(path, n_batch=n_batch, n_ubatch=n_batch, n_seq_max=1), *[[run] for run in runs]
    )
    assert differences(path, runs, pieces, whole) <= 1
