"""Train the storyteller: ``python -m examples.train_demo_model.train`` (needs requirements.txt).

The packaged file is what ``teach`` makes of the result.

Text, tokenizer, network and order of batches come from fixed seeds and the schedule counts steps,
so the same machine and library versions make the same file. On 2 unshared cores with bfloat16
matrix instructions a step of 8 x 1,024 tokens takes 1.2 s. ``--minutes`` stops a slower run early
and prints that. Where the cores are shared, ``OMP_WAIT_POLICY=PASSIVE`` in the environment makes a
step several times faster, because waiting threads then yield.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from examples.train_demo_model.batches import Ids, batches, encode
from examples.train_demo_model.corpus import documents
from examples.train_demo_model.export import write_gguf
from examples.train_demo_model.judge import held_out, samples
from examples.train_demo_model.model import Shape, Storyteller
from examples.train_demo_model.tokenizer import train as train_tokenizer

SEED, HELD_SEED = 1, 2


@dataclass(frozen=True, slots=True)
class Phase:
    """``steps`` steps of ``rows`` rows of ``length`` tokens; ``order`` seeds their order."""

    steps: int
    length: int
    rows: int
    order: int


@dataclass(frozen=True, slots=True)
class Cycle:
    """Phases under one rise and fall of the learning rate, from ``peak`` down to a fiftieth.

    The rate rises for ``warm`` steps and falls after ``plateau``, a share of the cycle.
    """

    phases: tuple[Phase, ...]
    peak: float
    warm: int
    plateau: float

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def pace(self, step: int) -> float:
        """Share of the peak learning rates at ``step`` of this cycle."""
        if step < self.warm:
            return self.peak * (step + 1) / self.warm
        done = (step / self.steps - self.plateau) / (1 - self.plateau)
        return self.peak * max(0.02, min(1.0, 1.0 - done))


#: Short contexts teach the language fast, long ones distant references, the longest positions.
SCHEDULE = (
    Cycle(
        (Phase(350, 512, 16, 512), Phase(425, 1024, 8, 1024), Phase(25, 4096, 2, 4096)),
        1.0,
        40,
        0.5,
    ),
    Cycle((Phase(240, 1024, 8, 5000), Phase(50, 4096, 2, 6000)), 0.5, 20, 0.1),
)
DOCUMENTS = 32_000
PEAK_MATRIX, PEAK_OTHER = 3e-3, 4e-3


class Steps:
    """The optimizers: Muon for the matrices of the layers, AdamW for the embedding and norms."""

    def __init__(self, model: Storyteller) -> None:
        inner = [p for n, p in model.named_parameters() if n.startswith("blk") and p.ndim == 2]
        outer = [p for n, p in model.named_parameters() if not n.startswith("blk") or p.ndim < 2]
        self.weights = [*inner, *outer]
        self.muon = torch.optim.Muon(
            inner, lr=PEAK_MATRIX, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(outer, lr=PEAK_OTHER, betas=(0.9, 0.97), weight_decay=0.01)

    def take(self, share: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for group in self.muon.param_groups:
            group["lr"] = PEAK_MATRIX * share
        for group in self.adam.param_groups:
            group["lr"] = PEAK_OTHER * share
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad()
        self.adam.zero_grad()

    def state(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def keep_memory() -> None:
    """Let malloc keep large blocks: fresh pages for every activation cost a third of the time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


@dataclass(slots=True)
class Run:
    """One training run: its options, network, optimizers and clock."""

    options: argparse.Namespace
    model: Storyteller
    steps: Steps
    begun: float
    seen: int = 0

    @property
    def checkpoint(self) -> Path | None:
        folder: Path | None = self.options.scratch
        return folder / "checkpoint.pt" if folder else None

    def save(self, step: int) -> None:
        if self.checkpoint is None:
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        kept = {"model": self.model.state_dict(), "steps": self.steps.state(), "step": step}
        part = self.checkpoint.with_suffix(".part")
        torch.save(kept, part)
        part.replace(self.checkpoint)

    def resume(self) -> int:
        """The step to continue from: that of the checkpoint, if it is to be used and exists."""
        if not (self.options.resume and self.checkpoint and self.checkpoint.exists()):
            return 0
        kept = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.steps.load(kept["steps"])
        print(f"resumed at step {kept['step']}", flush=True)
        return int(kept["step"])

    def train(self, docs: list[Ids], cycles: tuple[Cycle, ...]) -> int:
        """Run the schedule (from the checkpoint on); returns the number of steps done."""
        total, first = sum(c.steps for c in cycles), self.resume()
        loss_of: Any = self.model.loss
        if self.options.compile:
            loss_of = torch.compile(self.model.loss, dynamic=False)
        for step, (share, batch) in enumerate(plan(docs, cycles)):
            if step < first:
                continue
            self.step(loss_of, batch, share, f"{step:5d}/{total}")
            if step % 50 == 0:
                self.save(step + 1)
            if time.monotonic() - self.begun > self.options.minutes * 60:
                print(f"stopped by --minutes after {step + 1} of {total} steps")
                return step + 1
        self.save(total)
        return total

    def step(self, loss_of: Any, batch: torch.Tensor, share: float, where: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            loss = loss_of(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        self.steps.take(share)
        self.seen += batch[:, 1:].numel()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {where}; lower the rates")
        spent = time.monotonic() - self.begun
        line = (
            f"step {where}  loss {loss.item():.4f}  {batch.shape[1] - 1:4d} long  "
            f"{self.seen / 1e6:6.2f} M tokens  {spent:6.0f} s"
        )
        print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)


def plan(docs: list[Ids], cycles: tuple[Cycle, ...]) -> Iterator[tuple[float, torch.Tensor]]:
    """For every step: the share of the peak rates, and the batch."""
    for cycle in cycles:
        step = 0
        for phase in cycle.phases:
            made = batches(docs, phase.length, phase.rows, SEED + phase.order)
            for batch in islice(made, phase.steps):
                yield cycle.pace(step), batch
                step += 1


def scaled(cycles: tuple[Cycle, ...], share: float) -> tuple[Cycle, ...]:
    """The schedule with ``share`` of every phase's steps (at least one)."""
    return tuple(
        replace(
            cycle,
            phases=tuple(replace(p, steps=max(1, round(p.steps * share))) for p in cycle.phases),
            warm=max(1, round(cycle.warm * share)),
        )
        for cycle in cycles
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_demo_model.train", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="the GGUF to write")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints (default: none kept)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--minutes", type=float, default=90.0, help="stop early after so long")
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
    shape = Shape()
    print("training the tokenizer", flush=True)
    tokenizer = train_tokenizer(shape.vocab, SEED)
    if chosen.scratch:
        chosen.scratch.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(chosen.scratch / "tokenizer.json"))
    count = max(2000, round(DOCUMENTS * min(1.0, chosen.share)))
    docs = encode(tokenizer, documents(SEED, count))
    total = sum(map(len, docs))
    print(f"{len(docs)} documents, {total} tokens, {time.monotonic() - begun:.0f} s", flush=True)
    model = Storyteller(shape, SEED)
    run = Run(chosen, model, Steps(model), begun)
    done = run.train(docs, scaled(SCHEDULE, chosen.share))
    weights = sum(p.numel() for p in model.parameters())
    print(f"{done} steps, {weights} weights, {time.monotonic() - begun:.0f} s", flush=True)
    write_gguf(chosen.out, model, tokenizer)
    print(f"wrote {chosen.out}: {chosen.out.stat().st_size} bytes", flush=True)
    print(held_out(model, tokenizer, HELD_SEED), flush=True)
    print(samples(model, tokenizer), flush=True)


if __name__ == "__main__":
    main()
