"""Control vectors on the native floor: added where they should be, and part of KV's identity."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from native import (
    Backend,
    Batch,
    ControlVectorRefused,
    InvalidParam,
    ModelFileError,
    ModelNotFound,
    ModelParams,
    NotAGguf,
    NotSupported,
    load_backend,
)
from native.llama import LlamaBackend
from tests.support.bert_file import N_EMBD as BERT_EMBD
from tests.support.bert_file import tiny_bert
from tests.support.control_vector_files import directions, write_control_vector
from tests.support.gguf_files import Shape, tiny_llama, write_model
from tests.support.lora_files import tiny_lora

pytestmark = pytest.mark.model

SHAPE = Shape(n_layer=4, qtype="F32")
N_EMBD = SHAPE.n_embd
PROMPT = list(range(40, 90))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return write_model(folder / "model.gguf", SHAPE)


@pytest.fixture(scope="module")
def vectors(folder: Path) -> list[str]:
    """Of all layers that can have one, small and large."""
    return [
        str(
            write_control_vector(
                folder / f"{seed}.gguf", directions(N_EMBD, range(1, 4), seed=seed, size=size)
            )
        )
        for seed, size in ((1, 1.0), (2, 0.3))
    ]


def opened(path: Path, **options: Any) -> Backend:
    return load_backend("llama", path, ModelParams(n_ctx=512, n_threads=1, **options))


def last_logits(backend: Backend) -> array[float]:
    batch = Batch()
    row = batch.extend_prefill(PROMPT, 0, 0, True)
    backend.decode(batch)
    assert row is not None
    logits = backend.logits(row)
    backend.seq_remove(0, 0)
    return logits


def logits_of(path: Path, **options: Any) -> array[float]:
    backend = opened(path, **options)
    try:
        return last_logits(backend)
    finally:
        backend.close()


def identity_of(path: Path, **options: Any) -> dict[str, str]:
    backend = opened(path, **options)
    backend.close()
    return dict(backend.info.kv_identity)


@pytest.mark.parametrize("layers", [None, (2, 2), (1, 2), (3, 4)])
def test_a_vector_is_what_a_bias_of_the_layers_outputs_would_be(
    folder: Path, model: Path, vectors: list[str], layers: tuple[int, int] | None
) -> None:
    """The judge is a model whose weights hold the same numbers: the bias of its last matrix."""
    first, last = layers or (1, 3)
    ones = directions(N_EMBD, range(1, 4), seed=1)
    twos = directions(N_EMBD, range(1, 4), seed=2, size=0.3)
    biases = {
        f"blk.{layer}.ffn_down.bias": 0.5 * ones[layer] - 2 * twos[layer]
        for layer in range(1, 4)
        if first <= layer <= last
    }
    judge = write_model(folder / f"bias-{first}-{last}.gguf", SHAPE, biases)
    wanted = logits_of(judge)
    given = logits_of(
        model,
        control_vectors=((vectors[0], 0.5), (vectors[1], -2.0)),
        control_vector_layers=layers,
    )
    assert np.allclose(given, wanted, rtol=1e-4, atol=1e-4)
    assert not np.allclose(given, logits_of(model), rtol=1e-2, atol=1e-2)


def test_it_outlives_a_rebuild(model: Path, vectors: list[str]) -> None:
    backend = opened(model, control_vectors=(vectors[0],))
    try:
        before = last_logits(backend)
        backend.rebuild()
        assert last_logits(backend) == before
    finally:
        backend.close()


def test_file_scale_and_layers_are_part_of_the_identity_of_kv(
    folder: Path, model: Path, vectors: list[str]
) -> None:
    one, other = vectors
    plain = identity_of(model)
    copy = folder / "copy.gguf"
    copy.write_bytes(Path(one).read_bytes())
    found = [
        plain,
        identity_of(model, control_vectors=(one,)),
        identity_of(model, control_vectors=(other,)),
        identity_of(model, control_vectors=((one, 0.5),)),
        identity_of(model, control_vectors=(one, other)),
        identity_of(model, control_vectors=(one,), control_vector_layers=(1, 2)),
    ]
    assert len({one.get("control_vector") for one in found}) == len(found)
    assert identity_of(model, control_vectors=(str(copy),)) == found[1], "content counts, not names"
    assert identity_of(model, control_vectors=((one, 0.0),)) == plain


def test_a_vector_and_adapters_apply_together(
    folder: Path, model: Path, vectors: list[str]
) -> None:
    lora = str(tiny_lora(folder / "lora.gguf", shape=SHAPE))
    both = logits_of(model, control_vectors=(vectors[0],), lora=(lora,))
    backend = opened(model, control_vectors=(vectors[0],))
    try:
        alone = last_logits(backend)
        added = backend.load_adapter(lora)
        assert last_logits(backend) == both
        backend.remove_adapter(added.id)
        assert last_logits(backend) == alone != both
    finally:
        backend.close()


def refusals(folder: Path) -> dict[str, tuple[Path, type[Exception], str]]:
    right = directions(N_EMBD, range(1, 3))
    bad = {1: np.full(N_EMBD, np.nan, np.float32)}
    (folder / "text").write_text("no vector" * 9)
    write = write_control_vector
    refused = ControlVectorRefused
    flat = {1: np.zeros((2, N_EMBD), np.float32)}
    half = {1: np.zeros(N_EMBD, np.float16)}
    return {
        "missing": (folder / "none.gguf", ModelNotFound, "cannot be opened"),
        "no GGUF": (folder / "text", NotAGguf, "GGUF"),
        "an adapter": (tiny_lora(folder / "l.gguf"), refused, "it is a LoRA adapter"),
        "a model": (tiny_llama(folder / "m.gguf"), refused, "it is a model"),
        "empty": (write(folder / "e.gguf", {}), refused, "no directions"),
        "narrow": (write(folder / "n.gguf", directions(64, range(1, 2))), refused, "64 numbers"),
        "deep": (write(folder / "d.gguf", directions(N_EMBD, range(4, 5))), refused, "it has 4"),
        "layer 0": (write(folder / "0.gguf", directions(N_EMBD, range(1))), refused, "from 1 on"),
        "named": (write(folder / "x.gguf", right, names="d.{}"), refused, "no direction"),
        "not finite": (write(folder / "i.gguf", bad), refused, "not finite"),
        "matrix": (write(folder / "f.gguf", flat), refused, f"{N_EMBD} by 2 numbers"),
        "half": (write(folder / "h.gguf", half), refused, "float32"),
    }


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, model: Path) -> None:
    for name, (path, error, words) in refusals(tmp_path).items():
        with pytest.raises(error, match=words) as caught:
            opened(model, control_vectors=(str(path),))
        assert isinstance(caught.value, ModelFileError), name
        assert str(path) in str(caught.value)


def test_numbers_that_grow_beyond_float32_are_refused(tmp_path: Path, model: Path) -> None:
    path = write_control_vector(tmp_path / "a.gguf", {1: np.full(N_EMBD, 3e38, np.float32)})
    with pytest.raises(ControlVectorRefused, match="times 10 "):
        opened(model, control_vectors=((str(path), 10.0),))


def test_layers_that_the_model_does_not_have_are_refused(model: Path, vectors: list[str]) -> None:
    with pytest.raises(InvalidParam, match="1 to 4"):
        opened(model, control_vectors=(vectors[0],), control_vector_layers=(2, 5))


def test_recurrent_models_take_them_and_models_that_only_embed_do_not(tmp_path: Path) -> None:
    mamba = Shape(arch="mamba")
    path = write_model(tmp_path / "mamba.gguf", mamba)
    vector = write_control_vector(tmp_path / "v.gguf", directions(mamba.n_embd, range(1, 2)))
    assert logits_of(path, control_vectors=(str(vector),)) != logits_of(path)
    small = write_control_vector(tmp_path / "s.gguf", directions(BERT_EMBD, range(1, 2)))
    with pytest.raises(NotSupported, match="cannot generate"):
        opened(tiny_bert(tmp_path / "bert.gguf"), control_vectors=(str(small),))


def test_without_weights_or_layers_there_are_none(model: Path, vectors: list[str]) -> None:
    with pytest.raises(InvalidParam, match="vocab_only"):
        ModelParams(vocab_only=True, control_vectors=(vectors[0],))
    with pytest.raises(NotSupported):
        load_backend("stub", model, ModelParams(control_vectors=(vectors[0],)))


def test_one_that_changes_nothing_is_refused_and_the_model_freed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[LlamaBackend] = []
    close = LlamaBackend.close

    def noted(self: LlamaBackend) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(LlamaBackend, "close", noted)
    tiny = {1: np.full(N_EMBD, 1e-30, np.float32)}
    path = write_control_vector(tmp_path / "v.gguf", tiny)
    with pytest.raises(ControlVectorRefused, match="too small"):
        opened(model, control_vectors=(str(path),))
    assert len(closed) == 1
