"""Restoring up to 16,384 tokens: from the arena over memcpy, from disk over reading the files.

The models are the 1.1B shape and one with 2 KiB of KV per token, in a context of 17,408 cells. The
node computes one long prompt and then hits its beginnings, all from one tier because it keeps no
idle sequences. The bare wrapper restores copies of one block, which takes the same time.

From disk, the page cache is warm or cold. Cold: every file was synced and its pages were dropped
from the page cache; the note has the share that ``mincore`` still reports as resident.
A cold page cache of a virtual machine may still be warm in its host.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.bare import BareModel, Facts
from bench.page_cache import drop_pages, stored_files
from bench.report import Figure, figure
from bench.stats import paired_ratios, summarise
from bench.subjects import (
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    random_prompt,
    small_kv,
    subjects,
    wait_until_persisted,
    without_idle_sequences,
)
from cache.keys import BLOCK_TOKENS
from runtime import Node
from runtime.cli.progress import ProgressLine

NAME = "long_restore"
LENGTHS, QUICK_LENGTHS = (1024, 4096, 16_384), (128, 512)
ROUNDS, QUICK_ROUNDS = 2, 1
LATER_RUNS, QUICK_LATER_RUNS = 4, 2
DISK_RUNS, QUICK_DISK_RUNS = 5, 1
_NEXT_TO_NOTHING = 16 << 10
"""Bytes of RAM tier that hold no block: 0 would turn the whole cache off."""
_GOAL = "goal 1.3 from 4,096 tokens on"


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure the 1.1B shape, or ``model``, and the one with small KV."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    chosen = [subjects(quick=quick, model=model)[-1]]
    if not quick:
        chosen.append(small_kv(quick=quick))
    figures: list[Figure] = []
    for plain in chosen:
        params = replace(plain.params, n_ctx=max(lengths) + 1024)
        subject = Subject(plain.name, plain.path, params)
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            ProgressLine(f"{NAME} {subject.name}") as progress,
            BareModel(subject.path, subject.params) as bare,
        ):
            where = Path(folder)
            progress.share(0.01)
            figures += _from_ram(subject, bare, where, lengths, quick)
            progress.share(0.8)
            figures += _from_disk(subject, bare.facts, where, lengths, quick)
    return figures


# --- from RAM -------------------------------------------------------------------------------------


def _from_ram(
    subject: Subject, bare: BareModel, where: Path, lengths: Sequence[int], quick: bool
) -> list[Figure]:
    times: dict[tuple[int, str], list[float]] = defaultdict(list)
    sizes: dict[int, int] = {}
    prompt = _prompt(bare.facts, lengths)
    bare.fill(prompt[:BLOCK_TOKENS])
    with node_for_measuring(where, config=without_idle_sequences()) as node:
        load(node, subject)
        node.complete(MODEL_ID, prompt, max_tokens=1)
        wait_until_persisted(node)
        for n_tokens in lengths:
            sizes[n_tokens] = bare.keep_repeated(n_tokens)
            for _ in range(QUICK_ROUNDS if quick else ROUNDS):
                node.unload(MODEL_ID)
                load(node, subject)
                for number in range(1 + (QUICK_LATER_RUNS if quick else LATER_RUNS)):
                    when, fresh = ("later", False) if number else ("first", True)
                    restored = _hit(node, prompt[:n_tokens], "ram")
                    times[n_tokens, f"node {when}"].append(restored)
                    times[n_tokens, f"wrapper {when}"].append(bare.restore(fresh=fresh))
                    times[n_tokens, f"memcpy {when}"].append(bare.copy(fresh=fresh))
    figures: list[Figure] = []
    for n_tokens in lengths:
        variant = f"{subject.name} {n_tokens} tokens from ram"
        figures.append(Figure(NAME, variant, "kv_mib", sizes[n_tokens] / (1 << 20), "MiB", 1))
        for when in ("first", "later"):
            memcpy = times[n_tokens, f"memcpy {when}"]
            figures.append(figure(NAME, variant, f"memcpy_{when}_ms", "ms", summarise(memcpy)))
            for way, goal in (("node", _GOAL), ("wrapper", "")):
                values = times[n_tokens, f"{way} {when}"]
                ratio = summarise(paired_ratios(values, memcpy))
                figures += [
                    figure(NAME, variant, f"{way}_{when}_ms", "ms", summarise(values)),
                    figure(NAME, variant, f"{way}_{when}_over_memcpy", "x", ratio, goal),
                ]
    return figures


def _prompt(facts: Facts, lengths: Sequence[int]) -> list[int]:
    return random_prompt(facts, max(lengths), seed=16_384)


def _hit(node: Node, prompt: list[int], source: str) -> float:
    """Milliseconds of restoring, as the completion reports them."""
    done = node.complete(MODEL_ID, prompt, max_tokens=1)
    if done.usage.cached_tokens < len(prompt) - 1 or done.cache.source != source:
        raise RuntimeError(f"not an exact hit of {len(prompt)} tokens from {source}: {done.cache}")
    return done.cache.restore_ms


# --- from disk ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """As many rows as a restore reads; which ones makes no difference for reading."""

    paths: tuple[Path, ...]
    every: tuple[Path, ...]
    """All rows there are, among them those that are restored."""

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def read(self, into: bytearray) -> float:
        """Milliseconds of reading every byte into memory that was written before."""
        began = time.perf_counter()
        with memoryview(into) as view:
            at = 0
            for path in self.paths:
                with path.open("rb", buffering=0) as file:
                    while n := file.readinto(view[at:]):
                        at += n
        return 1e3 * (time.perf_counter() - began)


def _from_disk(
    subject: Subject, facts: Facts, where: Path, lengths: Sequence[int], quick: bool
) -> list[Figure]:
    """The rows that the node of ``_from_ram`` left on disk, in a node whose RAM holds none."""
    prompt = _prompt(facts, lengths)
    figures: list[Figure] = []
    config = without_idle_sequences()
    with node_for_measuring(where, cache_ram=_NEXT_TO_NOTHING, config=config) as node:
        load(node, subject)
        for n_tokens in lengths:
            files = _rows(where / "cache", n_tokens)
            into = bytearray(files.n_bytes)
            files.read(into)
            _hit(node, prompt[:n_tokens], "disk")  # the first one opens files that stay open
            for warm in (True, False):
                ours: list[float] = []
                theirs: list[float] = []
                kept = 0.0
                for _ in range(QUICK_DISK_RUNS if quick else DISK_RUNS):
                    kept = max(kept, 0.0 if warm else drop_pages(files.every))
                    theirs.append(files.read(into))
                    kept = max(kept, 0.0 if warm else drop_pages(files.every))
                    ours.append(_hit(node, prompt[:n_tokens], "disk"))
                state = "warm" if warm else "cold"
                note = "goal 1.3"
                if not warm:
                    note += f"; {100 * kept:.0f} % of the pages were still resident"
                variant = f"{subject.name} {n_tokens} tokens from disk, page cache {state}"
                ratio = summarise(paired_ratios(ours, theirs))
                figures += [
                    figure(NAME, variant, f"read_{state}_ms", "ms", summarise(theirs)),
                    figure(NAME, variant, f"restore_{state}_ms", "ms", summarise(ours)),
                    figure(NAME, variant, f"restore_{state}_over_read", "x", ratio, note),
                ]
    return figures


def _rows(cache: Path, n_tokens: int) -> _Files:
    """Files of as many whole blocks as a prompt has."""
    every = stored_files(cache)
    sizes = sorted(path.stat().st_size for path in every)
    of_a_block = sizes[len(sizes) // 2]
    whole = [path for path in every if path.stat().st_size == of_a_block]
    return _Files(tuple(whole[: n_tokens // BLOCK_TOKENS]), tuple(every))
