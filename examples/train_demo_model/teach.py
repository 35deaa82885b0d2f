"""Teach the storyteller to call tools: ``python -m examples.train_demo_model.teach``.

Two short lessons, each from the weights of a file (``--start``: of ``train``, or of the lesson
before), read as they are stored, in Q8_0. A step shows rows of new documents of the first corpus,
so that little is forgotten, and rows of talk, of which only the assistant's turns count. Text,
order and schedule come from fixed seeds, as in ``train``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from examples.train_demo_model.batches import batches, encode, replies_only
from examples.train_demo_model.calls import FIRST, SECOND, Stage, dialogues
from examples.train_demo_model.corpus import documents
from examples.train_demo_model.export import read_weights, write_gguf
from examples.train_demo_model.judge import calls_right, held_out, samples
from examples.train_demo_model.model import Shape, Storyteller
from examples.train_demo_model.tokenizer import train as train_tokenizer
from examples.train_demo_model.train import (
    DOCUMENTS,
    HELD_SEED,
    SEED,
    Cycle,
    Phase,
    Steps,
    keep_memory,
)
from runtime.embedded import path as packaged


@dataclass(frozen=True, slots=True)
class Lesson:
    """One cycle: rows of the first corpus by its phases, and rows of talk with each step."""

    cycle: Cycle
    stage: Stage
    start: int
    """The first document; none is shown twice."""
    texts: int
    talks: int
    order: int
    """Seeds the talk and the order of its rows."""
    share: float
    """What the talk counts of the loss."""


#: The first teaches the form of calls, and to copy; the second to copy names of any spelling.
LESSONS = (
    Lesson(
        Cycle((Phase(390, 1024, 2, 7000), Phase(20, 4096, 1, 8000)), 0.6, 15, 0.5),
        stage=FIRST, start=DOCUMENTS, texts=4_500, talks=4_000, order=SEED, share=0.4,
    ),
    Lesson(
        Cycle((Phase(162, 1024, 2, 10),), 0.45, 8, 0.25),
        stage=SECOND, start=DOCUMENTS + 4_500, texts=2_000, talks=1_600, order=SEED + 1, share=0.5,
    ),
)  # fmt: skip
TALK_ROWS, TALK_LENGTH = 3, 1024
CHECKED = 200


def plan(tokenizer: Any, lesson: Lesson) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
    """For every step: the share of the peak rates, a batch of documents, and one of talk."""
    old = encode(tokenizer, documents(SEED, lesson.texts, lesson.start))
    talk = encode(tokenizer, dialogues(lesson.order, lesson.talks, lesson.stage))
    print(f"{sum(map(len, old))} tokens of documents, {sum(map(len, talk))} of talk", flush=True)
    spoken = batches(talk, TALK_LENGTH, TALK_ROWS, lesson.order, keeps_rest=False)
    step = 0
    for phase in lesson.cycle.phases:
        made = batches(old, phase.length, phase.rows, SEED + phase.order)
        for batch in islice(made, phase.steps):
            yield lesson.cycle.pace(step), batch, next(spoken)
            step += 1


def teach(model: Storyteller, tokenizer: Any, chosen: argparse.Namespace, begun: float) -> None:
    """Run one lesson on ``model``."""
    lesson = LESSONS[chosen.lesson - 1]
    steps, total = Steps(model), lesson.cycle.steps
    loss_of: Any = torch.compile(model.loss, dynamic=False) if chosen.compile else model.loss
    for step, (pace, batch, talk) in enumerate(plan(tokenizer, lesson)):
        parts = (
            (1 - lesson.share, batch, batch[:, 1:]),
            (lesson.share, talk, replies_only(talk, tokenizer)),
        )
        nats = []
        for share, rows, targets in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=chosen.bf16):
                loss = loss_of(rows[:, :-1].contiguous(), targets.contiguous())
            (share * loss).backward()
            nats.append(loss.item())
        steps.take(pace)
        print(
            f"step {step:5d}/{total}  documents {nats[0]:.4f}  talk {nats[1]:.4f}  "
            f"{time.monotonic() - begun:6.0f} s",
            flush=True,
        )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_demo_model.teach", description=__doc__
    )
    parser.add_argument("--start", type=Path, required=True, help="the GGUF to begin with")
    parser.add_argument("--lesson", type=int, required=True, choices=(1, 2))
    parser.add_argument("--out", type=Path, default=packaged(), help="the GGUF to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    begun = time.monotonic()
    keep_memory()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(Shape().vocab, SEED)
    model = Storyteller(Shape(), SEED)
    model.load_state_dict(read_weights(chosen.start))
    teach(model, tokenizer, chosen, begun)
    write_gguf(chosen.out, model, tokenizer)
    print(f"wrote {chosen.out}: {chosen.out.stat().st_size} bytes", flush=True)
    model.load_state_dict(read_weights(chosen.out))
    print(calls_right(model, tokenizer, CHECKED), flush=True)
    print(held_out(model, tokenizer, HELD_SEED), flush=True)
    print(samples(model, tokenizer), flush=True)


if __name__ == "__main__":
    main()
