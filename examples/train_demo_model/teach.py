"""Teach the trained network to call tools: ``python -m examples.train_demo_model.teach``.

A second, short training from the weights of a file that ``train`` wrote (``--start``), which is
read as it is stored, in Q8_0. Each step shows rows of new documents of the first corpus, so that
nothing is forgotten, and rows of talk with tools, of which only the assistant's turns count. Text,
order and schedule come from fixed seeds, as in ``train``, whose options this shares in part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from examples.train_demo_model.batches import batches, encode, replies_only
from examples.train_demo_model.calls import dialogues
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
    scaled,
)
from runtime.embedded import path as packaged

#: Rows of the first corpus; those of talk with tools come with each step.
CYCLE = Cycle((Phase(390, 1024, 2, 7000), Phase(20, 4096, 1, 8000)), 0.6, 15, 0.5)
TOOL_ROWS, TOOL_LENGTH, TOOL_SHARE = 3, 1024, 0.4
OLD_TEXTS, TOOL_TEXTS = 4_500, 4_000
CHECKED = 200


def plan(tokenizer: Any, cycle: Cycle) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
    """For every step: the share of the peak rates, a batch of documents, and one of talk."""
    old = encode(tokenizer, documents(SEED, OLD_TEXTS, start=DOCUMENTS))
    talk = encode(tokenizer, dialogues(SEED, TOOL_TEXTS))
    print(f"{sum(map(len, old))} tokens of documents, {sum(map(len, talk))} of talk", flush=True)
    spoken = batches(talk, TOOL_LENGTH, TOOL_ROWS, SEED, keeps_rest=False)
    step = 0
    for phase in cycle.phases:
        made = batches(old, phase.length, phase.rows, SEED + phase.order)
        for batch in islice(made, phase.steps):
            yield cycle.pace(step), batch, next(spoken)
            step += 1


def teach(model: Storyteller, tokenizer: Any, chosen: argparse.Namespace, begun: float) -> None:
    """Run the schedule on ``model``."""
    steps, cycle = Steps(model), scaled((CYCLE,), chosen.share)[0]
    loss_of: Any = torch.compile(model.loss, dynamic=False) if chosen.compile else model.loss
    for step, (pace, batch, talk) in enumerate(plan(tokenizer, cycle)):
        parts = (
            (1 - TOOL_SHARE, batch, batch[:, 1:]),
            (TOOL_SHARE, talk, replies_only(talk, tokenizer)),
        )
        nats = []
        for share, rows, targets in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=chosen.bf16):
                loss = loss_of(rows[:, :-1].contiguous(), targets.contiguous())
            (share * loss).backward()
            nats.append(loss.item())
        steps.take(pace)
        print(
            f"step {step:5d}/{cycle.steps}  documents {nats[0]:.4f}  talk {nats[1]:.4f}  "
            f"{time.monotonic() - begun:6.0f} s",
            flush=True,
        )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_demo_model.teach", description=__doc__
    )
    parser.add_argument("--start", type=Path, required=True, help="the GGUF that train wrote")
    parser.add_argument("--out", type=Path, default=packaged(), help="the GGUF to write")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps (a trial run)")
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
