"""What each level of exactness promises: all logits of a reply are the same bytes in every way.

Small models of the kinds that are computed differently: weights that kernels take in groups of four
rows (Q4_K), of eight or more (Q6_K), in single rows (Q8_0), as float32; plain attention, sliding
windows, recurrent and hybrid memory, experts; float16 and quantised KV. The benchmark ``exactness``
has the same ways on published and on large models, and more positions of each reply.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from native.params import ModelParams
from runtime.embedded import path as embedded_path
from tests.support.exactness import Lab, Subject
from tests.support.exactness_ways import WAYS, Way
from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=4096, n_threads=2)
SHAPES: dict[str, dict[str, int | str]] = {
    "q4_k": {"qtype": "Q4_K"},
    "q4_0": {"qtype": "Q4_0", "n_kv": 1},
    "f32": {"qtype": "F32", "n_head": 2},
    "q6_k": {"qtype": "Q6_K"},
    "window": {"qtype": "Q4_K", "arch": "gemma3", "n_layer": 6},
    "experts": {"qtype": "Q6_K", "arch": "gpt-oss"},
    "recurrent": {"qtype": "Q4_K", "arch": "mamba"},
    "hybrid": {"qtype": "Q4_K", "arch": "jamba", "n_layer": 4},
}
ALL_WAYS_ON = ("q4_k", "f16")
FEW = (
    "cold, n_batch 77",
    "repeat, ram",
    "next turn, disk",
    "333 tokens shared, ram",
    "resumed at 35%, blocks stored",
    "cells of dropped sequences",
    "3 in company",
    "next turn as cold, ram",
)
OTHERS = (
    ("embedded", "f16"),
    ("embedded", "q8_0"),
    ("q4_k", "q8_0"),
    ("q4_0", "f16"),
    ("f32", "f16"),
    ("q6_k", "f16"),
    ("window", "f16"),
    ("experts", "f16"),
    ("recurrent", "f16"),
    ("hybrid", "f16"),
    ("hybrid", "q8_0"),
)


class Labs:
    """One lab for each model and type of KV, made at first use."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._made: dict[tuple[str, str], Lab] = {}

    def of(self, model: str, kv: str) -> Lab:
        if (model, kv) not in self._made:
            params = replace(PARAMS, type_k=kv, type_v=kv)
            path = embedded_path() if model == "embedded" else self._written(model)
            subject = Subject(model, path, params, reads_text=model == "embedded")
            self._made[model, kv] = Lab(subject, self._home, n_reply=24)
        return self._made[model, kv]

    def _written(self, model: str) -> Path:
        path = self._home / f"{model}.gguf"
        if not path.exists():
            tiny_llama(path, **({"n_embd": 256, "n_ff": 512} | SHAPES[model]))
        return path


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Labs:
    return Labs(tmp_path_factory.mktemp("exactness"))


def cases(level: str) -> list[object]:
    """Every way of the level on one model, some on all others."""
    found = [(ALL_WAYS_ON, way) for way in WAYS if way.level == level]
    found += [(other, way) for other in OTHERS for way in WAYS if way.name in FEW]
    return [
        pytest.param(model, kv, way, id=f"{model}-{kv}-{way.id}")
        for (model, kv), way in found
        if way.level == level
    ]


@pytest.mark.parametrize(("model", "kv", "way"), cases("repeat"))
def test_at_repeat_every_way_gives_the_same_bits(labs: Labs, model: str, kv: str, way: Way) -> None:
    """A request alone, cold or warm from any tier; a next turn as in the live sequence."""
    found = way.run(labs.of(model, kv))
    assert found.is_exact, str(found)


@pytest.mark.parametrize(("model", "kv", "way"), cases("prefix"))
def test_at_prefix_every_way_gives_the_same_bits(labs: Labs, model: str, kv: str, way: Way) -> None:
    """Besides: a shared beginning, a resumed reply, idle sequences in the pool."""
    found = way.run(labs.of(model, kv))
    assert found.is_exact, str(found)


@pytest.mark.parametrize(("model", "kv", "way"), cases("always"))
def test_at_always_every_way_gives_the_same_bits(labs: Labs, model: str, kv: str, way: Way) -> None:
    """Besides: company in the batch, guesses, a next turn as if it were read cold."""
    found = way.run(labs.of(model, kv))
    assert found.is_exact, str(found)


def test_a_way_that_is_not_exact_is_seen(labs: Labs) -> None:
    """A reply whose prompt differs in its first token has other logits at every position."""
    lab = labs.of(*ALL_WAYS_ON)
    other = lab.with_reply((lab.prompt[0] + 1, *lab.prompt[1:]), 0)
    with lab.folder():
        trace = lab.cold("repeat")[lab.prompt]
        with lab.desk("repeat", against={other: trace}) as desk:
            desk.ask("other", other, lab.n_reply)
            found = lab.agreement(desk, other)
    assert (found.same, found.positions, found.first) == (0, lab.n_reply, 0)
    assert found.largest > 0
