"""Replaced metadata and placed tensors: they count, or are refused by name."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from typing import Any

import pytest
from gguf import PoolingType

from native import Backend, Batch, InvalidParam, ModelLoadFailed, ModelParams, load_backend
from native._load import buffer_types
from native.llama import lib
from runtime import errors
from runtime.cli.inspect_model import inspect_model
from tests.support.bert_file import tiny_bert
from tests.support.gguf_files import Shape, tiny_llama, write_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("moe") / "moe.gguf", Shape(arch="gpt-oss"))


def opened(path: Path, **options: Any) -> Backend:
    return load_backend("llama", path, ModelParams(n_ctx=512, n_threads=1, **options))


def logits_of(path: Path, **options: Any) -> array[float]:
    backend = opened(path, **options)
    try:
        batch = Batch()
        row = batch.extend_prefill(list(range(40, 90)), 0, 0, True)
        backend.decode(batch)
        assert row is not None
        return backend.logits(row)
    finally:
        backend.close()


# ── metadata ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("llama.rope.freq_base=float:500000", {"rope_freq_base": 500_000.0}),
        ("llama.rope.scaling.type=str:none", {"rope_scaling": "none"}),
    ],
)
def test_a_replaced_value_is_the_same_as_the_option_for_it(
    tiny: Path, override: str, option: dict[str, Any]
) -> None:
    assert logits_of(tiny, override_kv=(override,)) == logits_of(tiny, **option)


def test_flags_and_texts_of_the_vocabulary_are_replaced(tiny: Path) -> None:
    override = "tokenizer.ggml.add_bos_token=bool:false"
    plain, changed = opened(tiny), opened(tiny, override_kv=(override,))
    words = opened(tiny, override_kv=(override,), vocab_only=True)
    try:
        assert plain.info.add_bos
        assert not changed.info.add_bos
        assert plain.tokenize("ab") == [plain.info.bos_token, *changed.tokenize("ab")]
        assert words.tokenize("ab") == changed.tokenize("ab")
        assert plain.info.eos_token == plain.info.n_vocab - 1
    finally:
        for one in (plain, changed, words):
            one.close()


def test_the_end_of_a_text_is_replaced_everywhere(tiny: Path) -> None:
    backend = opened(tiny, override_kv=("tokenizer.ggml.eos_token_id=int:77",))
    backend.close()
    assert backend.info.eos_token == 77
    assert 77 in backend.info.eog_tokens


def test_what_was_replaced_is_part_of_the_identity_of_kv(tiny: Path) -> None:
    """In any order; and without any, rows of earlier versions are still found."""
    ones = ("llama.rope.freq_base=float:1e6", "llama.context_length=int:777")
    found = []
    for given in ((), ones[:1], ones, ones[::-1]):
        backend = opened(tiny, override_kv=given)
        backend.close()
        found.append(dict(backend.info.kv_identity).get("override_kv"))
    plain, one, both, turned = found
    assert plain is None
    assert one == "llama.rope.freq_base=float:1000000.0"
    assert both == turned != one


def test_the_context_length_counts_for_the_size_of_the_context(tiny: Path) -> None:
    params = ModelParams(n_ctx=0, n_threads=1, override_kv=("llama.context_length=int:512",))
    backend = load_backend("llama", tiny, params)
    backend.close()
    assert (backend.info.n_ctx, backend.info.n_ctx_train) == (512, 512)


def test_an_inspected_file_is_read_as_it_would_be_loaded(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = ModelParams(n_ctx=0, override_kv=("llama.context_length=int:512",))
    assert inspect_model(tiny, params, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["n_ctx"], shown["n_ctx_train"]) == (512, 512)
    wrong = ModelParams(override_kv=("llama.context_length=str:512",))
    with pytest.raises(errors.LlamaActorsError, match=r"write llama\.context_length=int:"):
        inspect_model(tiny, wrong, as_json=True)


def test_the_pooling_can_be_replaced(tmp_path: Path) -> None:
    path = tiny_bert(tmp_path / "bert.gguf", pooling=PoolingType.CLS)
    found = []
    for given in ((), ("bert.pooling_type=int:1",)):
        backend = opened(path, override_kv=given)
        embedder = backend.embedder()
        found.append([embedder.embed([60, 61, 62], one) for one in ("model", "cls", "mean")])
        backend.close()
    (plain, cls, mean), (replaced, *_) = found
    assert plain == cls != mean
    assert replaced == mean


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("llama.contxt_length=int:7", "reads no such key"),
        ("tokenizer.ggml.add_bos_token=int:0", "is of type bool in this file"),
        ("tokenizer.ggml.add_eos_token=int:0", "as a value of type bool"),
        ("tokenizer.ggml.tokens=str:a", "arrays cannot be replaced"),
        ("general.name=bool:true", "write general.name=str:"),
    ],
)
def test_what_llama_cpp_would_ignore_is_refused(tiny: Path, override: str, words: str) -> None:
    with pytest.raises(InvalidParam, match=words) as caught:
        opened(tiny, override_kv=("llama.context_length=int:777", override))
    assert (caught.value.name, caught.value.value) == ("override_kv", override)


def test_a_value_that_the_weights_do_not_fit_is_a_failed_load(tiny: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="n_rot"):
        opened(tiny, override_kv=("llama.attention.head_count=int:7",))


# ── tensors ─────────────────────────────────────────────────────────────────────────────────────


def test_tensors_are_placed_and_the_numbers_stay(experts: Path) -> None:
    """On a machine without a GPU all of them are on the CPU, wherever they are asked to be."""
    plain = logits_of(experts)
    ways: list[dict[str, Any]] = [
        {"override_tensors": (r"blk\.[01]\.ffn_.*_exps=CPU", "output=CPU")},
        {"cpu_moe": True},
        {"n_cpu_moe": 1},
        {"n_cpu_moe": 512, "override_tensors": ("attn_[qk]=CPU",)},
    ]
    for one in ways:
        moved = logits_of(experts, **one)
        assert all(map(math.isclose, moved, plain)) or lib.la_offloads()


def test_where_tensors_are_is_part_of_the_identity_where_it_can_change_kv(experts: Path) -> None:
    plain, moved = opened(experts), opened(experts, cpu_moe=True)
    for one in (plain, moved):
        one.close()
    assert (moved.info.kv_identity != plain.info.kv_identity) == bool(lib.la_offloads())


def test_unknown_buffer_types_are_refused_with_those_there_are(tiny: Path) -> None:
    assert "CPU" in buffer_types()
    with pytest.raises(InvalidParam) as caught:
        opened(tiny, override_tensors=("attn=CPU", "ffn=CUDA9"))
    assert caught.value.value == "ffn=CUDA9"
    assert "CPU" in caught.value.allowed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"override_tensors": ("attnn=CPU",)}, "found in the name of a tensor"),
        ({"override_tensors": ("at(tn=CPU",)}, "no regular expression"),
        ({"cpu_moe": True}, "this one has none"),
        ({"n_cpu_moe": 3}, "this one has none"),
    ],
)
def test_what_would_place_nothing_is_refused(
    tiny: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidParam, match=words) as caught:
        opened(tiny, **options)
    assert caught.value.name in options
