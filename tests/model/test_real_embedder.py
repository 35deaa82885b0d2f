"""A published BERT, all-MiniLM-L6-v2, on a node: ``make real`` fetches it and runs these cases.

``LLAMA_TEST_EMBEDDER`` names its file, as ``tests.support.real_embedder`` makes it. Two judges: the
similarities that its authors publish, and the same weights computed in numpy.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from native import ModelParams, load_backend
from runtime import Node
from tests.support.bert_file import pieces_of
from tests.support.bert_reference import Bert, word_piece_ids
from tests.support.real_embedder import SHAPE
from tests.support.runtime_nodes import one_thread

FILE = os.environ.get("LLAMA_TEST_EMBEDDER")
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(FILE is None, reason="LLAMA_TEST_EMBEDDER is not set; see make real"),
]

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
SIMILARITIES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
"""As published in the documentation of Sentence Transformers, to four digits."""
TEXTS = [*SENTENCES, "Naïve café: £3.50 — «unbelievable»!", "reeds and herons " * 100]


@pytest.fixture
def path() -> Path:
    return Path(FILE or "").absolute()


def test_similarities_are_those_that_its_authors_publish(node: Node, path: Path) -> None:
    """llama.cpp computes GELU by its approximation, so the last digit differs."""
    node.load("minilm", one_thread(path, embed_tokens=512))
    vectors = np.array(node.embed("minilm", SENTENCES).vectors)
    assert np.allclose(vectors @ vectors.T, SIMILARITIES, atol=1.5e-3)
    alone = [node.embed("minilm", one).vectors[0] for one in SENTENCES]
    assert np.array_equal(vectors, np.array(alone))


def test_vectors_are_those_of_another_computation(path: Path) -> None:
    weights = {one.name: one.data.reshape(one.shape[::-1]) for one in GGUFReader(path).tensors}
    judge, pieces = Bert(SHAPE, weights), pieces_of(path)
    backend = load_backend("llama", path, ModelParams(n_threads=1, embed_tokens=512))
    try:
        embedder = backend.embedder()
        for text in TEXTS:
            tokens = backend.tokenize(text)
            ids = word_piece_ids(text, pieces)
            assert tokens == [pieces.index("[CLS]"), *ids, pieces.index("[SEP]")]
            found, wanted = np.array(embedder.embed(tokens)), judge.embed(tokens, "mean")
            cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
            assert cosine > 0.99999
            assert np.abs(found - wanted).max() < 3e-3 * np.abs(wanted).max()
    finally:
        backend.close()
