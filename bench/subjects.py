"""The models that are measured, and the node that runs them."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bare import Facts
from bench.machine import ROOT
from cache.policy import LivePolicy, SavePolicy
from native.params import ModelParams
from runtime import Node
from runtime.client.cache.upkeep import is_flushed
from runtime.embedded import path as embedded_path
from runtime.settings.config import RuntimeConfig
from tests.support.gguf_files import Shape, shaped_llama, tiny_llama, write_model
from tests.support.real_model import FILE as PUBLISHED
from tests.support.waiting import eventually

MODELS_DIR = ROOT / "build" / "bench"
"""Ignored by git. The 1.1B-shape file is 620 MB and is written once."""
CACHE_RAM = "1GiB"
MODEL_ID = "measured"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model file under the name that appears in the results."""

    name: str
    path: Path
    params: ModelParams


def subjects(*, quick: bool, model: Path | None) -> list[Subject]:
    """The given model; else a tiny one when quick; else the embedded one and the 1.1B shape."""
    if model is not None:
        return [Subject(model.stem, model, ModelParams())]
    if quick:
        return [Subject("tiny", _written("tiny.gguf", tiny_llama), ModelParams(n_ctx=1024))]
    found = [Subject("1.1B", _written("1.1B.gguf", shaped_llama), ModelParams())]
    if embedded_path().exists():
        found.insert(0, Subject("embedded", embedded_path(), ModelParams()))
    else:
        print(f"{embedded_path().name} is missing: the embedded model is not measured")
    return found


def published() -> list[Subject]:
    """The published model, where ``make real`` has put it."""
    path = ROOT / "build" / "real-model" / PUBLISHED
    return [Subject("Gemma 3 270M", path, ModelParams())] if path.exists() else []


def windowed(*, quick: bool) -> Subject:
    """The published sliding-window model; where it is not there, a written one of its kind."""
    if quick:
        shape = Shape(6, 128, 4, 2, 256, 512, arch="gemma3")
        path = _written("tiny-window.gguf", lambda path: write_model(path, shape))
        return Subject("tiny window", path, ModelParams())
    found = published()
    if found:
        return found[0]
    print("the published sliding-window model is missing (make real brings it): a written one")
    return _of_kind("gemma3", "window")


def hybrid() -> Subject:
    """A written model of which every second layer is recurrent."""
    return _of_kind("jamba", "hybrid")


def _of_kind(arch: str, name: str) -> Subject:
    """Random weights, 12 layers of 256."""
    shape = Shape(12, 256, 4, 2, 704, 8_000, qtype="Q4_0", arch=arch)
    path = _written(f"{name}.gguf", lambda path: write_model(path, shape))
    return Subject(name, path, ModelParams())


def small_kv(*, quick: bool) -> Subject:
    """A model of 2 KiB of KV per token, in which the overhead per token is largest."""
    shape = Shape(8, 512, 8, 1, 1408, 8_000, qtype="Q4_0")
    if quick:
        return subjects(quick=True, model=None)[0]
    path = _written("2KiB.gguf", lambda path: write_model(path, shape))
    return Subject("2 KiB/token", path, ModelParams())


def without_idle_sequences() -> RuntimeConfig:
    """A node that keeps nothing live after a request, so that every hit comes from a tier."""
    return RuntimeConfig(save=SavePolicy(live=LivePolicy(max_idle=0)))


def _written(name: str, write: Any) -> Path:
    """The model file, written on first use, and renamed when it is complete."""
    path = MODELS_DIR / name
    if not path.exists():
        MODELS_DIR.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{name}.{os.getpid()}")
        try:
            write(half)
            half.rename(path)
        finally:
            half.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def node_for_measuring(where: Path | None = None, **options: Any) -> Iterator[Node]:
    """A node with default tiers, everything of it in ``where``: else in a temporary folder."""
    with contextlib.ExitStack() as stack:
        if where is None:
            where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        settings: dict[str, Any] = {
            "cache_dir": where / "cache",
            "cache_ram": CACHE_RAM,
            "runtime_dir": where / "run",
            "log_file": where / "node.log",
        }
        yield stack.enter_context(Node.start(**(settings | options)))


def load(node: Node, subject: Subject, backend: str = "llama") -> None:
    """Load the subject as ``MODEL_ID``, with the parameters that the bare loop has too."""
    options = {key: getattr(subject.params, key) for key in ModelParams.__dataclass_fields__}
    node.load(MODEL_ID, subject.path, backend=backend, **options)


def wait_until_persisted(node: Node) -> None:
    """Wait for the writer, so that its writes are not timed with the next request."""

    def is_idle() -> bool:
        return is_flushed(node.client)

    eventually(is_idle, within_s=120, every_s=0.05, what="all rows persisted")


def random_prompt(facts: Facts, n_tokens: int, seed: int) -> list[int]:
    """Ordinary tokens whose prefix is shared with no other seed, with high probability."""
    rng = random.Random(seed)
    usable = [token for token in range(facts.n_vocab) if token not in facts.eog_tokens]
    return rng.choices(usable, k=n_tokens)
