"""An idle node: the time to start and stop it, and the memory of each of its processes.

Memory is PSS: private pages, and of shared pages the share of each process. The actors are forked
from one process, so most of their pages are shared and RSS would count them many times.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.bare import BareModel
from bench.report import Figure, figure
from bench.stats import summarise
from bench.subjects import (
    CACHE_RAM,
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    random_prompt,
    subjects,
    wait_until_persisted,
)
from runtime import Node, TreeNode
from runtime.cli.progress import ProgressLine

NAME = "node"
STARTS, QUICK_STARTS = 7, 1


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Start nodes one after the other, without a model; then one with a model, for its memory."""
    starts: list[float] = []
    stops: list[float] = []
    memory: dict[str, int] = {}
    n_starts = QUICK_STARTS if quick else STARTS
    with ProgressLine(NAME) as progress:
        for number in range(n_starts):
            progress.share(number / n_starts)
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                where = Path(folder)
                began = time.perf_counter()
                node = Node.start(
                    cache_dir=where / "cache",
                    cache_ram=CACHE_RAM,
                    runtime_dir=where / "run",
                    log_file=where / "node.log",
                )
                try:
                    starts.append(time.perf_counter() - began)
                    memory = dict(_memory(node))
                finally:
                    began = time.perf_counter()
                    node.stop()
                    stops.append(time.perf_counter() - began)
    total = sum(memory.values())
    figures = [
        figure(NAME, "no model", "start_s", "s", summarise(starts), "goal 2"),
        figure(NAME, "no model", "stop_s", "s", summarise(stops)),
        Figure(NAME, "no model", "pss_all_mib", _mib(total), "MiB", 1, f"{len(memory)} processes"),
    ]
    figures += [
        Figure(NAME, "no model", f"pss_mib {process}", _mib(n_bytes), "MiB", 1)
        for process, n_bytes in memory.items()
    ]
    return figures + _model_memory(quick, model)


def _model_memory(quick: bool, model: Path | None) -> list[Figure]:
    """Memory of an idle model process beside its weights and its KV, after one request.

    The model is read, not mapped: all weights, also those that llama.cpp repacks for the CPU, are
    private memory then, of the size that llama.cpp reports.
    """
    figures: list[Figure] = []
    for subject in subjects(quick=quick, model=model):
        params = replace(subject.params, use_mmap=False)
        read = Subject(subject.name, subject.path, params)
        with BareModel(read.path, read.params) as bare:
            used, prompt = bare.memory_use(), random_prompt(bare.facts, 32, seed=1)
        with node_for_measuring() as node:
            load(node, read)
            node.complete(MODEL_ID, prompt, max_tokens=4)
            wait_until_persisted(node)
            found = node.tree().find(f"model:{MODEL_ID}")
            if found is None or found.pid is None:
                raise RuntimeError("the model has no process")
            pss = _pss(found.pid)
        above = pss - used.host_model - used.host_context
        note = f"goal 120; with llama.cpp's compute buffers, {_mib(used.host_compute):.1f} MiB"
        figures += [
            Figure(NAME, subject.name, "model_pss_mib", _mib(pss), "MiB", 1),
            Figure(NAME, subject.name, "model_weights_mib", _mib(used.host_model), "MiB", 1),
            Figure(NAME, subject.name, "model_kv_mib", _mib(used.host_context), "MiB", 1),
            Figure(NAME, subject.name, "model_above_both_mib", _mib(above), "MiB", 1, note),
        ]
    return figures


def _memory(node: Node) -> Iterator[tuple[str, int]]:
    """(process, PSS in bytes) of everything that belongs to the node."""
    record = node.connection.record
    yield "admin", _pss(record.admin_pid)
    yield "root", _pss(record.root_pid)
    for one in _walk(node.tree()):
        if one.pid is not None and one.pid != record.root_pid:
            yield one.id, _pss(one.pid)


def _walk(node: TreeNode) -> Iterator[TreeNode]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"the kernel reports no PSS for pid {pid}")


def _mib(n_bytes: int) -> float:
    return n_bytes / (1 << 20)
