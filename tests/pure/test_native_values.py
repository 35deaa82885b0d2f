"""Parameters, errors, batches and the import rule of the native floor."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from native import Batch, InvalidParam, ModelParams, SamplingParams, errors
from native.fingerprint import fingerprint
from native.machine import physical_cores
from native.sampling import uniform

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", -1), ("n_ctx", 1 << 30), ("n_ctx", "4096"), ("n_ctx", True), ("n_batch", 0),
        ("n_ubatch", -1), ("n_seq_max", 0), ("n_seq_max", 256), ("n_threads", 0),
        ("n_threads", 513), ("n_gpu_layers", 1.5), ("type_k", "q4_1"), ("type_v", ""),
        ("flash_attn", 1), ("use_mmap", None), ("n_threads_batch", 0), ("main_gpu", 16),
        ("main_gpu", -1), ("split_mode", "rows"), ("split_mode", None), ("tensor_split", 1),
        ("tensor_split", ["a"]), ("tensor_split", [-1.0]), ("tensor_split", [0.0]),
        ("tensor_split", [1.0] * 17), ("rope_scaling", "ntk"), ("rope_freq_base", 0),
        ("rope_freq_scale", float("nan")), ("yarn_ext_factor", -1.0), ("yarn_orig_ctx", 0),
        ("vocab_only", 1), ("lora", "a.gguf"), ("lora", [["a.gguf"]]), ("lora", [""]),
        ("lora", [["a.gguf", "1"]]), ("draft_path", ""), ("draft_path", "a\0b"),
        ("embed_tokens", 0), ("pooling", "max"), ("check_memory", None),
    ],
)  # fmt: skip
def test_model_parameters_outside_their_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidParam) as caught:
        ModelParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.name == name
    assert caught.value.allowed in str(caught.value)


def test_a_negative_number_of_gpu_layers_means_all() -> None:
    """Not "none", as where a negative number was read without a sign and dropped."""
    assert ModelParams(n_gpu_layers=-7) == ModelParams(n_gpu_layers=-1) == ModelParams()


def test_model_parameters_survive_json() -> None:
    """As in the table of desired models, which makes tuples into lists."""
    params = ModelParams(lora=("a.gguf", ("b.gguf", 0.5)), tensor_split=(1, 2), rope_freq_base=5e5)  # type: ignore[arg-type]
    assert ModelParams(**json.loads(json.dumps(asdict(params)))) == params
    assert params.lora == (("a.gguf", 1.0), ("b.gguf", 0.5))


def test_rope_overrides_are_distinguished() -> None:
    """They change KV, so they are part of its identity; the model's own values are not."""
    assert ModelParams().rope_overrides == ()
    different = [
        {"rope_freq_base": 1e4}, {"rope_freq_scale": 1e4}, {"rope_scaling": "yarn"},
        {"yarn_orig_ctx": 10_000}, {"yarn_beta_fast": 1e4},
    ]  # fmt: skip
    assert len({ModelParams(**one).rope_overrides for one in different}) == len(different)  # type: ignore[arg-type]
    assert (
        ModelParams(rope_freq_base=1).rope_overrides
        == ModelParams(rope_freq_base=1.0).rope_overrides
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("temperature", "1"), ("top_k", -1), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.01),
        ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0), ("repetition_window", -1),
        ("repetition_window", 1 << 20), ("seed", -1), ("seed", 1 << 64),
    ],
)  # fmt: skip
def test_sampling_parameters_outside_their_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidParam) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.name == name


def test_quantised_values_need_flash_attention() -> None:
    ModelParams(type_v="q8_0")
    with pytest.raises(InvalidParam):
        ModelParams(type_v="q8_0", flash_attn=False)


def test_parameters_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ModelParams().n_ctx = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "error",
    [
        errors.ModelNotFound("m", "no"), errors.NotAGguf("m", "no"),
        errors.TruncatedGguf("m", 10, 5), errors.ModelLoadFailed("m", "why"),
        errors.ContextCreateFailed("why"), errors.InvalidParam("n", 1, "2"),
        errors.InvalidToken(9, 5), errors.PromptTooLong(9, 5), errors.NoKvSpace("full"),
        errors.DecodeAborted("x"), errors.DecodeFailed(-3, "x"), errors.StateRefused("why"),
        errors.BackendClosed("x"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_errors_survive_the_way_between_processes(error: errors.NativeError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_every_error_has_a_reason_in_its_docstring() -> None:
    tree = errors.__doc__ or ""
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.NativeError):
            assert error.__doc__
            assert name in tree


def test_a_batch_is_its_columns() -> None:
    batch = Batch()
    assert batch.add(7, 0, 1, False) == 0
    assert batch.extend_prefill([8, 9], 1, 1, True) == 2
    assert batch.extend_prefill([5], 0, 2, False) is None
    assert batch.extend_prefill([], 0, 2, True) is None
    columns = [list(c) for c in (batch.tokens, batch.positions, batch.seqs, batch.wants)]
    assert columns == [[7, 8, 9, 5], [0, 1, 2, 0], [1, 1, 1, 2], [0, 0, 1, 0]]
    batch.clear()
    assert len(batch) == 0
    assert batch.add(1, 2, 3, True) == 0


@given(seed=st.integers(0, (1 << 64) - 1), index=st.integers(0, (1 << 64) - 1))
def test_the_random_number_of_an_index_is_fixed_and_in_range(seed: int, index: int) -> None:
    assert 0.0 <= uniform(seed, index) < 1.0
    assert uniform(seed, index) == uniform(seed, index)


def test_random_numbers_are_spread_evenly_over_indices_and_seeds() -> None:
    for numbers in (
        [uniform(3, i) for i in range(4000)],
        [uniform(s, 3) for s in range(4000)],
    ):
        counts = [0] * 10
        for number in numbers:
            counts[int(number * 10)] += 1
        assert max(counts) < 480
        assert min(counts) > 320


def test_the_fingerprint_is_the_content_and_nothing_else(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"model" * 1000)
    two.write_bytes(b"model" * 1000)
    assert fingerprint([one]) == fingerprint([two]) == blake3(b"model" * 1000).digest()
    assert fingerprint([one, two]) != fingerprint([one])
    two.write_bytes(b"model" * 999 + b"modeL")
    assert fingerprint([two]) != fingerprint([one])
    assert fingerprint([one, two]) != fingerprint([two, one])


def test_there_is_at_least_one_core() -> None:
    assert physical_cores() >= 1


def test_importing_the_floor_loads_no_native_code() -> None:
    """Actors are forked from a process that has imported everything."""
    script = (
        "import sys, native, native.backend, native.stub, native.gguf_header, native.fingerprint\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'native._llama' not in sys.modules\n"
        "assert 'libllama' not in maps and 'libggml' not in maps\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd="/")
