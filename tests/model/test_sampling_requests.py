"""Sampling as a caller meets it: through a model's engine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.messages.logprob_records import unpack
from cache import tokens as token_bytes
from native import ModelParams, SamplingParams
from native.llama import LlamaBackend
from native.stub import StubBackend
from tests.support.engine_runs import EngineRun, Outcome, Script, run

pytestmark = pytest.mark.model

PROMPT = [32 + (i * 37) % 90 for i in range(50)]


Load = Callable[[], LlamaBackend]


@pytest.fixture
def load(tiny_gguf: Path) -> Load:
    """An engine closes its backend, so each gets one of its own."""

    def fresh() -> LlamaBackend:
        params = ModelParams(n_ctx=1024, n_batch=256, n_threads=1)
        return LlamaBackend.load(tiny_gguf, params)

    return fresh


def play(engine: EngineRun, *rounds: list[m.Run]) -> dict[str, Outcome]:
    def script() -> Script:
        for commands in rounds:  # noqa: UP028 - a tuple has no send()
            yield commands

    return engine.play(script())


def asked(name: str, prompt: list[int] = PROMPT, n: int = 8, **sampling: Any) -> m.Run:
    return run(name, prompt, max_tokens=n, sampling=SamplingParams(**sampling))


def test_a_request_that_cannot_be_sampled_fails_alone_with_a_reason(load: Load) -> None:
    stuck = {"grammar": 'root ::= "a" [z-a]'}
    others = random.Random(1).choices(range(32, 120), k=20)
    got = play(
        EngineRun(load()),
        [
            asked("good", others, 12),
            asked("bad", grammar="root ::= root"),
            asked("unknown", logit_bias=((512, 1.0),)),
            asked("stuck", **stuck),
            asked("left", logit_bias=tuple((t, -math.inf) for t in range(300))),
        ],
    )
    assert got["good"].done is not None
    assert len(got["good"].tokens) == 12
    for name, why in (
        ("bad", "left recursion"),
        ("unknown", "512"),
        ("stuck", "grammar"),
    ):
        failed = got[name].failed
        assert failed is not None, name
        assert failed.reason is m.FailReason.INVALID_REQUEST
        assert why in failed.detail
    assert got["left"].done is not None, "some tokens were left"


def test_the_stub_refuses_what_it_cannot_do() -> None:
    got = play(EngineRun(StubBackend.load("stub", ModelParams())), [asked("a", json_schema="{}")])
    assert got["a"].failed is not None
    assert got["a"].failed.reason is m.FailReason.INVALID_REQUEST
    assert "no grammars" in got["a"].failed.detail


class Heard:
    """The events of the requests of one engine."""

    def __init__(self) -> None:
        self.events: dict[str, list[m.TokensDelivered]] = {}

    def __call__(self, _: EngineRun, message: object) -> None:
        if isinstance(message, m.TokensDelivered):
            self.events.setdefault(message.ref, []).append(message)

    def logprobs(self, name: str) -> list[Any]:
        found: list[Any] = []
        for event in self.events[name]:
            n = len(event.tokens) // token_bytes.TOKEN_BYTES
            ones = unpack(event.logprobs, n)
            assert len(ones) == n
            found += ones
        return found


def test_every_token_comes_with_its_logprobs(load: Load) -> None:
    heard = Heard()
    hot = {"temperature": 1.5, "seed": 4, "logit_bias": ((511, -math.inf),)}  # 511 ends a reply
    got = play(
        EngineRun(load(), on_event=heard),
        [asked("two", n=30, n_logprobs=2, **hot)],
        [asked("none", n=30, n_logprobs=0, **hot), asked("off", n=30, **hot)],
    )
    tokens = got["two"].tokens
    assert got["none"].tokens == got["off"].tokens == tokens
    assert all(not event.logprobs for event in heard.events["off"])
    two, none = heard.logprobs("two"), heard.logprobs("none")
    assert len(two) == len(none) == 30
    assert all(one.top == () for one in none)
    assert all(len(one.top) == 2 and one.top[0][1] >= one.top[1][1] >= -20 for one in two)
    assert any(one.chosen < one.top[0][1] for one in two), "at this heat not always the likeliest"
    assert [one.chosen for one in two] == pytest.approx([one.chosen for one in none], abs=0.01)


SEEDED: dict[str, Any] = {
    "temperature": 1.1, "seed": 9, "top_k": 60, "typical_p": 0.95, "repetition_penalty": 1.2,
    "presence_penalty": 0.3, "dry_multiplier": 0.5, "xtc_probability": 0.4, "xtc_threshold": 0.02,
    "logit_bias": ((65, 2.0), (66, -math.inf)),
}  # fmt: skip


def test_a_seed_gives_one_text_alone_in_company_warm_and_resumed() -> None:
    """On the stub, whose numbers do not depend on who shares a batch: the sampler's own law."""

    def stub() -> StubBackend:
        return StubBackend.load("stub", ModelParams(n_ctx=2048))

    alone = play(EngineRun(stub()), [asked("a", n=40, **SEEDED)])["a"].tokens
    assert len(set(alone)) > 10
    crowd = [
        asked("b", random.Random(i).choices(range(32, 120), k=30), 40, temperature=1.0, seed=i)
        for i in range(3)
    ]
    named = [m.Run(f"b{i}", one.reply_to, one.request) for i, one in enumerate(crowd)]
    engine = EngineRun(stub())
    got = play(engine, [*named, asked("a", n=40, **SEEDED)], [asked("warm", n=40, **SEEDED)])
    assert got["a"].tokens == alone
    assert got["warm"].tokens == alone
    assert got["warm"].reused == len(PROMPT), "its first token came from kept logits"
    for at in (1, 7, 39):
        resumed = run(
            "r", PROMPT, max_tokens=40, sampling=SamplingParams(**SEEDED),
            delivered=token_bytes.pack(alone[:at]),
        )  # fmt: skip
        assert play(EngineRun(stub()), [resumed])["r"].tokens == alone


def test_kept_logits_obey_grammar_bias_and_penalties(load: Load) -> None:
    """An exact repeat decodes nothing for its first token, and chooses as if it had."""
    ways: list[dict[str, Any]] = [
        {},
        {"grammar": 'root ::= "x" [a-z]*'},
        {"grammar": 'root ::= "yes" | "no"', "temperature": 1.0, "seed": 2},
        {"repetition_penalty": 90.0},
        {"logit_bias": ((70, 100.0),), "temperature": 1.0},
        {"temperature": 1.0, "mirostat": 2, "seed": 3},
    ]
    cold = [play(EngineRun(load()), [asked("a", n=1, **way)])["a"].tokens for way in ways]
    engine = EngineRun(load())
    rounds = [[asked(str(number), n=1, **way)] for number, way in enumerate(ways)]
    warm = play(engine, [asked("first", n=1)], *rounds)
    assert [warm[str(i)].tokens for i in range(len(ways))] == cold
    assert engine.rows_decoded == len(PROMPT)
