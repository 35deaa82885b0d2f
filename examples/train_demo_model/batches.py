"""From documents to training batches: encode, pack, cut, all by fixed seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer

from examples.train_demo_model.talk import ASSISTANT
from examples.train_demo_model.tokenizer import BOS, EOS, SPECIALS

Ids = np.ndarray[tuple[int], np.dtype[np.uint16]]


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Ids]:
    """Documents as ids, each from BOS to EOS."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    made: list[Ids] = []
    waiting = iter(texts)
    while some := list(islice(waiting, 1000)):
        for one in tokenizer.encode_batch(some):
            made.append(np.array([bos, *one.ids, eos], dtype=np.uint16))
    return made


def pack(docs: list[Ids], length: int, keeps_rest: bool = True) -> Iterator[Ids]:
    """Rows of ``length + 1`` ids. A row begins with a document's beginning, as prompts do.

    Of a document that is cut, the rest is used as a row's beginning if it is long and
    ``keeps_rest``: talk with tools makes no sense without its beginning, which lists the tools.
    """
    row: list[Ids] = []
    size = 0
    waiting = list(reversed(docs))
    while waiting:
        doc = waiting.pop()
        room = length + 1 - size
        row.append(doc[:room])
        size += len(row[-1])
        if keeps_rest and len(doc) - room > length // 2:
            waiting.append(doc[room:])
        if size == length + 1:
            yield np.concatenate(row)
            row, size = [], 0


def batches(
    docs: list[Ids], length: int, rows: int, seed: int, keeps_rest: bool = True
) -> Iterator[torch.Tensor]:
    """Batches ``[rows, length + 1]`` without end: the documents in a new order for each round."""
    rng = Random(seed)
    while True:
        order = docs.copy()
        rng.shuffle(order)
        held: list[Ids] = []
        for row in pack(order, length, keeps_rest):
            held.append(row)
            if len(held) == rows:
                yield torch.from_numpy(np.stack(held).astype(np.int64))
                held = []


def replies_only(batch: torch.Tensor, tokenizer: Tokenizer) -> torch.Tensor:
    """Targets ``[rows, length]`` of a batch: the assistant's turns; -100 for all other tokens."""
    specials = torch.tensor([tokenizer.token_to_id(one) for one in SPECIALS])
    places = torch.arange(batch.shape[1]).expand_as(batch)
    last = torch.where(torch.isin(batch, specials), places, 0).cummax(-1).values
    speaker = batch.gather(1, last)[:, :-1]
    return torch.where(speaker == tokenizer.token_to_id(ASSISTANT), batch[:, 1:], -100)
