"""Embeddings on the native floor: llama.cpp's own semantics, beside a context that generates."""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter, PoolingType

from native import (
    Backend,
    BackendClosed,
    Batch,
    InvalidParam,
    InvalidToken,
    ModelParams,
    NotSupported,
    PromptTooLong,
    SamplingParams,
    load_backend,
)
from tests.support.bert_file import tiny_bert
from tests.support.gguf_files import Shape, tiny_llama, write_model

pytestmark = pytest.mark.model

PARAMS = ModelParams(
    n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=2, n_threads=1, embed_tokens=700
)
TEXT = list(range(40, 100))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("embd") / "tiny.gguf")


@pytest.fixture(params=["stub", "llama"])
def backend(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Backend]:
    backend = load_backend(request.param, tiny, PARAMS)
    yield backend
    backend.close()


def near(one: array[float], other: array[float], tolerance: float = 1e-4) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        for a, b in zip(one, other, strict=True)
    )


def test_the_same_text_has_the_same_vector_and_others_have_others(backend: Backend) -> None:
    embedder = backend.embedder()
    first = embedder.embed(TEXT)
    assert len(first) == backend.info.n_embd_out
    assert embedder.embed(TEXT[:-1]) != first
    assert embedder.embed(TEXT) == first
    embedder.rest()
    assert embedder.is_resting
    assert embedder.embed(TEXT) == first
    assert backend.embedder() is embedder


def test_poolings_are_what_llama_cpp_makes_of_the_vectors_of_all_tokens(backend: Backend) -> None:
    embedder, n = backend.embedder(), backend.info.n_embd_out
    rows = embedder.embed(TEXT, "none")
    assert len(rows) == n * len(TEXT)
    mean = array("f", (sum(rows[i::n]) / len(TEXT) for i in range(n)))
    assert near(embedder.embed(TEXT, "mean"), mean)
    assert near(embedder.embed(TEXT, "cls"), rows[:n])
    assert near(embedder.embed(TEXT, "last"), rows[-n:])
    assert embedder.embed(TEXT) == embedder.embed(TEXT, "mean")  # these files name no pooling


def test_a_tokens_vector_depends_only_on_what_came_before_it(backend: Backend) -> None:
    """So the vector of a token is that of the last token of the text cut there."""
    embedder, n = backend.embedder(), backend.info.n_embd_out
    rows = embedder.embed(TEXT, "none")
    for cut in (1, 17, 59):
        assert near(embedder.embed(TEXT[:cut], "last"), rows[(cut - 1) * n : cut * n])


def test_long_texts_are_embedded_whole_and_too_long_ones_refused(backend: Backend) -> None:
    """Longer than n_ubatch of the other context; the small one grows."""
    embedder = backend.embedder()
    text = [32 + i % 90 for i in range(700)]
    assert embedder.n_tokens_max == 700
    assert near(
        embedder.embed(text, "last"), embedder.embed(text, "none")[-backend.info.n_embd_out :]
    )
    with pytest.raises(PromptTooLong) as caught:
        embedder.embed([*text, 65])
    assert (caught.value.n_tokens, caught.value.n_ctx) == (701, 700)


def test_bad_input_is_refused(backend: Backend) -> None:
    embedder = backend.embedder()
    with pytest.raises(InvalidParam):
        embedder.embed([])
    with pytest.raises(InvalidParam):
        embedder.embed(TEXT, "max")
    for token in (-1, backend.info.n_vocab):
        with pytest.raises(InvalidToken):
            embedder.embed([token])
    assert embedder.embed(TEXT)


def test_embedding_leaves_what_generates_alone(backend: Backend) -> None:
    """An embedding uses no live sequence, and leaves no mode set."""

    def says(between: bool) -> list[int]:
        batch, sampler, out = Batch(), backend.new_sampler(SamplingParams()), []
        row = batch.extend_prefill(TEXT, 0, 0, True)
        for index in range(8):
            backend.decode(batch)
            if between:
                backend.embedder().embed(TEXT[::-1])
            assert row is not None
            out.append(backend.sample(row, sampler, index))
            batch.clear()
            row = batch.add(out[-1], len(TEXT) + index, 0, True)
        assert backend.seq_range(0) == (0, len(TEXT) + 6)
        backend.seq_remove(0, 0)
        return out

    assert says(between=True) == says(between=False)


def test_two_threads_embed_and_decode_at_once(backend: Backend) -> None:
    embedder = backend.embedder()
    wanted, wrong = embedder.embed(TEXT), []
    done = threading.Event()

    def embed() -> None:
        while not done.is_set():
            if embedder.embed(TEXT) != wanted:
                wrong.append(1)

    thread = threading.Thread(target=embed)
    thread.start()
    try:
        said = set()
        for _ in range(20):
            batch, sampler = Batch(), backend.new_sampler(SamplingParams())
            row = batch.extend_prefill(TEXT, 0, 0, True)
            backend.decode(batch)
            assert row is not None
            said.add(backend.sample(row, sampler, 0))
            backend.seq_remove(0, 0)
    finally:
        done.set()
        thread.join()
    assert not wrong
    assert len(said) == 1


def test_nothing_is_embedded_after_close(backend: Backend) -> None:
    embedder = backend.embedder()
    embedder.embed(TEXT)
    backend.close()
    with pytest.raises(BackendClosed):
        embedder.embed(TEXT)
    with pytest.raises(BackendClosed):
        backend.embedder()


@pytest.mark.parametrize("kind", ["stub", "llama"])
def test_a_vocabulary_alone_tokenises_and_refuses_the_rest(kind: str, tiny: Path) -> None:
    whole = load_backend(kind, tiny, PARAMS)  # type: ignore[arg-type]
    words = load_backend(kind, tiny, ModelParams(vocab_only=True))  # type: ignore[arg-type]
    try:
        assert not words.info.can_generate
        assert words.info.memory == "none"
        text = "Hello there, 世界"
        assert words.tokenize(text) == whole.tokenize(text)
        assert words.detokenize(words.tokenize(text)) == whole.detokenize(whole.tokenize(text))
        batch = Batch()
        batch.add(65, 0, 0, True)
        for refused in (
            lambda: words.decode(batch), words.embedder, words.rebuild, words.memory_use,
            lambda: words.load_adapter("x"),
        ):  # fmt: skip
            with pytest.raises(NotSupported):
                refused()
    finally:
        whole.close()
        words.close()


def test_a_model_that_only_embeds_uses_the_pooling_of_its_file(tmp_path: Path) -> None:
    """It has no memory of sequences, reads a text both ways and has 96 positions."""
    backend = load_backend("llama", tiny_bert(tmp_path / "bert.gguf"), PARAMS)
    try:
        info, embedder = backend.info, backend.embedder()
        assert (info.can_generate, info.memory, info.n_embd_out) == (False, "none", 64)
        rows = embedder.embed(TEXT, "none")
        assert embedder.embed(TEXT) == embedder.embed(TEXT, "cls")
        assert near(embedder.embed(TEXT), rows[:64])
        assert not near(embedder.embed(TEXT[:-1]), rows[:64]), "the first token sees the last"
        assert len(embedder.embed([50] * 96)) == 64
        with pytest.raises(PromptTooLong) as caught:
            embedder.embed([50] * 97)  # llama.cpp would read behind the end of the table
        assert caught.value.n_ctx == 96
        with pytest.raises(NotSupported):
            backend.seq_range(0)
    finally:
        backend.close()


def test_a_model_that_ranks_refuses_to_embed_unless_a_pooling_is_named(tmp_path: Path) -> None:
    path = tiny_bert(tmp_path / "bert.gguf", pooling=PoolingType.RANK)
    backend = load_backend("llama", path, PARAMS)
    try:
        with pytest.raises(NotSupported, match="ranks"):
            backend.embedder().embed(TEXT)
        assert len(backend.embedder().embed(TEXT, "mean")) == 64
    finally:
        backend.close()


def test_a_model_that_generates_ranks_by_its_last_token(tmp_path: Path) -> None:
    """As Qwen3 rerankers do: the chances of two labels, of which the first is yes."""
    shape = Shape(arch="qwen3")
    head = np.random.default_rng(5).standard_normal((2, shape.n_embd), np.float32) * 0.05
    template = "<|begin|>{query}<|end|>{document}<|end|>"

    def metadata(writer: GGUFWriter) -> None:
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_string("tokenizer.chat_template.rerank", template)
        writer.add_pooling_type(PoolingType.RANK)

    path = write_model(
        tmp_path / "ranker.gguf", shape, {"cls.output.weight": head}, add_metadata=metadata
    )
    backend = load_backend("llama", path, PARAMS)
    try:
        embedder = backend.embedder()
        assert backend.info.can_generate
        assert backend.info.rank is not None
        assert backend.info.rank.template == template
        for text in (TEXT, TEXT[::-1], TEXT[:9]):
            chances = np.exp(head @ np.array(embedder.embed(text, "last")))
            assert 0.02 < chances[0] / chances.sum() < 0.98
            assert embedder.score(text) == pytest.approx(chances[0] / chances.sum(), abs=1e-3)
    finally:
        backend.close()
