"""Published tokenizers: the tokens that their publishers expect, and the texts back, in pieces."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from actors.text.incremental_text import IncrementalText
from native import load_backend
from native.backend import Backend
from native.params import ModelParams
from tests.support.published import tokenizer_cases

pytestmark = pytest.mark.model

EXACT, SPACED, NORMALISED = "exact", "a space before", "normalised"
# Vocabulary → what detokenising gives back. SentencePiece puts a space before a text; WordPiece and
# Unigram normalise (lower case, no accents, spaces joined), so texts change.
VOCABULARIES = {
    "aquila": EXACT,
    "baichuan": SPACED,
    "bert-bge": NORMALISED,
    "command-r": EXACT,
    "deepseek-coder": EXACT,
    "deepseek-llm": EXACT,
    "falcon": EXACT,
    "gemma-4": EXACT,
    "gpt-2": EXACT,
    "gpt-neox": EXACT,
    "llama-bpe": EXACT,
    "llama-spm": SPACED,
    "mpt": EXACT,
    "nomic-bert-moe": NORMALISED,
    "phi-3": SPACED,
    "qwen2": EXACT,
    "qwen35": EXACT,
    "refact": EXACT,
    "starcoder": EXACT,
}
WITHOUT_TOKENS = {"aquila", "baichuan", "gpt-neox", "nomic-bert-moe"}
"""Published without texts and expected tokens; they read those of GPT-2."""
CUT = "naïve café — 🦉🧑🏽‍🚀 日本語 नमस्ते \N{COMBINING ACUTE ACCENT}\t\r\n\0 ﷺ 𝔘𝔫𝔦"


def test_every_published_vocabulary_is_in_the_table(published: Path) -> None:
    found = {one.stem.removeprefix("ggml-vocab-") for one in published.glob("ggml-vocab-*.gguf")}
    assert found == set(VOCABULARIES)
    texts = {one.name.split(".")[0] for one in published.glob("ggml-vocab-*.gguf.inp")}
    assert found - {one.removeprefix("ggml-vocab-") for one in texts} == WITHOUT_TOKENS


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_become_the_published_tokens_and_come_back(name: str, published: Path) -> None:
    path = published / f"ggml-vocab-{name}.gguf"
    backend = load_backend("llama", str(path), ModelParams(vocab_only=True))
    try:
        known = name not in WITHOUT_TOKENS
        cases = tokenizer_cases(path if known else published / "ggml-vocab-gpt-2.gguf")
        assert len(cases) >= 40
        for text, expected in cases:
            tokens = backend.tokenize(text, add_special=False)
            assert tokens == expected or not known, text
            comes_back(backend, text, tokens, VOCABULARIES[name])
        comes_back(backend, CUT, backend.tokenize(CUT, add_special=False), VOCABULARIES[name])
        any_tokens_stream(backend)
    finally:
        backend.close()


def comes_back(backend: Backend, text: str, tokens: list[int], how: str) -> None:
    data = backend.detokenize(tokens)
    if how == EXACT:
        assert data == text.encode()
    elif how == SPACED:
        assert data in (text.encode(), b" " + text.encode())
    for stops in ((), ("no such stop",)):
        pieces = streamed(backend, tokens, stops)
        assert "".join(pieces) == data.decode("utf-8"), text
        assert not any("\ufffd" in one for one in pieces), text


def any_tokens_stream(backend: Backend) -> None:
    """Tokens in an order that no text has; what is no UTF-8 is replaced as in one piece."""
    tokens = Random(7).choices(range(backend.info.n_vocab), k=400)
    whole = backend.detokenize(tokens).decode("utf-8", "replace")
    for stops in ((), ("no such stop",)):
        assert "".join(streamed(backend, tokens, stops)) == whole


def streamed(backend: Backend, tokens: list[int], stops: tuple[str, ...]) -> list[str]:
    """What a caller sees of a reply of these tokens, piece by piece."""
    stream = IncrementalText(stops)
    return [*(stream.feed(backend.piece(token)) for token in tokens), stream.finish()]
