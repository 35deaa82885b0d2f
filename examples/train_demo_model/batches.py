"""From documents to training batches: encode, pack, cut, all by fixed seeds."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer

from examples.train_demo_model.corpus import documents
from examples.train_demo_model.tokenizer import BOS, EOS

Ids = np.ndarray[tuple[int], np.dtype[np.uint16]]


def encode(tokenizer: Tokenizer, seed: int, count: int) -> list[Ids]:
    """``count`` documents of ``seed`` as ids, each from BOS to EOS."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    texts = list(documents(seed, count))
    made: list[Ids] = []
    for start in range(0, count, 1000):
        for one in tokenizer.encode_batch(texts[start : start + 1000]):
            made.append(np.array([bos, *one.ids, eos], dtype=np.uint16))
    return made


def pack(docs: list[Ids], length: int) -> Iterator[Ids]:
    """Rows of ``length + 1`` ids. A row begins with a document's beginning, as prompts do.

    Of a document that is cut, the rest is used as a row's beginning if it is long.
    """
    row: list[Ids] = []
    size = 0
    waiting = list(reversed(docs))
    while waiting:
        doc = waiting.pop()
        room = length + 1 - size
        row.append(doc[:room])
        size += len(row[-1])
        if len(doc) - room > length // 2:
            waiting.append(doc[room:])
        if size == length + 1:
            yield np.concatenate(row)
            row, size = [], 0


def batches(docs: list[Ids], length: int, rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches ``[rows, length + 1]`` without end: the documents in a new order for each round."""
    rng = Random(seed)
    while True:
        order = docs.copy()
        rng.shuffle(order)
        held: list[Ids] = []
        for row in pack(order, length):
            held.append(row)
            if len(held) == rows:
                yield torch.from_numpy(np.stack(held).astype(np.int64))
                held = []
