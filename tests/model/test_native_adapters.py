"""LoRA adapters on the native floor: applied, taken away, and never able to break anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from native import (
    AdapterRefused,
    Backend,
    Batch,
    InvalidParam,
    ModelFileError,
    ModelNotFound,
    ModelParams,
    NotAGguf,
    SamplingParams,
    TruncatedGguf,
    load_backend,
)
from native._stub_adapters import MAGIC
from native.adapter_file import check_adapter
from native.adapters import LoadedAdapter, adapters_identity
from native.gguf_header import check_gguf
from tests.support.gguf_files import Shape, tiny_llama, write_model
from tests.support.lora_files import lora_pair, tiny_lora

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=2, n_threads=1)
PROMPT = list(range(40, 90))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lora")
    (folder / "stub-a").write_bytes(MAGIC + b"a")
    (folder / "stub-b").write_bytes(MAGIC + b"b")
    return {
        "llama": tiny_llama(folder / "tiny.gguf"),
        "llama-a": tiny_lora(folder / "a.gguf", seed=1),
        "llama-b": tiny_lora(folder / "b.gguf", seed=2),
        "stub-a": folder / "stub-a",
        "stub-b": folder / "stub-b",
    }


class Kit:
    """A backend and two adapters that fit it."""

    def __init__(self, kind: str, files: dict[str, Path]) -> None:
        self.a, self.b = str(files[f"{kind}-a"]), str(files[f"{kind}-b"])
        self.backend: Backend = load_backend(kind, files.get(kind, Path("stub")), PARAMS)  # type: ignore[arg-type]


@pytest.fixture(params=["stub", "llama"])
def kit(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[Kit]:
    kit = Kit(request.param, files)
    yield kit
    kit.backend.close()


@pytest.fixture
def backend(files: dict[str, Path]) -> Iterator[Backend]:
    backend = load_backend("llama", files["llama"], PARAMS)
    yield backend
    backend.close()


def says(backend: Backend, n: int = 12) -> list[int]:
    """What follows the prompt, likeliest tokens only; the memory is empty afterwards."""
    batch, sampler, out = Batch(), backend.new_sampler(SamplingParams()), []
    row = batch.extend_prefill(PROMPT, 0, 0, True)
    for index in range(n):
        backend.decode(batch)
        assert row is not None
        out.append(backend.sample(row, sampler, index))
        batch.clear()
        row = batch.add(out[-1], len(PROMPT) + index, 0, True)
    backend.seq_remove(0, 0)
    return out


def test_an_adapter_changes_the_reply_and_removed_changes_nothing(kit: Kit) -> None:
    plain = says(kit.backend)
    first = kit.backend.load_adapter(kit.a)
    with_a = says(kit.backend)
    second = kit.backend.load_adapter(kit.b, 0.5)
    with_both = says(kit.backend)
    assert len({tuple(plain), tuple(with_a), tuple(with_both)}) == 3
    kit.backend.remove_adapter(second.id)
    assert says(kit.backend) == with_a
    kit.backend.scale_adapter(first.id, 0.0)
    assert says(kit.backend) == plain
    kit.backend.scale_adapter(first.id, 1.0)
    assert says(kit.backend) == with_a
    kit.backend.remove_adapter(first.id)
    assert says(kit.backend) == plain
    assert kit.backend.adapters == ()


def test_adapters_given_at_load_are_applied(kit: Kit, files: dict[str, Path]) -> None:
    kit.backend.load_adapter(kit.a, 0.7)
    wanted = says(kit.backend)
    kind = "stub" if "stub" in kit.a else "llama"
    params = ModelParams(
        n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=2, n_threads=1, lora=((kit.a, 0.7),)
    )
    other = load_backend(kind, files.get(kind, Path("stub")), params)  # type: ignore[arg-type]
    try:
        assert says(other) == wanted
        assert [one.path for one in other.adapters] == [kit.a]
    finally:
        other.close()


def test_no_adapter_changes_while_a_sequence_holds_kv(kit: Kit) -> None:
    """Its KV would be of other weights than what is computed next."""
    loaded = kit.backend.load_adapter(kit.a)
    batch = Batch()
    batch.extend_prefill(PROMPT, 0, 1, False)
    kit.backend.decode(batch)
    changes: list[Callable[[], object]] = [
        lambda: kit.backend.load_adapter(kit.b),
        lambda: kit.backend.scale_adapter(loaded.id, 2.0),
        lambda: kit.backend.remove_adapter(loaded.id),
    ]
    for change in changes:
        with pytest.raises(InvalidParam):
            change()
    assert kit.backend.adapters == (loaded,)


def test_a_new_context_applies_the_same_adapters(kit: Kit) -> None:
    kit.backend.load_adapter(kit.a)
    wanted = says(kit.backend)
    kit.backend.rebuild()
    assert says(kit.backend) == wanted


def test_unknown_adapters_and_bad_scales_are_refused(kit: Kit) -> None:
    for call in (
        lambda: kit.backend.remove_adapter(77),
        lambda: kit.backend.scale_adapter(77, 1.0),
        lambda: kit.backend.load_adapter(kit.a, float("nan")),
        lambda: kit.backend.load_adapter(kit.a, 1e9),
    ):
        with pytest.raises(InvalidParam):
            call()
    with pytest.raises(ModelNotFound):
        kit.backend.load_adapter(kit.a + ".not there")
    assert kit.backend.adapters == ()


def test_identity_is_content_and_scale_in_any_order() -> None:
    one = LoadedAdapter(1, "a", b"a" * 32, 1.0, 10)
    two = LoadedAdapter(2, "b", b"b" * 32, 0.5, 10)
    moved = LoadedAdapter(9, "elsewhere", b"a" * 32, 1.0, 10)
    off = LoadedAdapter(3, "c", b"c" * 32, 0.0, 10)
    assert adapters_identity([one, two]) == adapters_identity([two, off, moved])
    assert adapters_identity([off]) == adapters_identity([]) == ""
    louder = LoadedAdapter(1, "a", b"a" * 32, 1.5, 10)
    assert adapters_identity([one]) != adapters_identity([louder])
    assert adapters_identity([one]) != adapters_identity([one, one])


# --- files that would end the process if llama.cpp saw them ------------------------------------

RNG = np.random.default_rng(0)
W = "blk.0.attn_q.weight"


def ints(n: int, m: int) -> np.ndarray[Any, Any]:
    return np.ones((n, m), np.int32)


def floats(*dims: int) -> np.ndarray[Any, Any]:
    return np.ones(dims, np.float32)


BAD: dict[str, dict[str, Any]] = {
    "a model": {"general_type": "model"},
    "another kind": {"adapter_type": "control"},
    "a type that is no text": {"adapter_type": 7},
    "an alpha that is no float": {"alpha": 8},
    "another architecture": {"arch": "qwen2"},
    "no such weight": {"tensors": lora_pair("blk.9.attn_q.weight", 128, 128, RNG)},
    "half a pair": {"tensors": {f"{W}.lora_a": floats(4, 128)}},
    "strange names": {"tensors": {"blk.0.attn_q.weight": floats(4, 128)}},
    "norms only": {"tensors": {"blk.0.attn_norm.weight": floats(128)}},
    "wrong input": {"tensors": lora_pair(W, 64, 128, RNG)},
    "wrong output": {"tensors": lora_pair(W, 128, 64, RNG)},
    "ranks that differ": {
        "tensors": {f"{W}.lora_a": floats(4, 128), f"{W}.lora_b": floats(128, 8)}
    },
    "a third dimension": {
        "tensors": {f"{W}.lora_a": floats(3, 4, 128), f"{W}.lora_b": floats(3, 128, 4)}
    },
    "whole numbers": {"tensors": {f"{W}.lora_a": ints(4, 128), f"{W}.lora_b": ints(128, 4)}},
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_adapter_of_this_model_is_refused(
    name: str, backend: Backend, tmp_path: Path
) -> None:
    before = says(backend, 3)
    path = tiny_lora(tmp_path / "bad.gguf", **BAD[name])
    with pytest.raises(AdapterRefused) as caught:
        backend.load_adapter(str(path))
    assert str(path) in str(caught.value)
    assert (says(backend, 3), backend.adapters) == (before, ())


def test_embeddings_may_be_changed_unless_they_are_the_output_too(tmp_path: Path) -> None:
    """llama.cpp multiplies by both, in two shapes of which only one can fit."""
    shape = Shape()
    model = write_model(tmp_path / "model.gguf", shape)
    pair = {
        "token_embd.weight.lora_a": floats(shape.n_vocab, 4),
        "token_embd.weight.lora_b": floats(shape.n_embd, 4),
    }
    adapter = tiny_lora(tmp_path / "embd.gguf", tensors=pair)
    backend = load_backend("llama", model, PARAMS)  # its output has weights of its own
    try:
        plain = says(backend)
        backend.load_adapter(str(adapter))
        assert says(backend) != plain
    finally:
        backend.close()
    header = check_gguf(model)
    tensors = {n: t for n, t in header.tensors.items() if n != "output.weight"}
    with pytest.raises(AdapterRefused, match="output"):
        check_adapter(adapter, [dataclasses.replace(header, tensors=tensors)])


@pytest.mark.parametrize("cut", [10, 200, 2000])
def test_a_file_that_is_cut_short_is_refused(
    cut: int, backend: Backend, files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(files["llama-a"].read_bytes()[:cut])
    with pytest.raises((NotAGguf, TruncatedGguf)):
        backend.load_adapter(str(path))


def test_flipped_bits_of_the_header_never_crash(
    backend: Backend, files: dict[str, Path], tmp_path: Path
) -> None:
    good = files["llama-a"].read_bytes()
    path = tmp_path / "flipped.gguf"
    for at in range(0, 1200, 7):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        try:
            loaded = backend.load_adapter(str(path))
        except ModelFileError:
            continue
        says(backend, 1)
        backend.remove_adapter(loaded.id)


def test_a_file_that_changes_while_it_is_loaded_is_refused(
    backend: Backend, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the fingerprint would be of other bytes than the weights."""
    from native import _lora

    path = tmp_path / "changes.gguf"
    path.write_bytes(files["llama-a"].read_bytes())
    load = _lora.lib.la_adapter_load

    class Lib:
        def __getattr__(self, name: str) -> Any:
            return getattr(_lora_lib, name)

        def la_adapter_load(self, *args: Any) -> int:
            other = tmp_path / "other.gguf"
            other.write_bytes(files["llama-b"].read_bytes())
            other.rename(path)
            return int(load(*args))

    _lora_lib = _lora.lib
    monkeypatch.setattr(_lora, "lib", Lib())
    with pytest.raises(AdapterRefused, match="changed"):
        backend.load_adapter(str(path))
    assert backend.adapters == ()
