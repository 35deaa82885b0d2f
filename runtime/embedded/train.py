"""Train the embedded model: ``python -m runtime.embedded.train`` (needs the ``train`` extra).

Text, tokenizer, network and order of batches come from fixed seeds and the schedule counts steps,
so the same machine and library versions make the same file. The default run is sized for 2 cores
and about half an hour; ``--minutes`` is a guard that stops a slower run early, and the file then
says how many steps it had.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.embedded import path as packaged
from runtime.embedded.batches import Ids, batches, encode
from runtime.embedded.export import write_gguf
from runtime.embedded.judge import held_out, samples
from runtime.embedded.model import Shape, Storyteller
from runtime.embedded.tokenizer import train as train_tokenizer

SEED, HELD_SEED = 1, 2


@dataclass(frozen=True, slots=True)
class Phase:
    """``steps`` steps of ``rows`` rows of ``length`` tokens."""

    steps: int
    length: int
    rows: int


#: Short contexts teach the language fast, long ones what was said long ago, the longest positions.
SCHEDULE = (Phase(350, 512, 16), Phase(425, 1024, 8), Phase(25, 4096, 2))
DOCUMENTS = 32_000
PEAK_MATRIX, PEAK_OTHER = 3e-3, 4e-3
WARM, DECAY_FROM = 40, 0.5


def pace(step: int, total: int) -> float:
    """Share of the peak learning rate: rise, plateau, then straight down to a fiftieth."""
    if step < WARM:
        return (step + 1) / WARM
    done = (step / total - DECAY_FROM) / (1 - DECAY_FROM)
    return max(0.02, min(1.0, 1.0 - done))


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
        """The step to go on with: that of the checkpoint, if one is wanted and there."""
        if not (self.options.resume and self.checkpoint and self.checkpoint.exists()):
            return 0
        kept = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.steps.load(kept["steps"])
        print(f"resumed at step {kept['step']}", flush=True)
        return int(kept["step"])

    def train(self, docs: list[Ids], phases: tuple[Phase, ...]) -> int:
        """Run the schedule (from the checkpoint on); returns the number of steps done."""
        total, first, step = sum(p.steps for p in phases), self.resume(), 0
        loss_of: Any = self.model.loss
        if self.options.compile:
            loss_of = torch.compile(self.model.loss, dynamic=False)
        for phase in phases:
            made = batches(docs, phase.length, phase.rows, SEED + phase.length)
            for _ in range(phase.steps):
                batch = next(made)
                if step >= first:
                    self.step(loss_of, batch, step, total)
                    if time.monotonic() - self.begun > self.options.minutes * 60:
                        print(f"stopped by --minutes after {step + 1} of {total} steps")
                        return step + 1
                step += 1
        self.save(step)
        return step

    def step(self, loss_of: Any, batch: torch.Tensor, step: int, total: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            loss = loss_of(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        self.steps.take(pace(step, total))
        self.seen += batch[:, 1:].numel()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower the rates")
        if step % 10 == 0 or step + 1 == total:
            spent = time.monotonic() - self.begun
            print(
                f"step {step:5d}/{total}  loss {loss.item():.4f}  {batch.shape[1] - 1:4d} long  "
                f"{self.seen / 1e6:6.2f} M tokens  {spent:6.0f} s",
                flush=True,
            )
        if step and step % 50 == 0:
            self.save(step + 1)


def scaled(phases: tuple[Phase, ...], share: float) -> tuple[Phase, ...]:
    return tuple(Phase(max(1, round(p.steps * share)), p.length, p.rows) for p in phases)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.embedded.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=packaged(), help="the GGUF to write")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints (default: none kept)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
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
    docs = encode(tokenizer, SEED, count)
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
