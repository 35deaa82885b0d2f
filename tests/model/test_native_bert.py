"""Models of the BERT family: vectors and scores against a computation of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import PoolingType

from native import Backend, ModelParams, NotSupported, PromptTooLong, load_backend
from native.backend import RankFormat
from tests.support.bert_file import (
    BertShape,
    byte_vocabulary,
    pieces_of,
    random_weights,
    word_pieces,
    write_bert,
)
from tests.support.bert_reference import Bert, word_piece_ids

pytestmark = pytest.mark.model

SHAPE = BertShape(n_vocab=30_522, n_layer=3, n_positions=512, epsilon=1e-12)
WEIGHTS = random_weights(SHAPE, n_scores=1)
JUDGE = Bert(SHAPE, WEIGHTS)
TEXTS = [
    "A heron stands in the reeds.",
    "Naïve café: £3.50 — «unbelievable»!",
    "To the lighthouse and back again, " * 40,
]
TOLERANCE = 8e-3
"""Of vectors whose numbers are about 1 in size. llama.cpp looks GELU up in a table of 16 bits, and
its flash attention has keys and values of 16 bits."""


@pytest.fixture(scope="module")
def pieces(published: Path) -> list[str]:
    return pieces_of(published / "ggml-vocab-bert-bge.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module", params=[True, False], ids=["flash", "plain"])
def backend(request: pytest.FixtureRequest, folder: Path, pieces: list[str]) -> Iterator[Backend]:
    path = folder / "bert.gguf"
    if not path.exists():
        write_bert(path, SHAPE, WEIGHTS, word_pieces(pieces), pooling=PoolingType.MEAN)
    backend = load_backend("llama", path, ModelParams(n_threads=1, flash_attn=request.param))
    yield backend
    backend.close()


def around(pieces: list[str], *texts: str) -> list[int]:
    """The tokens of some texts as BERT expects them: [CLS] one [SEP] two [SEP]."""
    end = pieces.index("[SEP]")
    ids = [pieces.index("[CLS]")]
    for text in texts:
        ids += [*word_piece_ids(text, pieces), end]
    return ids


def test_texts_become_the_pieces_of_the_published_vocabulary(
    backend: Backend, pieces: list[str]
) -> None:
    for text in TEXTS:
        assert backend.tokenize(text) == around(pieces, text), text


@pytest.mark.parametrize("pooling", ["none", "mean", "cls", "last"])
def test_vectors_are_those_of_another_computation(
    backend: Backend, pieces: list[str], pooling: str
) -> None:
    embedder = backend.embedder()
    for text in TEXTS:
        tokens = around(pieces, text)
        found = np.array(embedder.embed(tokens, pooling))
        wanted = JUDGE.embed(tokens, pooling)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()
        if pooling == "mean":
            assert np.allclose(embedder.embed(tokens), found), "it is the pooling of the file"


def test_scores_are_those_of_another_computation(backend: Backend, pieces: list[str]) -> None:
    embedder = backend.embedder()
    for text in TEXTS:
        tokens = around(pieces, "what stands in the reeds?", text)
        assert embedder.score(tokens) == pytest.approx(JUDGE.scores(tokens)[0], abs=TOLERANCE)
    assert len({embedder.score(around(pieces, "reeds?", text)) for text in TEXTS}) == len(TEXTS)


def test_a_model_that_ranks_embeds_in_between(backend: Backend, pieces: list[str]) -> None:
    embedder, tokens = backend.embedder(), around(pieces, "reeds?", TEXTS[0])
    score, vector = embedder.score(tokens), embedder.embed(tokens)
    assert embedder.score(tokens) == score
    assert embedder.embed(tokens) == vector
    with pytest.raises(PromptTooLong):
        embedder.score(tokens * 100)


def test_a_query_and_a_text_are_put_as_bert_was_trained(
    backend: Backend, pieces: list[str]
) -> None:
    cls, sep = pieces.index("[CLS]"), pieces.index("[SEP]")
    assert backend.info.rank == RankFormat((cls,), (sep,), (), None)


# ── heads ───────────────────────────────────────────────────────────────────────────────────────

SMALL = BertShape()


def written(
    path: Path, n_scores: int, *, labels: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Backend:
    tensors = random_weights(SMALL, n_scores=n_scores)
    tensors = {name: one for name, one in tensors.items() if not name.startswith(without or "-")}
    write_bert(
        path, SMALL, tensors, byte_vocabulary, pooling=PoolingType.RANK, labels=labels,
        rank_template="{query}|{document}",
    )  # fmt: skip
    return load_backend("llama", path, ModelParams(n_threads=1, embed_tokens=96))


def test_of_several_scores_the_first_counts(tmp_path: Path) -> None:
    backend = written(tmp_path / "two.gguf", 2, labels=("fits", "does not"))
    try:
        judge = Bert(SMALL, random_weights(SMALL, n_scores=2))
        tokens = list(range(40, 90))
        scores = judge.scores(tokens)
        assert backend.embedder().score(tokens) == pytest.approx(scores[0], abs=TOLERANCE)
        assert abs(scores[0] - scores[1]) > 10 * TOLERANCE
        assert backend.info.rank is not None
        assert backend.info.rank.template == "{query}|{document}"
        with pytest.raises(NotSupported, match="rerank"):
            backend.embedder().embed(tokens)
    finally:
        backend.close()


@pytest.mark.parametrize(
    ("labels", "without"),
    [((), ("cls.",)), (tuple(f"label {one}" for one in range(65)), ("cls.output",))],
    ids=["none", "narrow"],
)
def test_a_model_without_a_head_that_scores_cannot_rank(
    tmp_path: Path, labels: tuple[str, ...], without: tuple[str, ...]
) -> None:
    """The second one has more labels than its head has numbers: llama.cpp would read beyond."""
    backend = written(tmp_path / "none.gguf", 1, labels=labels, without=without)
    try:
        assert backend.info.rank is None
        with pytest.raises(NotSupported, match="no head that ranks"):
            backend.embedder().score([50, 51])
        assert len(backend.embedder().embed([50, 51], "mean")) == SMALL.n_embd
    finally:
        backend.close()
