"""Files that go with a model are called what they are, before llama.cpp sees them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from native.adapter_file import check_adapter
from native.errors import AdapterRefused, NotAModel
from native.file_kind import FileKind, kind_of, require_model
from native.gguf_header import check_gguf
from native.params import ModelParams
from runtime import errors
from runtime.cli.inspect_model import inspect_model
from tests.support.gguf_files import tiny_llama
from tests.support.lora_files import tiny_lora

pytestmark = pytest.mark.pure


def written(
    path: Path, architecture: str, *, kind: str = "", tensors: tuple[str, ...] = ("x",), **keys: int
) -> Path:
    """A small GGUF; an empty ``architecture`` or ``kind`` is left out."""
    writer = GGUFWriter(path, architecture or "none")
    if not architecture:
        writer.kv_data[0].pop("general.architecture")
    if kind:
        writer.add_type(kind)
    for key, value in keys.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name in tensors:
        writer.add_tensor(name, np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KINDS: dict[str, tuple[Callable[[Path], Path], FileKind, str]] = {
    "lora": (tiny_lora, FileKind.ADAPTER, r"this is a LoRA adapter, not a model; load the model"),
    "lora by its tensors": (
        lambda path: written(path, "llama", tensors=("blk.0.attn_q.weight.lora_a",)),
        FileKind.ADAPTER,
        "--lora PATH",
    ),
    "mmproj": (
        lambda path: written(path, "clip", kind="mmproj", tensors=("v.patch_embd.weight",)),
        FileKind.PROJECTOR,
        "images and audio are not supported",
    ),
    "old mmproj": (
        lambda path: written(path, "clip", clip__has_vision_encoder=1),
        FileKind.PROJECTOR,
        "mmproj",
    ),
    "imatrix": (
        lambda path: written(path, "", kind="imatrix", tensors=("blk.0.attn_q.weight.in_sum2",)),
        FileKind.IMATRIX,
        "statistics for quantising",
    ),
    "imatrix by its keys": (
        lambda path: written(path, "", imatrix__chunk_count=3),
        FileKind.IMATRIX,
        "statistics for quantising",
    ),
    "control vector": (
        lambda path: written(path, "controlvector", tensors=("direction.1",)),
        FileKind.CONTROL_VECTOR,
        "--control-vector PATH",
    ),
    "vocabulary": (
        lambda path: written(path, "llama", tensors=(), tokenizer__ggml__bos_token_id=1),
        FileKind.VOCABULARY,
        "vocab_only=True",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_it_is_distinguished_from_a_model_and_the_error_has_a_remedy(
    tmp_path: Path, name: str
) -> None:
    make, kind, words = KINDS[name]
    path = make(tmp_path / "file.gguf")
    headers = [check_gguf(path)]
    assert kind_of(headers) is kind
    with pytest.raises(NotAModel, match=words) as refused:
        require_model(headers)
    assert refused.value.kind == kind.value
    again = pickle.loads(pickle.dumps(refused.value))
    assert (str(again), again.path) == (str(refused.value), str(path))
    if kind is FileKind.VOCABULARY:
        require_model(headers, vocab_only=True)
    else:
        with pytest.raises(errors.LlamaActorsError, match="not a model"):
            inspect_model(path, ModelParams(), as_json=True)


def test_models_are_models(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf")
    require_model([check_gguf(model)])
    odd = written(tmp_path / "odd.gguf", "qwen9", kind="model", clip__x=1, imatrix__x=1)
    assert kind_of([check_gguf(odd)]) is FileKind.MODEL


@pytest.mark.parametrize("name", [one for one in KINDS if not one.startswith("lora")])
def test_what_is_no_adapter_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    model = [check_gguf(tiny_llama(tmp_path / "m.gguf"))]
    make, kind, _ = KINDS[name]
    with pytest.raises(AdapterRefused, match="not an adapter") as refused:
        check_adapter(make(tmp_path / "file.gguf"), model)
    assert kind.value in str(refused.value)


def test_a_model_given_as_an_adapter_is_named_as_one(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf")
    with pytest.raises(AdapterRefused, match="it is a model, not an adapter: load it as one"):
        check_adapter(model, [check_gguf(model)])
