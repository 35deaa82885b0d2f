"""Judge the trained network: loss on unseen text, answers that can be checked, samples to read."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader expects
from tokenizers import Tokenizer

from examples.train_demo_model.batches import encode, pack
from examples.train_demo_model.calls import examined, results_turn
from examples.train_demo_model.corpus import documents, long_prompt
from examples.train_demo_model.model import Storyteller
from examples.train_demo_model.tales import tale
from examples.train_demo_model.talk import ASSISTANT, END, USER, say
from examples.train_demo_model.tokenizer import BOS, EOS


def losses(model: Storyteller, rows: torch.Tensor) -> torch.Tensor:
    """Nats for every token of ``rows`` but the first: ``[rows, length - 1]``."""
    with torch.no_grad():
        logits = model(rows[:, :-1]).float()
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")


def _rows(tokenizer: Tokenizer, seed: int, length: int, count: int) -> torch.Tensor:
    kept = []
    for row in pack(encode(tokenizer, documents(seed, 120 + count * length // 100)), length):
        kept.append(torch.from_numpy(row.astype("int64")))
        if len(kept) == count:
            break
    return torch.stack(kept)


def _book_rows(tokenizer: Tokenizer, length: int, count: int) -> torch.Tensor:
    bos = tokenizer.token_to_id(BOS)
    texts = (long_prompt(length, seed) for seed in range(1000, 1000 + count))
    return torch.tensor([[bos, *tokenizer.encode(t).ids][: length + 1] for t in texts])


def held_out(model: Storyteller, tokenizer: Tokenizer, seed: int) -> str:
    """A report: nats per token on documents no batch has shown."""
    mixed = losses(model, _rows(tokenizer, seed, 1024, 24)).mean()
    books = torch.cat([losses(model, row[None]) for row in _book_rows(tokenizer, 4096, 4)])
    lines = [f"held-out loss, nats per token: {mixed:.4f} (rows of 1,024, all kinds of text)"]
    for low, high in ((0, 1024), (1024, 2048), (2048, 3072), (3072, 4096)):
        lines.append(
            f"  one book of 4,096 tokens, positions {low}-{high}: {books[:, low:high].mean():.4f}"
        )
    loss, right, count = answers(model, tokenizer, 60)
    lines.append(f"  answers about a story: {loss:.4f}; greedy answer exact: {right} of {count}")
    return "\n".join(lines)


def _examined(count: int) -> Iterator[tuple[str, str]]:
    """Prompts that end where the answer begins, with the answer."""
    for index in range(count):
        rng = Random(f"examined/{index}")
        told = tale(rng)
        question, answer = rng.choice(told.asks)
        yield say(USER, f"{told.text}\n\n{question}") + f"{ASSISTANT}\n", answer


def answers(model: Storyteller, tokenizer: Tokenizer, count: int) -> tuple[float, int, int]:
    """Mean loss on the answers' tokens, how many are greedily exact, and of how many."""
    judged = [reply(model, tokenizer, *one) for one in _examined(count)]
    nats, tokens, right = (sum(column) for column in zip(*judged, strict=True))
    return nats / tokens, int(right), count


def reply(
    model: Storyteller, tokenizer: Tokenizer, prompt: str, text: str
) -> tuple[float, int, bool]:
    """Nats and tokens of ``text`` as the turn after ``prompt``; whether it is what greedy gives."""
    head = [tokenizer.token_to_id(BOS), *tokenizer.encode(prompt).ids]
    tail = tokenizer.encode(text + END).ids
    row = torch.tensor([head + tail])
    with torch.no_grad():
        logits = model(row[:, :-1])[0, len(head) - 1 :].float()
    aim = torch.tensor(tail)
    nats = float(F.cross_entropy(logits, aim, reduction="sum"))
    return nats, len(tail), bool((logits.argmax(-1) == aim).all())


def calls_right(model: Storyteller, tokenizer: Tokenizer, count: int) -> str:
    """A report: calls and the answers after them, for towns and numbers of no training text."""
    called = answered = 0
    for head, question in examined(count):
        asked = head + say(USER, question.text) + f"{ASSISTANT}\n"
        call = "\n".join(question.calls)
        called += reply(model, tokenizer, asked, call)[2]
        known = f"{asked}{call}{END}\n{results_turn(question.results)}{ASSISTANT}\n"
        answered += reply(model, tokenizer, known, question.answer)[2]
    return f"greedily exact of {count}: {called} calls, {answered} answers with a result"


def write_on(
    model: Storyteller, tokenizer: Tokenizer, prompt: str, heat: float, most: int = 160
) -> str:
    """The model's continuation of ``prompt`` at temperature ``heat`` (0: the likeliest token)."""
    stops = {tokenizer.token_to_id(EOS), tokenizer.token_to_id(END)}
    ids = [tokenizer.token_to_id(BOS), *tokenizer.encode(prompt).ids]
    start = len(ids)
    rng = torch.Generator().manual_seed(7)
    while len(ids) < min(start + most, model.shape.context):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1].float()
        if heat:
            drawn = int(torch.multinomial((logits / heat).softmax(-1), 1, generator=rng))
        else:
            drawn = int(logits.argmax())
        if drawn in stops:
            return str(tokenizer.decode(ids[start:])) + " [stops]"
        ids.append(drawn)
    return str(tokenizer.decode(ids[start:]))


def samples(model: Storyteller, tokenizer: Tokenizer) -> str:
    """Five samples to read."""
    chat = say(USER, "Tell me a story about a dragon.") + f"{ASSISTANT}\n"
    prompt, answer = next(_examined(1))
    told = (
        ("Once upon a time", 0.0),
        ("Once upon a time", 0.8),
        (chat, 0.0),
        (prompt, 0.0),
        (long_prompt(2250, 5), 0.0),
    )
    parts = []
    for text, heat in told:
        shown = text if len(text) < 1500 else "… " + text[-300:]
        written = write_on(model, tokenizer, text, heat)
        parts.append(f"--- temperature {heat}\n{shown} >>>{written}")
    return "\n".join(parts) + f"\n(the answer wanted above: {answer})"
