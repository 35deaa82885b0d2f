"""A real model's reply resumes after an interruption as if it had not been, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors.messages.exact import Exact
from actors.messages.journal import Noted
from native import load_backend
from native.backend import Backend
from native.params import ModelParams
from runtime.embedded import path as embedded_model_path
from tests.support.resume_runs import request, run, runs

pytestmark = pytest.mark.model

PROMPT = "Once upon a time there was a little dog. " * 8
WAYS: list[dict[str, object]] = [
    {},
    {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.2, "seed": 3},
]


@pytest.fixture
def fresh() -> Iterator[list[Backend]]:
    """Backends that a test loads; the engine of each run closes its own."""
    loaded: list[Backend] = []
    yield loaded
    for backend in loaded:
        backend.close()


def backend(loaded: list[Backend]) -> Backend:
    params = ModelParams(n_ctx=2048, n_threads=1, n_seq_max=4)
    made = load_backend("llama", str(embedded_model_path()), params)
    loaded.append(made)
    return made


@pytest.mark.parametrize("sampling", WAYS, ids=["greedy", "seeded"])
def test_a_reply_resumes_with_the_same_text_though_all_of_it_is_read_again(
    fresh: list[Backend], sampling: dict[str, object]
) -> None:
    asked = request(PROMPT, max_tokens=150, sampling=sampling, exact=Exact.PREFIX)
    whole = run(backend(fresh), asked)
    assert len(whole.noted.prompt) > 64
    n_said = len(whole.noted.accepted)
    assert n_said > 80
    for k in sorted({0, 1, 2, 63, 64, 65, n_said - 1, n_said}):
        left = Noted(whole.noted.prompt, whole.noted.accepted[:k])
        assert run(backend(fresh), asked, left).facts == whole.facts


def test_four_replies_resume_at_once_beside_a_new_prompt(fresh: list[Backend]) -> None:
    asked = [
        request(f"{PROMPT} {n}", max_tokens=130, sampling=WAYS[n % 2], exact=Exact.ALWAYS)
        for n in range(4)
    ]
    whole = [run(backend(fresh), one) for one in asked]
    left = [
        Noted(one.noted.prompt, one.noted.accepted[: 70 + 9 * n]) for n, one in enumerate(whole)
    ]
    again = runs(backend(fresh), list(zip(asked, left, strict=True)))
    assert [one.facts for one in again] == [one.facts for one in whole]
