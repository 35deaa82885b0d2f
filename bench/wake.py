"""Models that sleep and wake, and two that take turns, beside llama-server's sleep and its router.

Wake: a conversation is read, the model sleeps, and the conversation's next request is timed to its
first token; the same while the model is loaded but not asked, which is the time to load. Swap: two
models of which one at a time may be loaded are asked in turn. Rounds of ours and of the peer
alternate. llama-server keeps no KV across its sleep, so it reads the conversation again.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from actors.messages import ModelState
from bench import peers
from bench.bare import BareModel
from bench.llama_server import LlamaServer
from bench.report import Figure, figure
from bench.stats import paired_differences, paired_ratios, summarise
from bench.subjects import Subject, node_for_measuring, random_prompt, subjects
from runtime import Node, RuntimeConfig
from runtime.cli.progress import ProgressLine
from runtime.settings.config import ModelConfig
from tests.support.waiting import eventually

NAME = "wake"
ROUNDS, QUICK_ROUNDS = 10, 3
_LEAST_ROUNDS, _ENOUGH_S = 3, 60.0
"""A big model has fewer rounds: after this time, no more than these."""
N_TOKENS, QUICK_TOKENS = 512, 256
_SLEEPS_S = 1
"""What llama-server's option takes is whole seconds."""
_NAMES = ("left", "right")


@dataclass(slots=True)
class _Runs:
    """Milliseconds, by round."""

    wake: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    swap: list[float] = field(default_factory=list)
    peer_wake: list[float] = field(default_factory=list)
    peer_swap: list[float] = field(default_factory=list)


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure every subject."""
    figures: list[Figure] = []
    for plain in subjects(quick=quick, model=model):
        n_tokens = QUICK_TOKENS if quick else N_TOKENS
        params = replace(plain.params, n_seq_max=1, n_ctx=n_tokens + 256)
        subject = replace(plain, params=params)
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            ProgressLine(f"{NAME} {subject.name}") as progress,
        ):
            rounds = QUICK_ROUNDS if quick else ROUNDS
            figures += _measure(subject, Path(folder), n_tokens, rounds, progress)
    return figures


def _measure(
    subject: Subject, where: Path, n_tokens: int, rounds: int, progress: ProgressLine
) -> list[Figure]:
    with BareModel(subject.path, subject.params) as bare:
        prompt = random_prompt(bare.facts, n_tokens, seed=1)
    models = where / "models"
    models.mkdir()
    for name in _NAMES:
        shutil.copy(subject.path, models / f"{name}.gguf")
    runs = _Runs()
    config = RuntimeConfig(
        models_dir=models, models_max=1, models_defaults=ModelConfig("", subject.params)
    )
    with ExitStack() as stack:
        node = stack.enter_context(node_for_measuring(where / "node", config=config))
        eventually(lambda: len(node.known_models()) == len(_NAMES), what="the folder is read")
        sleeper, router = _peers(stack, subject, where, models)
        began = time.monotonic()
        for number in range(rounds):
            if number >= _LEAST_ROUNDS and time.monotonic() - began > _ENOUGH_S:
                break
            progress.share(number / rounds)
            _our_round(node, prompt, runs)
            if sleeper is not None:
                runs.peer_wake.append(_peer_wake(sleeper, prompt))
            if router is not None:
                runs.peer_swap += [
                    _ms(lambda one=name: router.complete_as(one, prompt, 1))  # type: ignore[misc]
                    for name in _NAMES
                ]
    return _figures(subject.name, n_tokens, runs)


def _our_round(node: Node, prompt: Sequence[int], runs: _Runs) -> None:
    model = _NAMES[0]
    node.complete(model, prompt, max_tokens=1)
    _sleep(node, model)
    runs.wake.append(_ms(lambda: node.complete(model, prompt, max_tokens=1)))
    _sleep(node, model)
    runs.load.append(_ms(lambda: node.ready(model)))
    for name in reversed(_NAMES):
        runs.swap.append(_ms(lambda one=name: node.complete(one, prompt, max_tokens=1)))  # type: ignore[misc]


def _sleep(node: Node, model: str) -> None:
    node.set_keep_alive(model, 0.0)

    def is_asleep() -> bool:
        state = {one.model: one.state for one in node.known_models()}[model]
        return state is ModelState.ASLEEP

    eventually(is_asleep, what="the model sleeps")


def _peers(
    stack: ExitStack, subject: Subject, where: Path, models: Path
) -> tuple[LlamaServer | None, LlamaServer | None]:
    """llama-server with its sleep, and as a router; None where it has not the option."""
    program = peers.program(peers.SERVER)
    if program is None:
        return None, None
    shown = subprocess.run([str(program), "--help"], capture_output=True, text=True, check=False)
    sleeper = router = None
    if "--sleep-idle-seconds" in shown.stdout:
        extra = ("--sleep-idle-seconds", str(_SLEEPS_S))
        path, params = subject.path, subject.params
        sleeper = stack.enter_context(LlamaServer(path, params, where / "sleeper", extra))
    if "--models-dir" in shown.stdout:
        extra = ("--models-dir", str(models), "--models-max", "1")
        router = stack.enter_context(LlamaServer(None, subject.params, where / "router", extra))
    return sleeper, router


def _peer_wake(server: LlamaServer, prompt: Sequence[int]) -> float:
    server.complete(prompt, 1)
    eventually(server.is_sleeping, within_s=30, every_s=0.1, what="llama-server sleeps")
    return _ms(lambda: server.complete(prompt, 1))


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def _figures(name: str, n_tokens: int, runs: _Runs) -> list[Figure]:
    variant = f"{name}, {n_tokens} tokens"
    above = paired_differences(runs.wake, runs.load)
    found = [
        figure(NAME, variant, "wake_first_token", "ms", summarise(runs.wake)),
        figure(NAME, variant, "load", "ms", summarise(runs.load)),
        figure(NAME, variant, "wake_above_load", "ms", summarise(above)),
        figure(NAME, variant, "swap_first_token", "ms", summarise(runs.swap)),
    ]
    for what, ours, theirs in (
        ("wake", runs.wake, runs.peer_wake),
        ("swap", runs.swap, runs.peer_swap),
    ):
        if theirs:
            ratio = summarise(paired_ratios(ours, theirs))
            found.append(figure(NAME, variant, f"llama_server_{what}", "ms", summarise(theirs)))
            found.append(figure(NAME, variant, f"{what}_to_llama_server", "ratio", ratio))
    if not (runs.peer_wake or runs.peer_swap):
        print(peers.missing(peers.SERVER) or "llama-server has neither sleep nor router")
    return found
