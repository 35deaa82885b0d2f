"""The cache index: memory per row, lookups among many rows, adopting rows after a start.

The index is measured in a process of its own, so that nothing else grows there: resident
memory before and after, keys and tokens included. The rescan runs the real actors over real files:
heads and sizes as in use, payloads as holes, because a scan does not read them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from actors import messages as m
from actors.storage.cache_meta import CacheMetaArgs
from actors.storage.file_tier import FileTierArgs
from bench.report import Figure, figure
from bench.stats import summarise
from cache.answers import RowRequest
from cache.index import CacheIndex
from cache.keys import BLOCK_TOKENS, namespace_key
from cache.publish import row_path
from cache.rows import RowHeader, RowIdentity, encode_header
from cache.tokens import TOKEN_BYTES
from runtime.cli.progress import ProgressLine
from supervision import ChildSpec, Strategy, SupervisorSpec
from supervision.connection import Connection
from supervision.errors import SupervisionError
from supervision.messages import ReportStatus, StatusReported, new_ref
from tests.support.nodes import running_node

NAME = "index"
ROWS, FILES, WIDE = 1_000_000, 100_000, 10_000
QUICK_ROWS, QUICK_FILES, QUICK_WIDE = 20_000, 500, 1_000
CHAIN_BLOCKS = 50  # a conversation of 3,200 tokens
PROMPT_TOKENS = 3_072
ROW_BYTES = 1_442_560  # a block of the 1.1B shape
LOOKUPS = 300
_ROOT = namespace_key([("bench", "index")])
_ASK_EVERY_S = 0.002
_ADOPTED_WITHIN_S = 120.0  # the goal for 100,000 files is 10


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Every figure; no model is loaded, so ``model`` does not matter."""
    del model
    rows, files, wide = (QUICK_ROWS, QUICK_FILES, QUICK_WIDE) if quick else (ROWS, FILES, WIDE)
    parts: tuple[Callable[[], list[Figure]], ...] = (
        lambda: _apart(_conversations, rows),
        lambda: _apart(_all_different, rows),
        lambda: _apart(_wide_node, wide),
        lambda: _apart(_full_tier, rows // 10),
        lambda: _rescan(files),
    )
    figures: list[Figure] = []
    with ProgressLine(NAME) as progress:
        for number, part in enumerate(parts):
            progress.share(number / len(parts))
            figures += part()
    return figures


def _apart(measure: Callable[[int], list[Figure]], rows: int) -> list[Figure]:
    """Run in a fresh process, which has allocated nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, rows).result()


# ── the index ────────────────────────────────────────────────────────────────


def _conversations(rows: int) -> list[Figure]:
    """Chains of 50 blocks below one root, found by a scan of a disk."""
    variant = f"{rows:,} rows in conversations of {CHAIN_BLOCKS} blocks"
    index, figures = _filled(variant, rows, CHAIN_BLOCKS)
    numbers = random.Random(2)
    step = BLOCK_TOKENS * TOKEN_BYTES
    whole_ms, cut_ms = [], []
    for _ in range(LOOKUPS):
        number = numbers.randrange(rows // CHAIN_BLOCKS)
        prompt = b"".join(_tokens(number, at) for at in range(CHAIN_BLOCKS))
        prompt = prompt[: PROMPT_TOKENS * TOKEN_BYTES]
        whole_ms.append(_lookup_ms(index, prompt, PROMPT_TOKENS))
        other = numbers.randbytes(step)
        shared = PROMPT_TOKENS - 2 * BLOCK_TOKENS + 20  # ends within a block
        prompt = (prompt[: shared * TOKEN_BYTES] + other)[: PROMPT_TOKENS * TOKEN_BYTES]
        cut_ms.append(_lookup_ms(index, prompt, shared))
    return [
        *figures,
        *_percentiles(variant, f"lookup_{PROMPT_TOKENS}_tokens", whole_ms, "hit and release"),
        *_percentiles(variant, f"lookup_{PROMPT_TOKENS}_cut", cut_ms, "ends within a block"),
    ]


def _all_different(rows: int) -> list[Figure]:
    """The other extreme: every row is the first block of its own conversation, and a leaf."""
    return _filled(f"{rows:,} rows below one root", rows, 1)[1]


def _filled(variant: str, rows: int, chain_blocks: int) -> tuple[CacheIndex, list[Figure]]:
    requests = _requests(rows, chain_blocks)
    batch = max(1, min(10_000, rows // 10))
    gc.collect()
    before = _resident_bytes()
    index = CacheIndex(budgets={"disk": 1 << 60})
    seconds = []
    for _ in range(rows // batch):
        found = [next(requests) for _ in range(batch)]
        started = time.perf_counter()
        for row in found:
            index.adopt(0.0, "disk", row)
        seconds.append((time.perf_counter() - started) / batch)
    del found, row
    gc.collect()
    grown = (_resident_bytes() - before) / index.snapshot().rows
    us = [1e6 * one for one in seconds]
    return index, [
        Figure(NAME, variant, "memory_per_row", grown, "bytes", 1, "resident; goal 400"),
        figure(NAME, variant, "adopt_a_row", "us", summarise(us), f"{batch:,} rows a run"),
    ]


def _wide_node(children: int) -> list[Figure]:
    """One node with many children: a prompt that ends within a block of one of them."""
    index = CacheIndex(budgets={"disk": 1 << 60})
    for row in _requests(children, 1):
        index.adopt(0.0, "disk", row)
    numbers, shared = random.Random(3), 20
    ms = []
    for _ in range(LOOKUPS):
        prompt = _tokens(numbers.randrange(children), 0)[: shared * TOKEN_BYTES]
        ms.append(_lookup_ms(index, prompt + numbers.randbytes(100), shared))
    return _percentiles(f"a node with {children:,} children", "lookup_cut", ms)


def _full_tier(rows: int) -> list[Figure]:
    """Each new row has to evict another one."""
    index = CacheIndex(budgets={"disk": rows * ROW_BYTES})
    requests = _requests(rows + 2_000, CHAIN_BLOCKS)
    for _ in range(rows):
        index.adopt(0.0, "disk", next(requests))
    us = []
    for _ in range(2_000):
        row = next(requests)
        started = time.perf_counter()
        index.reserve(1.0, "bench", [row], "disk")
        index.publish(1.0, "bench", row.key, "disk")
        us.append(1e6 * (time.perf_counter() - started))
    if index.snapshot().evictions != len(us):
        raise RuntimeError(f"{index.snapshot().evictions} rows were evicted, not {len(us)}")
    return [figure(NAME, f"a full tier of {rows:,} rows", "save_and_evict", "us", summarise(us))]


def _requests(rows: int, chain_blocks: int) -> Iterator[RowRequest]:
    for number in range(-(-rows // chain_blocks)):
        parent = _ROOT
        for block in range(chain_blocks):
            tokens = _tokens(number, block)
            row = RowIdentity.after(parent, _ROOT, block * BLOCK_TOKENS, tokens)
            yield RowRequest(row, ROW_BYTES)
            parent = row.key


def _tokens(number: int, block: int) -> bytes:
    return random.Random(number << 20 | block).randbytes(BLOCK_TOKENS * TOKEN_BYTES)


def _lookup_ms(index: CacheIndex, prompt: bytes, expected: int) -> float:
    started = time.perf_counter()
    match = index.lookup(0.0, "bench", _ROOT, prompt)
    index.release(match.lease)
    elapsed = time.perf_counter() - started
    if match.n_tokens != expected:
        raise RuntimeError(f"a lookup matched {match.n_tokens} tokens, not {expected}")
    return 1e3 * elapsed


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# ── the rescan ───────────────────────────────────────────────────────────────


def _rescan(files: int) -> list[Figure]:
    """Start a tier and cache_meta over a full directory; look prompts up during the scan."""
    variant = f"rescan of {files:,} files"
    with tempfile.TemporaryDirectory(prefix="bench-index-") as folder:
        root = Path(folder) / "rows"
        prompt = _write_files(root, files)
        tree = SupervisorSpec(
            Strategy.REST_FOR_ONE,
            (
                ChildSpec(
                    "cache_meta",
                    "actors.storage.cache_meta.CacheMetaActor",
                    args=CacheMetaArgs(None, 0, (("disk", 1 << 60),)),
                ),
                ChildSpec(
                    "tier:disk",
                    "actors.storage.file_tier.FileTierActor",
                    args=FileTierArgs("disk", str(root)),
                ),
            ),
        )
        node_folder = Path(folder) / "node"
        node_folder.mkdir()
        started = time.perf_counter()
        with running_node(tree, node_folder) as node:
            connection = node.connect()
            asked_ms = _ask_until_adopted(connection, prompt, files)
            elapsed = time.perf_counter() - started
    note = "page cache warm, start of the node included; goal 10"
    return [
        Figure(NAME, variant, "rescan_s", elapsed, "s", 1, note if files == FILES else ""),
        *_percentiles(variant, "lookup_meanwhile", asked_ms, "ask to answer, from a host"),
    ]


def _ask_until_adopted(connection: Connection, prompt: bytes, files: int) -> list[float]:
    asked_ms: list[float] = []
    pause = threading.Event()
    rows, status = 0, dict[str, object]()
    give_up_at = time.monotonic() + _ADOPTED_WITHIN_S
    while rows < files:
        if time.monotonic() >= give_up_at:
            raise RuntimeError(f"{rows} of {files} rows were found in time: {status}")
        for _ in range(20):
            started = time.perf_counter()
            with suppress(SupervisionError):
                question = m.LookupPrefix(new_ref(), "bench", _ROOT, prompt)
                found = connection.ask("cache_meta", question, timeout_s=30)
                asked_ms.append(1e3 * (time.perf_counter() - started))
                if isinstance(found, m.PrefixResolved) and found.lease:
                    connection.tell("cache_meta", m.ReleaseLease(found.lease))
            pause.wait(_ASK_EVERY_S)
        with suppress(SupervisionError):
            told = connection.ask("cache_meta", ReportStatus(new_ref()), timeout_s=30)
            if isinstance(told, StatusReported):
                status = dict(told.status)
                rows = int(str(status.get("rows", 0)))
    return asked_ms


def _write_files(root: Path, files: int) -> bytes:
    """Sealed heads and holes for payloads; the first prompt of 3,072 tokens in them."""
    for row in _requests(files, CHAIN_BLOCKS):
        path = Path(row_path(root, row.key))
        head = RowHeader(
            row.id,
            ROW_BYTES - 512,
            created_unix_s=1.7e9,
            sealed=True,
        )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(encode_header(head))
            file.truncate(head.row_bytes)
    prompt = b"".join(_tokens(0, block) for block in range(CHAIN_BLOCKS))
    return prompt[: PROMPT_TOKENS * TOKEN_BYTES]


def _percentiles(variant: str, metric: str, values: list[float], note: str = "") -> list[Figure]:
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    spread = f"{ordered[0]:.4g} to {ordered[-1]:.4g}"
    said = "; ".join(part for part in (spread, note) if part)
    return [
        Figure(NAME, variant, f"{metric} p50", statistics.median(values), "ms", len(values), said),
        Figure(NAME, variant, f"{metric} p99", p99, "ms", len(values), ""),
    ]
