"""A request answers the same alone and among others, read in one piece and in many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors import messages as m
from cache.policy import LivePolicy, LogitsPolicy
from native.backend import Backend
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
    """What the model is used to."""
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


def play(
    backend: Backend, *turns: list[m.Run], exact: m.Exact = m.Exact.REPEAT
) -> dict[str, Outcome]:
    def script() -> Script:
        for turn in turns:  # noqa: UP028 - a script is sent what came of each turn
            yield turn

    no_logits = LogitsPolicy(memory_bytes=0, row_share=0)
    return EngineRun(backend, policy=APART, logits=no_logits, exact=exact).play(script())


def texts(played: dict[str, Outcome]) -> dict[str, list[int]]:
    return {name: one.tokens for name, one in played.items()}


def test_eight_at_once_generate_what_each_generates_alone(path: Path) -> None:
    runs = requests(path, 8)
    alone = play(load(path), *[[run] for run in runs], exact=m.Exact.ALWAYS)
    together = play(load(path), runs, exact=m.Exact.ALWAYS)
    assert texts(together) == texts(alone)


@pytest.mark.parametrize("n_batch", [1, 16, 64])
def test_a_prompt_read_in_pieces_is_answered_as_in_one(path: Path, n_batch: int) -> None:
    runs = requests(path, 4)
    whole = play(load(path), *[[run] for run in runs])
    pieces = play(
        load(path, n_batch=n_batch, n_ubatch=n_batch, n_seq_max=1), *[[run] for run in runs]
    )
    assert texts(pieces) == texts(whole)
