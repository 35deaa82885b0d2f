"""Texts that replace metadata and place tensors, and what an estimate makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native.errors import InvalidParam
from native.estimate import estimate
from native.gguf_header import GgufSummary, TensorFacts
from native.overrides import EXPERTS, buffer_of, check_kinds, metadata_overrides, with_overrides
from native.params import ModelParams

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=int:-9223372036854775808", -(1 << 63)),
        ("a.b=float:1e-3", 0.001),
        ("a.b=bool:true", True),
        ("a.b=str:", ""),
        ("a.b=str:x=y:z", "x=y:z"),
    ],
)
def test_metadata_is_read_with_its_type(text: str, value: object) -> None:
    (one,) = ModelParams(override_kv=(text,)).metadata_overrides
    assert (one.key, one.value, type(one.value)) == ("a.b", value, type(value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "KEY=TYPE:VALUE"),
        ("a", "KEY=TYPE:VALUE"),
        ("a=1", "KEY=TYPE:VALUE"),
        ("=int:1", "KEY=TYPE:VALUE"),
        ("a=uint:1", "one of int, float, bool, str"),
        ("a=int:1.5", "whole number"),
        ("a=int:9223372036854775808", "64 bits"),
        ("a=int: 1", "whole number"),
        ("a=float:inf", "finite"),
        ("a=float:x", "finite"),
        ("a=bool:yes", "true or false"),
        ("a=str:" + "é" * 64, "127 bytes"),
        ("k" * 128 + "=int:1", "127 bytes"),
        ("a=str:\n", "printable"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(InvalidParam, match=words) as caught:
        ModelParams(override_kv=(text,))
    assert (caught.value.name, caught.value.value) == ("override_kv", text)


@pytest.mark.parametrize("value", [None, "a=int:1", [1], ["a=int:1"] * 65, {"a": 1}])
def test_lists_of_other_things_are_refused(value: Any) -> None:
    for name in ("override_kv", "override_tensors"):
        with pytest.raises(InvalidParam) as caught:
            ModelParams(**{name: value})
        assert caught.value.name == name


def test_a_key_has_one_value() -> None:
    with pytest.raises(InvalidParam, match="a has two"):
        ModelParams(override_kv=("a=int:1", "b=int:1", "a=int:2"))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), unique_by=lambda one: one[0]))
def test_what_is_read_is_written_as_it_was_given(pairs: list[tuple[str, int]]) -> None:
    texts = tuple(f"{key}=int:{value}" for key, value in pairs)
    assert ModelParams(override_kv=texts).override_kv == texts


HEADER = GgufSummary(
    "m.gguf", 3, 0, 0, 0, {"llama.block_count": 4}, {"llama.block_count": 4, "list": 9, "x": 6}
)


@pytest.mark.parametrize(
    ("text", "words"), [("llama.block_count=float:4", "=int:"), ("list=int:1", "arrays")]
)
def test_a_value_of_another_type_than_the_files_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidParam, match=words):
        check_kinds("override_kv", metadata_overrides("override_kv", [text]), HEADER)


def test_others_are_read_in_place_of_the_files() -> None:
    ones = metadata_overrides("override_kv", ["llama.block_count=int:7", "x=float:1", "new=str:a"])
    check_kinds("override_kv", ones, HEADER)
    changed = with_overrides(HEADER, ones)
    assert changed.metadata == {"llama.block_count": 7, "x": 1.0, "new": "a"}
    assert HEADER.metadata == {"llama.block_count": 4}
    assert with_overrides(HEADER, ()) is HEADER


# ── tensors ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["", "CPU", "=CPU", "a=", "x" * 257 + "=CPU"])
def test_a_placement_is_a_pattern_and_a_buffer(text: str) -> None:
    with pytest.raises(InvalidParam, match="PATTERN=BUFFER"):
        ModelParams(override_tensors=(text,))


@pytest.mark.parametrize("n", [-1, 513, True, "4"])
def test_the_number_of_layers_is_checked(n: Any) -> None:
    with pytest.raises(InvalidParam, match="n_cpu_moe"):
        ModelParams(n_cpu_moe=n)


def test_what_is_named_first_counts_then_the_experts() -> None:
    params = ModelParams(override_tensors=(r"blk\.1\.=CUDA1", "[=CPU", "attn=CPU"), n_cpu_moe=3)
    moved = params.tensor_overrides
    assert buffer_of("blk.1.ffn_up_exps.weight", moved) == "CUDA1"
    assert buffer_of("blk.2.ffn_gate_up_exps.weight", moved) == "CPU"
    assert buffer_of("blk.3.ffn_up_exps.weight", moved) is None
    assert buffer_of("blk.12.ffn_up_exps.weight", moved) is None
    assert buffer_of("blk.12.ffn_down_chexps.weight", ModelParams(cpu_moe=True).tensor_overrides)
    assert buffer_of("blk.2.ffn_up.weight", moved) is None
    assert buffer_of("blk.9.attn_q.weight", moved) == "CPU"


def test_an_estimate_counts_moved_weights_where_they_are() -> None:
    names = ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.1.ffn_up_exps.weight"]
    tensors = {name: TensorFacts((1000,), 0, 4000) for name in [*names, "token_embd.weight"]}
    numbers = {"general.architecture": "llama", "llama.block_count": 2}
    header = GgufSummary("m.gguf", 3, 4, 0, 0, numbers, tensors=tensors)

    def weights(*, has_gpu: bool = True, **options: Any) -> tuple[int, int]:
        found = estimate([header], ModelParams(**options), has_gpu=has_gpu)
        return found.host.weights, found.device.weights

    assert weights() == (4000, 12_000)
    assert weights(cpu_moe=True) == (12_000, 4000)
    assert weights(n_cpu_moe=1) == (8000, 8000)
    assert weights(override_tensors=(f"{EXPERTS}=CUDA0", "attn=CPU"), cpu_moe=True) == (8000, 8000)
    assert weights(override_tensors=("token_embd=CUDA0",)) == (0, 16_000)
    assert weights(has_gpu=False, cpu_moe=True) == (16_000, 0)
