"""The tokenizer: byte-level BPE trained on the corpus, with llama.cpp's ``gpt-2`` word splitting.

llama.cpp's ``gpt-2`` pre-tokenizer is the regular expression of ``tokenizers``' ``ByteLevel``, so
both give the same ids.
"""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.train_demo_model.corpus import documents

BOS, EOS = "<|bos|>", "<|endoftext|>"
#: In id order: these are tokens 0 to 5. A turn of talk ends with ``<|end|>``, a text with EOS.
SPECIALS = (BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
#: Texts with what the corpus lacks, so that typed prompts do not fall apart into single bytes.
_COMMON = (
    "the of and to in is that it for as with on be at by this have from or one had not but what "
    "all were when we there can an your which their if will each about how up out them then she "
    "many some so these would other into has more two like him see time could no make than first "
    "been its who now people my made over did down only way find use may water long little very "
    "after words called just where most know"
).split()


def train(vocab: int, seed: int, count: int = 12_000) -> Tokenizer:
    """Train on ``count`` documents of the corpus of ``seed``. The same numbers, the same ids."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [_plain(text) for text in documents(seed, count)]
    made.train_from_iterator([*texts, " ".join(["", *_COMMON])], trainer)
    return made


def _plain(text: str) -> str:
    """``text`` without the special tokens, which are never parts of words."""
    for special in SPECIALS:
        text = text.replace(special, "")
    return text


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a GGUF stores of a byte-level BPE: tokens in id order and merges in rank order."""

    tokens: list[str]
    merges: list[str]
    bos: int
    eos: int
    end: int


def pieces(tokenizer: Tokenizer) -> Pieces:
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    return Pieces(tokens, merges, ids[BOS], ids[EOS], ids[SPECIALS[-1]])
